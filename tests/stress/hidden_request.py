"""Requests hidden in the body of another one, through our proxies: `python -m tests.stress.hidden_request --tries 1000`.

A request that offers an upgrade has a body that is made of requests. If a proxy passes the upgrade on, and the gateway takes the
body for the next request on that connection, there are two answers to one request. Proxies reuse their connections to a gateway
for other clients, so the second answer goes to another client. Here two clients take turns: one attacks, and the other one must
get the answer to its own request. The seed of a try decides what it does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

from tests.support.proxies import Kind, deployed
from tests.support.system import System

_ANSWER_SECONDS_MAX, _REFUSAL_SECONDS_MAX = 5.0, 1.0
_BODY_BYTES_MAX = 600_000
_HEAD_BYTES_MAX = 64 << 10
_HIDDEN = "hidden-request"
_UPGRADES = ("h2c", "h2c", "H2C", "websocket", "h2c, websocket", "websocket, h2c", "TLS/1.0", "anything/1")
_CONNECTIONS = ("Upgrade", "Upgrade, HTTP2-Settings", "keep-alive, Upgrade", "upgrade,http2-settings")
_TARGETS = (
    *(
        "POST /v1/streams",
        "POST /v1/streams",
        "POST /v1/chat/completions",
        "POST /api/chat/x/stop",
        "POST /v1/streams/x/ws",
    ),
    *("GET /v1/streams/x/ws", "GET /v1/models", "PUT /v1/streams", "DELETE /v1/streams/x", "POST /v1/nothing"),
)


class NoAnswer(Exception):
    """The connection ended, or nothing came in time."""


@dataclass
class Found:
    """The results of the tries with one proxy."""

    tries: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    """The statuses that the attacker got; 0 for none."""
    wrong: list[str] = field(default_factory=list)
    """Answers that went to the wrong client, or did not come."""


class Client:
    """One connection to the proxy, opened again when it has ended."""

    def __init__(self, port: int, seconds_max: float) -> None:
        self._port = port
        self._seconds_max = seconds_max
        self._socket: socket.socket | None = None
        self._got = b""

    def send(self, request: bytes) -> None:
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=self._seconds_max)
            self._got = b""
        with contextlib.suppress(OSError):  # refused before the whole request was sent; the answer is still readable
            self._socket.sendall(request)

    def answer(self) -> tuple[int, bytes]:
        """Reads the next answer; returns its status and all its bytes. Raises NoAnswer."""
        while b"\r\n\r\n" not in self._got[:_HEAD_BYTES_MAX]:
            self._receive()
        head, _, rest = self._got.partition(b"\r\n\r\n")
        status, lowered = int(head.split()[1]), head.lower()
        if b"transfer-encoding: chunked" in lowered:
            while not rest.endswith(b"0\r\n\r\n"):
                self._receive()
                rest = self._got[len(head) + 4 :]
            size = len(rest)
        else:
            _, _, length = lowered.partition(b"\r\ncontent-length:")
            size = int(length.split(b"\r\n")[0]) if length else 0
            while len(self._got) < len(head) + 4 + size:
                self._receive()
        end = len(head) + 4 + size
        answer, self._got = self._got[:end], self._got[end:]
        if status == 101 or b"\r\nconnection: close" in lowered:
            self.close()
        return status, answer

    def left_over(self) -> bytes:
        """Returns bytes that came although no request was open."""
        if self._socket is not None and select.select([self._socket], [], [], 0)[0]:
            with contextlib.suppress(NoAnswer):  # it has ended
                self._receive()
        left, self._got = self._got, b""
        return left

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _receive(self) -> None:
        try:
            more = b"" if self._socket is None else self._socket.recv(65_536)
        except OSError:
            more = b""
        if not more:
            self.close()
            raise NoAnswer
        self._got += more


def attack(dice: random.Random) -> bytes:
    """Returns a request that offers an upgrade, with a body made of requests or pieces of one."""
    hidden = f"GET /v1/streams/{_HIDDEN} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    size = int(10 ** dice.uniform(0, 5.778))
    padding = b"x" * dice.choice((0, 0, dice.randrange(1, 9000)))
    body = (padding + hidden * (_BODY_BYTES_MAX // len(hidden) + 1))[:size]
    framing, sent = f"Content-Length: {len(body)}", body
    if dice.random() < 0.3:
        framing, sent = "Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    head = (
        f"{dice.choice(_TARGETS)} HTTP/1.1\r\nHost: localhost\r\n"
        f"Connection: {dice.choice(_CONNECTIONS)}\r\nUpgrade: {dice.choice(_UPGRADES)}\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n{framing}\r\n\r\n"
    )
    return head.encode() + sent


def try_often(port: int, tries: int, seed: int) -> Found:
    """Attacks and sends normal requests in turn. The attacker may be refused; each normal request must get its own answer."""
    found = Found()
    attacker, victim = Client(port, _REFUSAL_SECONDS_MAX), Client(port, _ANSWER_SECONDS_MAX)
    for number in range(tries):
        dice = random.Random(f"{seed}/{number}")
        name = f"victim-{number}-"
        found.tries += 1
        try:
            attacker.send(attack(dice))
            status, answer = attacker.answer()
            found.statuses[status] += 1
            if _HIDDEN.encode() in answer:
                found.wrong.append(f"try {number}: the attacker got the answer to the hidden request")
        except NoAnswer:
            found.statuses[0] += 1
            attacker.close()
        try:
            victim.send(f"GET /v1/streams/{name} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            status, answer = victim.answer()
            if status != 404 or _HIDDEN.encode() in answer:
                found.wrong.append(f"try {number}: the other client got {answer[-200:]!r}")
        except NoAnswer:
            found.wrong.append(f"try {number}: the other client got no answer")
        for client, side in ((attacker, "attacker"), (victim, "other client")):
            more = client.left_over()
            if more and not more.startswith((b"\x81", b"\x88")):  # frames of a WebSocket that was opened
                found.wrong.append(f"try {number}: the {side} got more than one answer: {more[:200]!r}")
                client.close()
    attacker.close()
    victim.close()
    return found


async def through(system: System, kind: Kind, tries: int, seed: int) -> Found:
    """Tries it through our configuration of this proxy, with one gateway, so that both clients share the proxy's connections."""
    port = system.gateway_port()
    with deployed(kind, [port, port]) as proxy:
        return await asyncio.to_thread(try_often, proxy.port, tries, seed)


async def _main(kinds: Sequence[Kind], tries: int, seed: int) -> int:
    wrong = 0
    async with System(workers=0) as system:
        for kind in kinds:
            began = time.monotonic()
            found = await through(system, kind, tries, seed)
            wrong += len(found.wrong)
            took = time.monotonic() - began
            print(f"{kind}: {found.tries} tries with seed {seed} in {took:.1f} s, {len(found.wrong)} went wrong")
            print(f"  the attacker was answered {dict(found.statuses)}")
            for line in found.wrong[:10]:
                print(f"  {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.stress.hidden_request")
    parser.add_argument("--tries", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--proxy", choices=get_args(Kind), action="append", help="default: all three")
    arguments = parser.parse_args()
    sys.exit(asyncio.run(_main(arguments.proxy or get_args(Kind), arguments.tries, arguments.seed)))
