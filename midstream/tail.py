"""`midstream tail`: follows a stream in the terminal, across any number of lost connections."""

from __future__ import annotations

import sys
from urllib.parse import urlsplit

import orjson

from midstream.client import (
    Cancelled,
    Client,
    Delta,
    Done,
    Failed,
    Gap,
    Lost,
    OwnEvent,
    Restarted,
    StreamError,
    StreamEvent,
    Token,
)
from midstream.gateway_answers import authorization
from shared.ids import is_stream_id

_FAILED, _CANCELLED = 1, 3


def tail(target: str, *, server: str, last_event_id: str, as_json: bool, give_up_seconds: float) -> int:
    """Returns 0 if the answer is complete, 1 if it failed, 3 if it was cancelled. Raises StreamError."""
    if target.startswith(("http://", "https://")):
        server = "{0.scheme}://{0.netloc}".format(urlsplit(target))
    elif not is_stream_id(target):
        raise StreamError(f"{target!r} is neither a stream's id (36 characters) nor an http:// or https:// URL")
    exit_code, last_id = 0, last_event_id
    with Client(server, headers=authorization(), give_up_seconds=give_up_seconds) as client:
        for event in client.follow(target, after=last_event_id):
            last_id = event.id or last_id
            if isinstance(event, Failed):
                exit_code = _FAILED
            elif isinstance(event, Cancelled):
                exit_code = _CANCELLED
            if not as_json:
                _show(event, last_id)
            elif not isinstance(event, Lost):
                line = {"id": event.id, "event": _name_of(event), "data": event.data}
                sys.stdout.buffer.write(orjson.dumps(line) + b"\n")
                sys.stdout.buffer.flush()
    if not as_json and not exit_code:
        print(flush=True)
    return exit_code


def _show(event: StreamEvent, last_id: str) -> None:
    match event:
        case Token(token):
            print(token, end="", flush=True)
        case Delta() | OwnEvent(name="message"):
            print(f"\n{orjson.dumps(event.data).decode()}\n", end="", flush=True)
        case OwnEvent(name="accepted"):
            pass  # with it `/stream` says which stream it has created
        case OwnEvent(name):
            print(flush=True)
            _note(f"{name}: {orjson.dumps(event.data).decode()}")
        case Restarted(base=base, reason=reason):
            print(flush=True)
            _note(f"restarted: {reason}; {base} tokens are kept")
            print(event.text, end="", flush=True)
        case Gap(requested, first_available):
            _note(f"the events from {requested} up to {first_available}, not included, are gone")
        case Lost(error):
            place = f"after {last_id}" if last_id else "from the beginning"
            _note(f"connection lost: {error}; resuming {place}")
        case Failed(code, message):
            print(flush=True)
            _note(f"failed: {code}: {message}")
        case Cancelled(by):
            print(flush=True)
            _note(f"cancelled by {by}")
        case Done(truncated=True):
            print(flush=True)
            _note("the response was cut off at its length limit")


def _note(text: str) -> None:
    print(f"[{text}]", file=sys.stderr, flush=True)


def _name_of(event: StreamEvent) -> str:
    """Returns the event's name as it was sent; `message` for one without a name."""
    if isinstance(event, OwnEvent):
        return event.name
    return "message" if isinstance(event, Token | Delta) or event.data == "[DONE]" else event.type
