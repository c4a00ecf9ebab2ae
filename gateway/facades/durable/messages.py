"""From the body of an append to messages. In JSON mode an array is several messages (section 7.1), and all pass unchanged."""

from __future__ import annotations

import re
from typing import Any

import orjson

from gateway.http.problems import Problem
from shared import events
from shared.written_log import NO_MESSAGES, Messages

MESSAGES_MAX = 1000
"""Messages of one append. Each costs a reader's gateway some 150 bytes beside its own, until 256 newer ones have come."""
_WHITESPACE = b" \t\r\n"
_MARKS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{},]')
"""What tells where an element of an array ends, in valid JSON: texts, which are passed over, brackets, braces and commas."""
_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")


def bytes_message(body: bytes) -> Messages:
    """Returns a body as one message; none if it is empty."""
    return Messages(events.RAW, body, 1) if body else NO_MESSAGES


def json_messages(body: bytes) -> Messages:
    """Returns the messages of a JSON body; none for an empty array. Raises Problem 400, 413."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem(400, f"the body is not JSON in UTF-8: {error}") from None
    listed = _elements(body, parsed) if isinstance(parsed, list) else [body.strip(_WHITESPACE)]
    if not listed:
        return NO_MESSAGES
    if len(listed) > MESSAGES_MAX:
        raise Problem(413, f"the array has {len(listed)} messages, and {MESSAGES_MAX} are the most in one append")
    # Outside of texts line ends are only space, and inside they are escaped: so each message becomes one line.
    return Messages(events.JSON, b"\n".join(message.translate(_LINE_ENDS) for message in listed), len(listed))


def _elements(body: bytes, parsed: list[Any]) -> list[bytes]:
    """Returns the elements of an array as they are written: parsed and written anew, 1.0e2 would become 100.0."""
    if not parsed:
        return []
    try:
        written = [orjson.dumps(element) for element in parsed]
        if b"[%b]" % b",".join(written) == body:  # as most programs write it
            return written
    except TypeError:  # nested deeper than it can be written
        pass
    return _cut(body.strip(_WHITESPACE))


def _cut(array: bytes) -> list[bytes]:
    listed, level, start = [], 0, 1
    for mark in _MARKS.finditer(array):
        character = array[mark.start()]
        if character in b"[{":
            level += 1
        elif character in b"]}":
            level -= 1
        if (character in b"," and level == 1) or level == 0:
            listed.append(array[start : mark.start()].strip(_WHITESPACE))
            start = mark.end()
    return listed
