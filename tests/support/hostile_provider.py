"""An OpenAI-compatible server that sends hostile answers: `python -m tests.support.hostile_provider` prints its URL.

The request's model chooses the answer: `plain` is a valid stream of 20 tokens per second; `fuzz-SEED` is a recording with
mutations chosen by the seed, in values, lines, encoding, framing and head. GET /stats returns the number of requests by model.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import random
import signal
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from copy import deepcopy
from typing import Any

PLAIN_SECONDS = 0.05
_CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
_TOKEN = {
    "token": "a",
    "logprob": -0.5,
    "bytes": [97],
    "top_logprobs": [{"token": "b", "logprob": -1.5, "bytes": None}],
}
_USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 3,
    "total_tokens": 8,
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}
_ERROR = {"message": "overloaded", "type": "server_error", "param": None, "code": None}


def _chunk(delta: Any, finish: Any = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    about = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "system_fingerprint": "fp"}
    return {**about, "choices": [choice], **more}


def _recording(dice: random.Random) -> list[dict[str, Any]]:
    """Returns the chunks of a valid answer of one of several kinds."""
    chunks = [_chunk({"role": "assistant", "content": ""})]
    for kind in dice.choices(
        ("text", "text", "reasoning", "calls", "logprobs", "choices", "refusal"), k=dice.randint(1, 6)
    ):
        if kind == "text":
            chunks += [_chunk({"content": f" word{number}"}) for number in range(dice.randint(1, 30))]
        elif kind == "reasoning":
            chunks += [_chunk({"reasoning_content": "hm"}), _chunk({"reasoning": "so", "reasoning_details": [{}]})]
        elif kind == "calls":
            chunks += [_chunk({"tool_calls": [_CALL]})]
            chunks += [
                _chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}) for piece in ('{"a"', ":1}")
            ]
        elif kind == "logprobs":
            chunks += [_chunk({"content": "a"})]
            chunks[-1]["choices"][0]["logprobs"] = {"content": [_TOKEN], "refusal": None}
        elif kind == "choices":
            chunks += [_chunk({"content": "b"}), _chunk({}, "length")]
            for chunk in chunks[-2:]:
                chunk["choices"][0]["index"] = 1
        else:
            chunks += [_chunk({"refusal": "no"})]
    return [*chunks, _chunk({}, "stop", service_tier="default"), {**_chunk({}), "choices": [], "usage": _USAGE}]


def _odd_value(dice: random.Random) -> Any:
    def deep(levels: int) -> Any:
        value: Any = 1
        for _ in range(levels):
            value = [value] if dice.random() < 0.5 else {"x": value}
        return value

    makers: list[Callable[[], Any]] = [
        lambda: dice.choice([None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, 1.5, float("nan"), float("inf")]),
        lambda: dice.choice(["", "0", "text", "\ud83d", "\udc00", "\x00", "a\nb\x1b[0m", "null", "error", "1" * 400]),
        lambda: "x" * dice.choice([100, 10_000, 3_000_000]),
        lambda: dice.choice(
            [[], {}, [None], [1], ["a"], [[]], [{}], {"index": 0}, {"content": "a"}, [deepcopy(_CALL)]]
        ),
        lambda: deep(dice.choice([5, 40, 200, 900, 3000])),
        lambda: [{"index": number} for number in range(dice.choice([3, 200, 30_000]))],
        lambda: {f"k{number}": number for number in range(dice.choice([3, 1000, 50_000]))},
    ]
    return dice.choice(makers)()


def _mutate(dice: random.Random, chunk: Any) -> None:
    """Replaces a value at a random place, or adds a field."""
    within = chunk
    while True:
        keys: list[Any] = list(within) if isinstance(within, dict) else list(range(len(within)))
        if not keys:
            return
        key = dice.choice(keys)
        if isinstance(within[key], dict | list) and within[key] and dice.random() < 0.75:
            within = within[key]
            continue
        if isinstance(within, dict) and dice.random() < 0.15:
            key = dice.choice(
                ["error", "usage", "message", "delta", "index", "function_call", "audio", "annotations", "zz"]
            )
        within[key] = _odd_value(dice)
        return


def _written(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 5000 + b"]" * 5000


def _body(dice: random.Random) -> bytes:
    """Returns the SSE bytes of a recording, with mutated values and lines."""
    chunks = json.loads(json.dumps(_recording(dice)))
    for _ in range(dice.choice([0, 1, 1, 2, 5])):
        _mutate(dice, dice.choice(chunks))
    lines = [b"data: " + _written(chunk) for chunk in chunks] + [b"data: [DONE]"] * dice.choice([0, 1, 1, 1, 2])
    for _ in range(dice.choice([0, 0, 1, 2])):
        at = dice.randrange(len(lines) + 1)
        lines[at:at] = dice.choice(
            [
                [b": comment"],
                [b"event: error", b"data: " + _written({"error": _ERROR | {"code": _odd_value(dice)}})],
                [b"data: " + dice.randbytes(30)],
                [b"data: [1]"],
                [b"\xef\xbb\xbf"],
                [b"x" * dice.choice([10, 9_000_000])],
                [b"data: " + b"[" * dice.choice([10, 100_000])],
                [b"data: [" + b"[]," * dice.choice([10, 700_000]) + b"1]"],
                lines[:at],
            ]
        )
    body = dice.choice([b"\n\n", b"\n\n", b"\n\n", b"\r\n\r\n", b"\n"]).join(lines) + b"\n\n"
    if dice.random() < 0.2:
        at = dice.randrange(len(body) + 1)
        body = body[:at] + dice.randbytes(dice.randint(1, 8)) + body[at + dice.randint(0, 8) :]
    return body


def response_of(seed: int) -> tuple[list[bytes], bool]:
    """Returns the pieces of a hostile response, and whether the connection then stays open instead of closing."""
    dice = random.Random(seed)
    body, headers = _body(dice), [b"Content-Type: text/event-stream"]
    if dice.random() < 0.6:  # only values and lines are mutated
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        return [head, *(body[start : start + 65_536] for start in range(0, len(body), 65_536))], False
    status = dice.choice(
        [b"200 OK"] * 12
        + [b"400 No", b"429 Slow", b"500 Oh", b"503 Busy", b"307 There", b"302 There", b"999 What", b"204 None"]
    )
    if not status.startswith(b"200"):
        body = dice.choice(
            [body, _written({"error": {**_ERROR, dice.choice(list(_ERROR)): _odd_value(dice)}}), b"x" * 3_000_000]
        )
        headers.append(b"Retry-After: " + dice.choice([b"0", b"0.1", b"9" * 300, b"nan", b"600", b"soon"]))
        headers.append(b"Location: " + dice.choice([b"/v1/chat/completions", b"http://localhost:1/", b"//[", b"\xff"]))
    coding = dice.choice([b""] * 8 + [b"gzip", b"deflate", b"gzip, gzip", b"br", b"bomb", b"bombs", b"a lie"])
    if coding.startswith(b"bomb"):
        body = gzip.compress(b"\n" * (200 << 20), 9)
        body, coding = (gzip.compress(body, 9), b"gzip, gzip") if coding == b"bombs" else (body, b"gzip")
    elif coding == b"deflate":
        body = zlib.compress(body)
    elif coding.startswith(b"gzip"):
        for _ in coding.split(b","):
            body = gzip.compress(body)
    if coding:
        headers.append(b"Content-Encoding: " + (b"gzip" if coding == b"a lie" else coding))
    headers += dice.choice(
        [[]] * 9 + [[b"Set-Cookie: a=" + b"x" * 500] * 50, [b"X: " + b"y" * 100_000], [b"a: b"] * 500]
    )
    framing = dice.choice(["chunked"] * 6 + ["length", "length", "closed", "wrong"])
    if framing == "chunked":
        headers.append(b"Transfer-Encoding: chunked")
        size = dice.choice([7, 1000, 65_536]) if len(body) < 100_000 else 65_536
        extension = dice.choice([b""] * 9 + [b";" + b"e" * 70_000])
        pieces = [body[start : start + size] for start in range(0, len(body), size)]
        body = b"".join(
            b"%x%b\r\n%b\r\n" % (len(piece), extension if at == 3 else b"", piece) for at, piece in enumerate(pieces)
        )
        body += b"0\r\n" + dice.choice([b"", b"", b"X-Trailer: 1\r\n", b"T: x\r\n" * 50_000]) + b"\r\n"
    elif framing != "closed":
        headers.append(b"Content-Length: %d" % (len(body) + (0 if framing == "length" else dice.choice([-10, 10]))))
    interim = dice.choice([b""] * 9 + [b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * dice.choice([1, 5000])])
    version = dice.choice([b"HTTP/1.1 "] * 9 + [b"HTTP/1.0 "])
    whole = interim + version + status + b"\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + body
    if dice.random() < 0.25:
        whole = whole[: dice.randrange(len(whole) + 1)]
    if dice.random() < 0.1:
        at = dice.randrange(len(whole) + 1)
        whole = whole[:at] + dice.randbytes(4) + whole[at + 4 :]
    cuts = sorted(dice.randrange(len(whole) + 1) for _ in range(dice.choice([0, 1, 5, 20])))
    edges = [0, *cuts, len(whole)]
    return [whole[start:end] for start, end in itertools.pairwise(edges)], dice.random() < 0.05


class HostileProvider:
    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self._makers = ProcessPoolExecutor(1)  # making them must not delay the `plain` stream

    def close(self) -> None:
        self._makers.shutdown(cancel_futures=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
            body = await reader.readexactly(length)
            if head.startswith(b"GET /stats"):
                stats = json.dumps(self.requests).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(stats), stats)
                )
                await writer.drain()
                return
            model = str(json.loads(body)["model"])
            self.requests[model] += 1
            if model == "plain":
                await self._plain(writer)
                return
            pieces, hangs = await asyncio.get_running_loop().run_in_executor(
                self._makers, response_of, int(model.removeprefix("fuzz-"))
            )
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.002)
            if hangs:
                await reader.read()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has disconnected, or this server ends
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    @staticmethod
    async def _plain(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        number = 0
        while True:
            writer.write(b"data: " + _written(_chunk({"content": f" {number}"})) + b"\n\n")
            await writer.drain()
            number += 1
            await asyncio.sleep(PLAIN_SECONDS)


async def _serve() -> None:
    provider, ended = HostileProvider(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await ended.wait()
    server.close()
    provider.close()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve())
