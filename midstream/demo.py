"""`midstream demo`: cuts one answer's connection twice, and proves that no token is lost or doubled."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from midstream.client import (
    Cancelled,
    Client,
    Created,
    Delta,
    Done,
    Failed,
    OwnEvent,
    Restarted,
    Started,
    State,
    StreamError,
    Token,
)
from midstream.processes import LocalMidstream, settings_for
from shared.errors import Unusable

_CUT_AFTER_TOKENS = (20, 45)
"""Of an answer that is that long; a shorter one is read a second time, and cut after a third and two thirds of it."""
_AWAY_SECONDS = 0.6
"""How long the reader stays disconnected after each cut, while generation goes on."""
_TOKENS = 100
"""Enough for two cuts, and generated in a few seconds."""
_GIVE_UP_SECONDS = 30.0
"""Its own gateway is on this machine: when it has not answered for so long, it never will."""
_PROMPT = "Tell me how a river finds its way to the sea."


class _Paint:
    """Colours text on a terminal, unless NO_COLOR is set; leaves it plain in a file."""

    def __init__(self) -> None:
        self._on = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def __call__(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._on else text


@dataclass
class _Received:
    """What the reader received."""

    ids: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    end: Done | Failed | Cancelled | None = None


def demo(
    *, prompt: str | None, redis_url: str | None, provider: str | None, base_url: str | None, model: str | None
) -> int:
    """Returns 0 if the text is complete and no token came twice; else prints the difference and returns 1. Raises Unusable."""
    options = {
        "MIDSTREAM_PORT": "0",
        "MIDSTREAM_REDIS_URL": redis_url,
        "MIDSTREAM_PROVIDER": provider,
        "OPENAI_BASE_URL": base_url,
        "MIDSTREAM_DEFAULT_MODEL": model,
        "MIDSTREAM_LOG_LEVEL": os.environ.get("MIDSTREAM_LOG_LEVEL", "warning"),
    }
    settings, environment = settings_for(options, os.environ)
    redis_url = environment.get("MIDSTREAM_REDIS_URL") or None
    with tempfile.TemporaryFile() as output:
        began = time.monotonic()
        try:
            with LocalMidstream(settings, redis_url=redis_url, environment=environment, output=output) as midstream:
                where = "the Redis that you named" if redis_url else "an embedded Valkey"
                print(
                    f"A gateway, a worker and {where} are up after {time.monotonic() - began:.1f} s: {midstream.url}\n"
                )
                return _show(midstream.url, prompt or _PROMPT, model)
        except (StreamError, Unusable) as error:
            print(f"midstream demo: {error}", file=sys.stderr)
        output.seek(0)
        sys.stderr.write(output.read()[-4000:].decode(errors="replace"))
    return 1


def _show(url: str, prompt: str, model: str | None) -> int:
    paint = _Paint()
    request: dict[str, Any] = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": _TOKENS,
        "simulate": {"tokens": _TOKENS},  # read by the simulated provider only
    }
    if model:
        request["model"] = model
    with Client(url, give_up_seconds=_GIVE_UP_SECONDS) as client:
        created = client.create(request)
        print(f"you: {prompt}\n")
        cuts: tuple[int, ...] = _CUT_AFTER_TOKENS
        received = _read_with_cuts(client, created, cuts, paint)
        tokens = len(received.ids)
        if isinstance(received.end, Done) and 2 <= tokens <= cuts[-1]:
            cuts = tuple(sorted({max(1, tokens // 3), max(1, 2 * tokens // 3)}))
            note = f"The answer has only {tokens} tokens. It is read once more, from its log, with other cuts:\n"
            print(paint("2", note))
            received = _read_with_cuts(client, created, cuts, paint)
        state = client.state(created.id, wait_seconds=5)
    return _compare(received, cuts, state, paint)


def _read_with_cuts(client: Client, created: Created, cuts: tuple[int, ...], paint: _Paint) -> _Received:
    """Reads the answer to its end, over a new connection after each cut; `cuts`: after how many tokens."""
    received = _Received()
    for cut_after in (*cuts, None):
        _read(client, created, received, cut_after, paint)
        if received.end or cut_after is None:
            break
        last = received.ids[-1]
        print(paint("31", f"\n  ✂ connection cut after token {len(received.tokens)}"), flush=True)
        time.sleep(_AWAY_SECONDS)
        print(paint("32", f"  ↻ back again, Last-Event-ID: {last}"), flush=True)
    print("\n")
    return received


def _read(client: Client, created: Created, received: _Received, cut_after: int | None, paint: _Paint) -> None:
    """Reads on over one connection, which is closed after so many tokens."""
    with closing(client.follow(created.id, after=received.ids[-1] if received.ids else "")) as events:
        for event in events:
            match event:
                case Token() | Delta() | OwnEvent():
                    piece = event.token if isinstance(event, Token) else ""
                    received.ids.append(event.id or "")
                    received.tokens.append(piece)
                    print(piece, end="", flush=True)
                    if len(received.tokens) == cut_after:
                        return
                case Started(model="simulated"):
                    print(paint("2", "(simulated: set OPENAI_BASE_URL or OPENAI_API_KEY for a real model)"))
                case Restarted(base=base, reason=reason):
                    del received.ids[base:], received.tokens[base:]
                    print(paint("33", f"\n  ⟲ restarted ({reason}): the first {base} tokens are kept"))
                case Done() | Failed() | Cancelled():
                    received.end = event


def _compare(received: _Received, cuts: tuple[int, ...], state: State, paint: _Paint) -> int:
    text, stored = "".join(received.tokens), state.text
    offsets = [int(event_id.rpartition("-")[2]) for event_id in received.ids]
    lost = sorted(set(range(1, state.tokens + 1)) - set(offsets))
    doubled = len(offsets) - len(set(offsets))
    if isinstance(received.end, Failed):
        print(paint("31", f"failed: {received.end.code}: {received.end.message}"))
        return 1
    if len(offsets) <= cuts[-1]:
        print(paint("31", f"the answer had only {len(offsets)} tokens, too few to cut it; try another --prompt"))
        return 1
    if lost or doubled or text != stored or offsets != sorted(offsets):
        pairs = enumerate(zip(text, stored, strict=False))
        place = next((index for index, (read, kept) in pairs if read != kept), min(len(text), len(stored)))
        print(
            paint(
                "31",
                f"NOT WHOLE: tokens lost {lost[:20]}, doubled {doubled}; the text differs from character {place} on:",
            )
        )
        print(f"  read: {text[max(0, place - 30) : place + 30]!r}\n  kept: {stored[max(0, place - 30) : place + 30]!r}")
        return 1
    was_cut_off = isinstance(received.end, Done) and received.end.truncated
    cut_off = " The provider cut the answer off at its length limit, and said so." if was_cut_off else ""
    print(
        paint("32", f"✔ {len(offsets)} tokens over {len(cuts) + 1} connections: none lost, none doubled, ")
        + paint("32", f"and the text equals what the server kept.{cut_off}")
    )
    return 0
