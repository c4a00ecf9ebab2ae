"""`python -m bench.tokens`: what authentication costs a gateway. W1, and 1,000 resumes a second, with an access token for each stream
against none, in turn. Prints the gateway's CPU for each event and each resume, the medians of all rounds.
"""

from __future__ import annotations

import argparse
import os
import selectors
import socket
import statistics
import sys
import time
from dataclasses import dataclass, field

from bench.processes import procs
from bench.processes.parts import Cores, Parts, Server
from bench.workloads.follow import Following, Void, following
from gateway.access.signing import SigningKeys
from gateway.access.stream_tokens import StreamTokens
from shared.errors import MidstreamError
from shared.settings import Settings

_STREAMS = 1000
_RATE, _SECONDS, _WARM_UP_SECONDS = 20_000.0, 5.0, 1.0
_HISTORY, _RESUME_AT = 50, "1-25"
"""Tokens that each stream has before the measurement, and the id after which readers resume: half of them are sent again."""
_RESUMES_PER_SECOND, _RESUME_SECONDS = 1000, 5.0
_ANSWER_SECONDS_MAX = 10.0
_TOKEN_KEYS = "0123456789abcdef" * 2
_CASES = {"no authentication": {"auth": "none"}, "a token each": {"auth": "required", "token_keys": _TOKEN_KEYS}}
_ROUNDS = 4


@dataclass(slots=True)
class Costs:
    """The gateway's CPU, one figure for each round."""

    event_us: list[float] = field(default_factory=list)
    resume_us: list[float] = field(default_factory=list)


def token_of(stream_id: str) -> str:
    return StreamTokens(SigningKeys(_TOKEN_KEYS), Settings()).token(stream_id, ["read"])


def measure(parts: Parts, rounds: int) -> dict[str, Costs]:
    """Returns the costs of each case, measured in turn. Raises MidstreamError."""
    costs = {case: Costs() for case in _CASES}
    for number in range(rounds):
        for case in sorted(_CASES, reverse=bool(number % 2)):  # neither is always the second
            server = parts.gateway(**_CASES[case])
            has_tokens = _CASES[case]["auth"] == "required"
            with following(
                *(parts, server),
                count=_STREAMS,
                readers=_STREAMS,
                history=_HISTORY,
                token_of=token_of if has_tokens else None,
            ) as run:
                figures = run.measure(_RATE, seconds=_SECONDS, warm_up_seconds=_WARM_UP_SECONDS)
                if figures["void"]:
                    raise Void(f"{case}: events were lost or doubled")
                costs[case].event_us.append(figures["server_us_per_event"])
                costs[case].resume_us.append(_resumes(server, run, has_tokens=has_tokens))
            parts.end(server.pid)
    return costs


def _resumes(server: Server, run: Following, *, has_tokens: bool) -> float:
    """Resumes the streams at a steady rate, each over a connection of its own; returns the gateway's CPU for each, in microseconds."""
    assert server.pid is not None
    requests = []
    for stream_id in run.streams:
        authorization = f"Authorization: Bearer {token_of(stream_id)}\r\n" if has_tokens else ""
        requests.append(
            f"GET {server.path % stream_id} HTTP/1.1\r\nHost: {server.host}\r\nAccept: text/event-stream\r\n"
            f"Last-Event-ID: {_RESUME_AT}\r\n{authorization}\r\n".encode()
        )
    cpu, began = procs.cpu_seconds(server.pid), time.monotonic()
    count = int(_RESUMES_PER_SECOND * _RESUME_SECONDS)
    resumed = 0
    waiting: dict[socket.socket, bytes] = {}
    with selectors.DefaultSelector() as selector:
        begun = 0
        while resumed < count:
            due = min(count, int((time.monotonic() - began) * _RESUMES_PER_SECOND))
            while begun < due:
                connection = socket.create_connection((server.host, server.port))
                connection.sendall(requests[begun % len(requests)])
                selector.register(connection, selectors.EVENT_READ)
                waiting[connection] = b""
                begun += 1
            if time.monotonic() - began > _RESUME_SECONDS + _ANSWER_SECONDS_MAX:
                raise Void(f"{count - resumed} of {count} resumes were not answered in time")
            for key, _ in selector.select(0.001):
                connection = key.fileobj  # type: ignore[assignment]
                waiting[connection] += connection.recv(65_536)
                if not waiting[connection].startswith(b"HTTP/1.1 200"[: len(waiting[connection])]):
                    raise Void(f"a resume was answered {waiting[connection][:80]!r}")
                if b"event: live" in waiting[connection]:  # the reader has caught up
                    selector.unregister(connection)
                    connection.close()
                    del waiting[connection]
                    resumed += 1
    return (procs.cpu_seconds(server.pid) - cpu) / count * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tokens", description=__doc__)
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help=f"of each case (default {_ROUNDS})")
    arguments = parser.parse_args()
    procs.raise_open_files_limit()
    try:
        with Parts(Cores.of(None)) as parts:
            if parts.cores.load:
                os.sched_setaffinity(0, parts.cores.load)
            costs = measure(parts, arguments.rounds)
    except MidstreamError as error:
        print(f"bench.tokens: {error}", file=sys.stderr)
        return 1
    plain = costs["no authentication"]
    for case, found in costs.items():
        for name, figures, against in (
            ("W1, an event", found.event_us, plain.event_us),
            ("a resume", found.resume_us, plain.resume_us),
        ):
            more = statistics.median(figures) / statistics.median(against) - 1
            shown = " ".join(f"{figure:.2f}" for figure in figures)
            print(f"{case:18} {name:13} {statistics.median(figures):8.2f} us ({more:+.1%}; rounds: {shown})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
