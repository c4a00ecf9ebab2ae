"""`midstream tail`: follows a stream in the terminal, across any number of lost connections."""

from __future__ import annotations

import sys
from typing import Any

import orjson

from midstream.old_client import StreamError, follow
from shared.ids import is_stream_id
from shared.sse import Message


def tail(target: str, *, server: str, last_event_id: str, as_json: bool, give_up_seconds: float) -> int:
    """Returns 0 if the answer is complete, 1 if it failed, 3 if it was cancelled. Raises StreamError."""
    if is_stream_id(target):
        url = f"{server.rstrip('/')}/v1/streams/{target}/events"
    elif target.startswith(("http://", "https://")):
        url = target
    else:
        raise StreamError(f"{target!r} is neither a stream's id (36 characters) nor an http:// or https:// URL")
    tokens: list[str] = []

    def note(text: str) -> None:
        if not as_json:
            print(f"[{text}]", file=sys.stderr, flush=True)

    def on_cut(why: str, last: str) -> None:
        note(f"connection lost: {why}; resuming {f'after {last}' if last else 'from the beginning'}")

    def data_of(message: Message) -> dict[str, Any]:
        try:
            data = orjson.loads(message.data)
        except orjson.JSONDecodeError:
            data = None
        if not isinstance(data, dict):
            raise StreamError(f"{url} sent an event that Midstream does not send: {message.data[:80]!r}")
        return data

    for message in follow(url, last_event_id=last_event_id, give_up_seconds=give_up_seconds, on_cut=on_cut):
        if as_json:
            whole = message.data if message.data == "[DONE]" else data_of(message)
            sys.stdout.buffer.write(orjson.dumps({"id": message.id, "event": message.event, "data": whole}) + b"\n")
            sys.stdout.buffer.flush()
            if message.event in ("failed", "cancelled"):
                return 1 if message.event == "failed" else 3
            continue
        if message.data == "[DONE]":
            break
        data = data_of(message)
        if message.event == "message":
            tokens.append(data.get("token", ""))
            print(data.get("token", f"\n{message.data}\n"), end="", flush=True)
        elif message.event == "restarted":
            del tokens[data["base"] :]
            print(flush=True)
            note(f"restarted: {data['reason']}; {data['base']} tokens are kept")
            print("".join(tokens), end="", flush=True)
        elif message.event == "gap":
            note(f"the events from {data['requested']} up to {data['first_available']}, not included, are gone")
        elif message.event in ("failed", "cancelled"):
            print(flush=True)
            note(
                f"failed: {data['code']}: {data['message']}"
                if message.event == "failed"
                else f"cancelled by {data['by']}"
            )
            return 1 if message.event == "failed" else 3
        elif message.event == "done" and data["truncated"]:
            print(flush=True)
            note("the response was cut off at its length limit")
            return 0
    if not as_json:
        print(flush=True)
    return 0
