"""Server-Sent Events, encoded and decoded (WHATWG HTML, section 9.2). No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from shared.errors import MidstreamError

KEEP_ALIVE = b":\n"
"""A comment without a blank line: with one, some parsers yield an empty event."""


def retry(milliseconds: int) -> bytes:
    """Returns the line that says how long a client waits before it reconnects. It counts as soon as it is read, and belongs to no event."""
    return b"retry: %d\n" % milliseconds


EVENT_BYTES_MAX = 16 << 20
"""Far above the events of a gateway. A server that sends no line end must not fill its reader's memory."""


class EventTooLong(MidstreamError):
    """An event is longer than its reader can hold."""


class Message(NamedTuple):
    """One dispatched event."""

    id: str
    event: str
    data: str


class Decoder:
    """Bytes in, messages out; any split, LF, CR or CRLF. Holds at most one unfinished line and one unfinished event.

    `feed` raises EventTooLong where an event has more than `event_bytes_max`.
    """

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self.last_id = ""
        """The id after which to reconnect: it counts once its event is complete, so that no cut event is passed over."""
        self._id = ""
        self.retry_milliseconds: int | None = None
        self._event_bytes_max = event_bytes_max
        self._parts: list[bytes] = []
        """The unfinished line; joined once, when its end has come."""
        self._parts_bytes = 0
        self._event = ""
        self._data: list[str] = []
        self._data_bytes = 0
        self._first = True

    def feed(self, data: bytes) -> Iterator[Message]:
        """Takes bytes of the body, and yields the messages that they complete."""
        if self._first or b"\n" in data or b"\r" in data or self._after_cr():
            lines = self._lines(b"".join((*self._parts, data)))
        else:
            self._hold(data)
            lines = []
        for line in lines:
            message = self._line(line.decode("utf-8", "replace"))
            if message is not None:
                yield message
        if self._parts_bytes + self._data_bytes > self._event_bytes_max:
            raise EventTooLong(f"an event is longer than {self._event_bytes_max} bytes")

    def _lines(self, data: bytes) -> list[bytes]:
        """Returns the finished lines, and holds what comes after them."""
        self._parts, self._parts_bytes = [], 0
        if self._first and data:
            if len(data) < 3 and b"\xef\xbb\xbf".startswith(data):
                self._hold(data)
                return []
            data = data.removeprefix(b"\xef\xbb\xbf")
            self._first = False
        held_cr = data.endswith(b"\r")  # may be half of a CRLF
        if b"\r" in data:
            data = data.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = data.split(b"\n")
        self._hold(lines.pop() + b"\r" if held_cr else lines.pop())
        return lines

    def _hold(self, data: bytes) -> None:
        self._parts.append(data)
        self._parts_bytes += len(data)

    def _after_cr(self) -> bool:
        return bool(self._parts) and self._parts[-1].endswith(b"\r")

    def _line(self, line: str) -> Message | None:
        if not line:
            data, event = self._data, self._event
            self._data, self._event, self._data_bytes, self.last_id = [], "", 0, self._id
            return Message(self.last_id, event or "message", "\n".join(data)) if data else None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
            self._data_bytes += len(value) + 1
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit() and len(value) < 16:
            self.retry_milliseconds = int(value)
        return None
