"""Parses the event stream of a provider: bytes in, the data of its events out. No I/O.

The rules are those of WHATWG HTML, section 9.2.6: a byte order mark at the beginning; lines that end in LF, CR or CRLF; several
`data` lines of one event are joined. Three more things are tolerated, since providers do them:

- events of one line each without the blank line between them: the data of a line that is complete by itself is handed over at
  once, which also saves waiting for the blank line. (What follows a complete JSON value would not make another JSON value of it.)
- a last line without its line end, and a last event without its blank line: the end of the body ends both;
- lines that are no field of an event: they are handed over as they are, since they may be an error, or an answer that is no stream.

An event's type counts if it stands before the data, where all providers have it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from producer.provider import Unavailable
from shared.events import Item

LINE_BYTES_MAX = 8 << 20
"""Of a line, and of an event: it may carry an image or a long tool call; without any bound it could fill the worker's memory."""
_HELD_LINE_BYTES = 64
"""What a held line takes in memory beside its bytes."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventStream(ABC):
    """Bytes in any pieces become calls of `take_data` and `take_line`; holds at most one unfinished line and one unfinished event."""

    __slots__ = (
        "_after_cr",
        "_beginning",
        "_begun",
        "_held",
        "_held_bytes",
        "_is_special",
        "_rest",
        "_type",
        "_within",
    )

    def __init__(self) -> None:
        self._is_special = True
        """Whether the next byte may be special: the first ones, which may be a byte order mark, and a LF behind a CR."""
        self._begun = False
        self._beginning = b""
        """The first bytes, while they may be the beginning of a byte order mark."""
        self._rest = bytearray()
        """The unfinished line."""
        self._after_cr = False
        """Whether the last byte was a CR: a LF that follows belongs to it."""
        self._within = False
        """Whether the unfinished event has a type or held lines."""
        self._type = b""
        self._held: list[bytes] = []
        """The data lines of the unfinished event, if the first of them was not complete."""
        self._held_bytes = 0

    @abstractmethod
    def take_data(self, data: bytes, items: list[Item], event_type: bytes = b"", *, is_whole: bool = False) -> bool:
        """Takes an event's data and appends to `items` what it says. Returns False, having done nothing, if it is not complete:
        then the lines that follow are joined to it. `is_whole`: there are no more of them. The data may have white space around it."""

    @abstractmethod
    def take_line(self, line: bytes, items: list[Item]) -> None:
        """Takes a line that is no field of an event and no comment."""

    @abstractmethod
    def found_mark(self) -> None:
        """Takes note of a byte order mark, which was passed over."""

    def parse(self, data: bytes, items: list[Item]) -> None:
        """Parses the next bytes. Raises Unavailable for a line or an event that is too long, and what `take_data` raises."""
        rest = self._rest
        if self._is_special or data.find(b"\r") >= 0:  # `find` is twice as fast as `in`
            data = self._regular(data)
        lines = data.split(b"\n")
        if rest and len(lines) > 1:
            lines[0] = bytes(rest) + lines[0]
            rest.clear()
        rest += lines.pop()
        for line in lines:
            if not line:
                if self._within:
                    self._end_event(items)
            elif line.startswith(b"data:") and not self._within:
                if not self.take_data(line[5:], items):
                    self._hold(line[5:])
            else:
                self._take_other(line, items)
        if len(rest) > LINE_BYTES_MAX:
            raise Unavailable(f"the provider sent a line of more than {LINE_BYTES_MAX} bytes")

    def parse_end(self, items: list[Item]) -> None:
        """Parses what the end of the body completes: the last line and the last event. Raises what `parse` raises."""
        line = self._beginning + bytes(self._rest)
        self._beginning = b""
        self._rest.clear()
        if line:
            self._take_other(line, items)
        self._end_event(items)

    @property
    def is_between_events(self) -> bool:
        """Whether the next byte begins an event of its own."""
        return not (self._rest or self._within or self._is_special)

    @property
    def has_unfinished_line(self) -> bool:
        """Whether the last line has not ended."""
        return bool(self._rest or self._beginning)

    def _regular(self, data: bytes) -> bytes:
        """Returns the bytes without a byte order mark, and with LF for each line end."""
        if not self._begun:
            data = self._without_mark(data)
        if data:
            if self._after_cr and data.startswith(b"\n"):
                data = data[1:]
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n")
            if data.find(b"\r") >= 0:
                data = data.replace(b"\r", b"\n")
        self._is_special = self._after_cr or not self._begun
        return data

    def _without_mark(self, data: bytes) -> bytes:
        """Returns the first bytes without a byte order mark; nothing while they may be a part of one."""
        data = self._beginning + data
        if len(data) < len(_BYTE_ORDER_MARK) and _BYTE_ORDER_MARK.startswith(data):
            self._beginning = data
            return b""
        self._begun, self._beginning = True, b""
        if data.startswith(_BYTE_ORDER_MARK):
            self.found_mark()
        return data.removeprefix(_BYTE_ORDER_MARK)

    def _take_other(self, line: bytes, items: list[Item]) -> None:
        """Takes any line but a blank one."""
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            if (
                self._held and value.strip() == b"[DONE]"
            ):  # no JSON goes on like this: the event before it has no blank line
                self._end_event(items)
            if self._held or not self.take_data(value, items, self._type):
                self._hold(value)
        elif name == b"event":
            if self._held:
                self._end_event(items)
            self._type, self._within = value, True
        elif name and name not in (b"id", b"retry"):
            self.take_line(line, items)

    def _hold(self, line: bytes) -> None:
        self._held.append(line)
        self._held_bytes += len(line) + _HELD_LINE_BYTES
        self._within = True
        if self._held_bytes > LINE_BYTES_MAX:
            raise Unavailable(f"the provider sent an event of more than {LINE_BYTES_MAX} bytes")

    def _end_event(self, items: list[Item]) -> None:
        data, event_type = b"\n".join(self._held), self._type
        is_held = bool(self._held)
        self._within, self._type, self._held, self._held_bytes = False, b"", [], 0
        if is_held:
            self.take_data(data, items, event_type, is_whole=True)
