"""Reads chunks that are like an earlier one in all but their text, without parsing them anew.

A provider sends the same bytes with each token, around a text that changes:

    data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]}

Once a chunk has been parsed and found to be nothing but text, what stands before and behind its text is remembered. A packet of
such chunks then needs a comparison and a split instead of a JSON parser. It is exact: between the same bytes a text without
quotes, backslashes and control characters makes the same JSON with that text (RFC 8259, section 7).
"""

from __future__ import annotations

from typing import Any

import orjson

from shared.events import Item

_EVENT_BYTES_MAX = 4096
"""Of an event that is remembered; providers' chunks of a token have 150 to 600 bytes."""
_PAUSE_EVENTS = 16
"""So many events pass between two attempts to remember one, unless the one before was of use: some providers put a random
text into each chunk, and none is like another."""


class AlikeChunks:
    """Remembers one event of the stream: a text stands between its `head` and its `tail`."""

    __slots__ = ("_head", "_joint", "_pause", "_tail")

    def __init__(self) -> None:
        self._head = self._tail = b""
        self._joint = ""
        """What stands between the texts of two events."""
        self._pause = 0
        """How many events are still to pass before one is remembered."""

    def texts(self, data: bytes) -> list[Item] | None:
        """Returns the texts of whole events that are like the remembered one; None if they are not, or none is remembered."""
        head, tail = self._head, self._tail
        if not head or not data.startswith(head) or not data.endswith(tail):
            return None
        try:
            text = data[len(head) : -len(tail)].decode()
        except UnicodeDecodeError:
            return None
        if _is_plain(text):
            self._pause = 0
            return [text]
        texts = text.split(self._joint)
        if len(texts) > 1 and all(map(_is_plain, texts)):
            self._pause = 0
            return [*texts]
        return None

    def remember(self, event: bytes, text: str) -> None:
        """Remembers an event that was parsed as this text, if it is a whole one and has nothing else to say."""
        if self._pause:
            self._pause -= 1
            return
        if len(event) > _EVENT_BYTES_MAX or not _is_plain(text):
            return
        self._pause = _PAUSE_EVENTS
        head, found, tail = event.partition(f'"{text}"'.encode())
        if not found or not _is_one_event(head, tail):
            return
        head, tail = head + b'"', b'"' + tail
        # With another text in that place it must say that text, and be the same in all else.
        other_text = text + "."
        chunk, other = _parsed(event), _parsed(head + other_text.encode() + tail)
        if _text_of(chunk) != text or _text_of(other) != other_text:
            return
        chunk["choices"][0]["delta"]["content"] = other_text
        if chunk == other:
            self._head, self._tail = head, tail
            self._joint = (tail + head).decode()


def _is_plain(text: str) -> bool:
    """Whether a text stands for itself in JSON, and is not empty. (RFC 8259, section 7)"""
    return text.isprintable() and '"' not in text and "\\" not in text and text != ""


def _is_one_event(head: bytes, tail: bytes) -> bool:
    """Whether these bytes are one event of one line, with the blank line behind it."""
    if not head.startswith(b"data:") or b"\n" in head or b"\r" in head:
        return False
    line, ending = (tail[:-4], tail[-4:]) if tail.endswith(b"\r\n\r\n") else (tail[:-2], tail[-2:])
    return ending in (b"\n\n", b"\r\n\r\n") and b"\n" not in line and b"\r" not in line


def _parsed(event: bytes) -> Any:
    try:
        return orjson.loads(event[len(b"data:") :])
    except orjson.JSONDecodeError:
        return None


def _text_of(chunk: Any) -> str | None:
    """Returns the text of a chunk of one choice, the first, that has nothing to say but this text; else None."""
    match chunk:
        case {"choices": [{"delta": {"content": str(text), **others}} as choice]}:
            says_more = others or any(choice.get(name) for name in ("index", "logprobs", "finish_reason", "error"))
            return None if says_more or chunk.get("usage") or chunk.get("error") else text
    return None
