"""Server-Sent Events, encoded and decoded (WHATWG HTML, section 9.2). No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

KEEP_ALIVE = b":\n"
"""A comment without a blank line: with one, some parsers yield an empty event."""


def retry(milliseconds: int) -> bytes:
    """How long a client waits before it reconnects. It takes effect when its line is read, and stands in no event of its own."""
    return b"retry: %d\n" % milliseconds


class Message(NamedTuple):
    """One dispatched event."""

    id: str
    event: str
    data: str


class Decoder:
    """Bytes in, messages out; any split, LF, CR or CRLF. Holds at most one unfinished line and one unfinished event."""

    def __init__(self) -> None:
        self.last_id = ""
        """The id after which to reconnect: it counts once its event is complete, so that no cut event is passed over."""
        self._id = ""
        self.retry_milliseconds: int | None = None
        self._rest = b""
        self._event = ""
        self._data: list[str] = []
        self._first = True

    def feed(self, data: bytes) -> Iterator[Message]:
        data = self._rest + data
        if self._first and data:
            if len(data) < 3 and b"\xef\xbb\xbf".startswith(data):
                self._rest = data
                return
            data = data.removeprefix(b"\xef\xbb\xbf")
            self._first = False
        held_cr = data.endswith(b"\r")  # may be half of a CRLF
        lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n") if b"\r" in data else data.split(b"\n")
        if held_cr:
            lines = data[:-1].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
            self._rest = lines.pop() + b"\r"
        else:
            self._rest = lines.pop()
        for line in lines:
            message = self._line(line.decode("utf-8", "replace"))
            if message is not None:
                yield message

    def _line(self, line: str) -> Message | None:
        if not line:
            data, event = self._data, self._event
            self._data, self._event, self.last_id = [], "", self._id
            return Message(self.last_id, event or "message", "\n".join(data)) if data else None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit() and len(value) < 16:
            self.retry_milliseconds = int(value)
        return None
