"""`midstream demo`: cuts one answer's connection twice, and proves that no token is lost or doubled."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

import httpx2
import orjson

from midstream.old_client import ENDS, StreamError, connect, explain
from midstream.processes import LocalMidstream, settings_for
from shared.errors import Unusable

_CUT_AFTER_TOKENS = (20, 45)
"""Of an answer that is that long; a shorter one is read a second time, and cut after a third and two thirds of it."""
_AWAY_SECONDS = 0.6
"""How long the reader stays disconnected after each cut, while generation goes on."""
_TOKENS = 100
"""Enough for two cuts, and generated in a few seconds."""
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
    end: str = ""
    ended: dict[str, Any] = field(default_factory=dict)


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
        except (StreamError, Unusable, httpx2.HTTPError) as error:
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
    created = httpx2.post(f"{url}/v1/streams", json=request)
    if created.status_code != 201:
        raise StreamError(explain(created))
    stream_id = created.json()["id"]
    events_url = f"{url}/v1/streams/{stream_id}/events"
    print(f"you: {prompt}\n")
    cuts: tuple[int, ...] = _CUT_AFTER_TOKENS
    received = _read_with_cuts(events_url, cuts, paint)
    tokens = len(received.ids)
    if received.end == "done" and 2 <= tokens <= cuts[-1]:
        cuts = tuple(sorted({max(1, tokens // 3), max(1, 2 * tokens // 3)}))
        print(
            paint("2", f"The answer has only {tokens} tokens. It is read once more, from its log, with other cuts:\n")
        )
        received = _read_with_cuts(events_url, cuts, paint)
    state = httpx2.get(f"{url}/v1/streams/{stream_id}", params={"wait": 5}).json()
    return _compare(received, cuts, state, paint)


def _read_with_cuts(events_url: str, cuts: tuple[int, ...], paint: _Paint) -> _Received:
    """Reads the answer to its end, over a new connection after each cut; `cuts`: after how many tokens."""
    received = _Received()
    for cut_after in (*cuts, None):
        _read(events_url, received, cut_after, paint)
        if received.end or cut_after is None:
            break
        last = received.ids[-1]
        print(paint("31", f"\n  ✂ connection cut after token {len(received.tokens)}"), flush=True)
        time.sleep(_AWAY_SECONDS)
        print(paint("32", f"  ↻ back again, Last-Event-ID: {last}"), flush=True)
    print("\n")
    return received


def _read(events_url: str, received: _Received, cut_after: int | None, paint: _Paint) -> None:
    with connect(events_url, received.ids[-1] if received.ids else "") as events:
        for message in events:
            data = orjson.loads(message.data)
            if message.event == "message":
                received.ids.append(message.id)
                received.tokens.append(data.get("token", ""))
                print(data.get("token", ""), end="", flush=True)
                if len(received.tokens) == cut_after:
                    return
            elif message.event == "started" and data["model"] == "simulated":
                print(paint("2", "(simulated: set OPENAI_BASE_URL or OPENAI_API_KEY for a real model)"))
            elif message.event == "restarted":
                del received.ids[data["base"] :], received.tokens[data["base"] :]
                print(paint("33", f"\n  ⟲ restarted ({data['reason']}): the first {data['base']} tokens are kept"))
            elif message.event in ENDS:
                received.end, received.ended = message.event, data


def _compare(received: _Received, cuts: tuple[int, ...], state: dict[str, Any], paint: _Paint) -> int:
    text, kept = "".join(received.tokens), state["text"]
    offsets = [int(event_id.rpartition("-")[2]) for event_id in received.ids]
    lost = sorted(set(range(1, state["tokens"] + 1)) - set(offsets))
    doubled = len(offsets) - len(set(offsets))
    if received.end == "failed":
        print(paint("31", f"failed: {received.ended['code']}: {received.ended['message']}"))
        return 1
    if len(offsets) <= cuts[-1]:
        print(paint("31", f"the answer had only {len(offsets)} tokens, too few to cut it; try another --prompt"))
        return 1
    if lost or doubled or text != kept or offsets != sorted(offsets):
        place = next((i for i, (a, b) in enumerate(zip(text, kept, strict=False)) if a != b), min(len(text), len(kept)))
        print(
            paint(
                "31",
                f"NOT WHOLE: tokens lost {lost[:20]}, doubled {doubled}; the text differs from character {place} on:",
            )
        )
        print(f"  read: {text[max(0, place - 30) : place + 30]!r}\n  kept: {kept[max(0, place - 30) : place + 30]!r}")
        return 1
    cut_off = (
        " The provider cut the answer off at its length limit, and said so." if received.ended.get("truncated") else ""
    )
    print(
        paint("32", f"✔ {len(offsets)} tokens over {len(cuts) + 1} connections: none lost, none doubled, ")
        + paint("32", f"and the text equals what the server kept.{cut_off}")
    )
    return 0
