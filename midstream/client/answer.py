"""From the messages of a response to the events of a stream: each once, in order, with the text as it stands. No I/O."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar

import orjson

from midstream.client.events import (
    Cancelled,
    Delta,
    Done,
    End,
    Failed,
    Gap,
    Live,
    OwnEvent,
    Restarted,
    Started,
    StreamError,
    StreamEvent,
    Token,
)
from midstream.client.text import GrowingText, TextSoFar
from shared.sse import Message

_PLACE = re.compile(r"(\d{1,16})-(\d{1,16})$", re.ASCII)
"""How an event id ends; `/stream` puts the stream's id before it."""
_CLASSES: dict[str, Callable[..., StreamEvent]] = {
    event.type: event for event in (Started, Restarted, Live, Gap, Done, Failed, Cancelled)
}
_DONE = "[DONE]"
"""The end of a stream in OpenAI's form, and of `/stream`."""
E = TypeVar("E", bound=StreamEvent)


class Answer:
    """The place in a stream, and the text up to it."""

    def __init__(self, after: str = "") -> None:
        self.cursor = after
        """The id of the last event that was handed out."""
        self._text = GrowingText()
        self._message_id = ""

    def connected(self) -> None:
        """Begins another connection: its messages have no id until one comes."""
        self._message_id = ""

    def text(self) -> TextSoFar:
        return self._text.now()

    def event(self, message: Message) -> StreamEvent | None:
        """Returns a message as an event; None if it was handed out before. Raises StreamError for one that cannot be read."""
        # A message without an id carries that of the message before it (WHATWG HTML, section 9.2.6).
        event_id = message.id if message.id != self._message_id else None
        self._message_id = message.id
        place, had = _place_of(event_id), _place_of(self.cursor)
        ends = _is_done(message) or message.event in ("done", "failed", "cancelled")
        if place and had and place <= had and not ends:
            return None
        self.cursor = event_id or self.cursor
        try:
            return self._read(message, event_id, place[1] if place else self._text.next_offset)
        except (KeyError, TypeError, AttributeError) as error:
            raise StreamError(
                f"an event {message.event!r} cannot be read ({error!r}): {message.data[:200]}", retryable=False
            ) from None

    def _read(self, message: Message, event_id: str | None, offset: int) -> StreamEvent:
        if _is_done(message):
            return Done(id=event_id, data=_DONE, so_far=self.text())
        try:
            data = orjson.loads(message.data)
        except orjson.JSONDecodeError:
            data = message.data
        if message.event == "message" and isinstance(data, dict):
            if isinstance(token := data.get("token"), str):
                self._text.add(offset, token)
                return Token(token, id=event_id, data=data, so_far=self.text())
            if isinstance(delta := data.get("delta"), dict):
                self._text.keep(offset - 1)
                content = None if data.get("index") else delta.get("content")
                if isinstance(content, str):
                    self._text.add(offset, content)
                return self._typed(Delta, data, event_id)
        kind = _CLASSES.get(message.event)
        if kind is None:
            return OwnEvent(message.event, id=event_id, data=data, so_far=self.text())
        if kind is Restarted:
            self._text.keep(data["base"])
        return self._typed(kind, data, event_id)

    def _typed(self, kind: Callable[..., E], data: dict[str, Any], event_id: str | None) -> E:
        return kind(**known_fields(kind, data), id=event_id, data=data, so_far=self.text())


def _is_done(message: Message) -> bool:
    return message.event == "message" and message.data == _DONE


def is_end(event: StreamEvent) -> bool:
    """Returns whether nothing comes after this event."""
    return isinstance(event, End)


def known_fields(kind: Any, data: dict[str, Any]) -> dict[str, Any]:
    """Returns the values that a dataclass of this kind takes: servers may send more."""
    return {name: data[name] for name in _names(kind) if name in data}


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(
        field.name for field in fields(kind) if field.name not in ("id", "data", "so_far") or not hasattr(kind, "type")
    )


def _place_of(event_id: str | None) -> tuple[int, int] | None:
    match = _PLACE.search(event_id or "")
    return (int(match[1]), int(match[2])) if match else None
