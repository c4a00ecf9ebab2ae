"""Replies that no Redis gives: those of a proxy, or of a server of another kind. Each becomes OddReply, which shows a part of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shared.errors import OddReply

ODD_SHAPES = (TypeError, ValueError, LookupError, AttributeError)
"""The exceptions that a reply of another shape causes; UnicodeDecodeError and JSONDecodeError are ValueErrors."""
_SHOWN_BYTES_MAX, _SHOWN_PARTS_MAX, _SHOWN_CHARACTERS_MAX = 60, 4, 240
"""Of a reply, and of its parts, in a message: enough to see what it is."""


@contextmanager
def reading(what: str, reply: Any) -> Iterator[None]:
    """A context in which a reply to `what` is read: what its shape raises there becomes OddReply."""
    try:
        yield
    except ODD_SHAPES:
        raise odd_reply(what, reply) from None


def texts_of(reply: Any) -> list[str]:
    """Returns the texts of a reply that is a list of them. Raises OddReply for any other."""
    with reading("a read of a list of texts", reply):
        return [text.decode() for text in reply]


def odd_reply(what: str, reply: Any) -> OddReply:
    """Returns the error for a reply to `what` that has another shape than it must have."""
    return OddReply(f"ODDREPLY {what} was answered by {shown(reply)}")


def shown(reply: Any) -> str:
    """Returns what somebody else wrote as a log line may show it: escaped, and not long."""
    if isinstance(reply, bytes):
        text = repr(reply[:_SHOWN_BYTES_MAX]) + "..." * (len(reply) > _SHOWN_BYTES_MAX)
    elif isinstance(reply, list | tuple):
        more = ", ..." * (len(reply) > _SHOWN_PARTS_MAX)
        text = f"[{', '.join(shown(part) for part in reply[:_SHOWN_PARTS_MAX])}{more}]"
    else:
        text = repr(reply)
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else text[:_SHOWN_CHARACTERS_MAX] + "..."
