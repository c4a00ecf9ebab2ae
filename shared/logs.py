"""Logging: one line per event on standard error, as JSON for machines or as text for people.

What happened, to which stream, asked for by which request. Never a prompt, a text or a token, unless the owner asks for
them (MIDSTREAM_LOG_TEXTS), and never a secret.
"""

from __future__ import annotations

import contextvars
import logging
import sys
from datetime import UTC, datetime
from typing import Any

import orjson

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""The HTTP request that this work is done for; its worker goes on under the same."""


def set_up_logging(level: str, log_format: str = "auto") -> None:
    """Once per process, from its `__main__`, with a level and a format that `shared.settings` has checked."""
    text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(TextLines() if text else JsonLines())
    logging.basicConfig(level=_LEVELS[level], handlers=[handler], force=True)
    for noisy in ("httpx2", "httpcore2", "openai", "asyncio", "websockets"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("midstream.receipt").setLevel(logging.INFO)  # whatever the level: it is what one is billed by


class TextLines(logging.Formatter):
    """For people: time, level, who, what. Only a line that we write begins at the margin: what follows it is indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        record.message = _escaped(_cut(record.message.rstrip()))
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return _indented(super().formatStack(stack_info))


class JsonLines(logging.Formatter):
    """For machines: one object per line. `extra={"about": {...}}` gives a line fields of its own, the first ones first."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            name: _plain(value, name in _TEXTS) for name, value in getattr(record, "about", {}).items()
        }
        line |= {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _plain(record.getMessage()),
        }
        if asked_by := line.get("request_id") or request_id.get():
            line["request_id"] = asked_by
        if record.exc_info:
            line["exception"] = _utf8(_end_of(self.formatException(record.exc_info)))
        encoded = orjson.dumps(line).decode()
        if len(encoded) > _LINE_CHARACTERS_MAX and _TEXTS.isdisjoint(line):
            line = {name: value for name, value in line.items() if not isinstance(value, dict | list)}
            encoded = orjson.dumps({**line, "left_out_of_characters": len(encoded)}).decode()
        return encoded if encoded.isascii() else encoded.translate(_JSON_ESCAPES)


# --- what comes from outside: prompts' metadata, a provider's words, keys in Redis, the text of an exception

_CHARACTERS_MAX = 2_000
"""Of each text in a line; what a person reads of it."""
_LINE_CHARACTERS_MAX = 512 << 10
"""Of a line in all: a receipt of 1,000 connections has 200,000. What is longer keeps what is one value each."""
_TRACE_CHARACTERS_MAX = 16_000
"""Of a trace its end, where the reason stands; Python shortens recursion, but an exception may hold any text."""
_ITEMS_MAX, _DEPTH_MAX = 1_000, 6
"""Of each list and object; a receipt names up to 1,000 connections."""
_TEXTS = frozenset({"messages", "text"})
"""What is on the log only where its owner asks for all of it (MIDSTREAM_LOG_TEXTS)."""

# Controls, among them the escapes that move a terminal's cursor; line ends as Unicode has them; what turns the direction of text.
_UNSEEN = [
    *range(0x20),
    *range(0x7F, 0xA0),
    0x61C,
    *range(0x200B, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2066, 0x206A),
    0xFEFF,
]
_ESCAPES = {one: f"\\x{one:02x}" if one < 0x100 else f"\\u{one:04x}" for one in _UNSEEN} | {
    10: "\\n",
    13: "\\r",
    9: "\\t",
}
_TRACE_ESCAPES = {one: escape for one, escape in _ESCAPES.items() if one != 10}
_JSON_ESCAPES = {one: f"\\u{one:04x}" for one in _UNSEEN if one >= 0x7F}


def _utf8(text: str) -> str:
    """Without the half surrogate pairs that cannot be written."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _cut(text: str) -> str:
    if len(text) <= _CHARACTERS_MAX:
        return text
    return f"{text[:_CHARACTERS_MAX]}... ({len(text)} characters)"


def _end_of(trace: str) -> str:
    return trace if len(trace) <= _TRACE_CHARACTERS_MAX else "... " + trace[-_TRACE_CHARACTERS_MAX:]


def _escaped(text: str) -> str:
    """On one line, with all that is not seen written out."""
    return text if text.isascii() and text.isprintable() else _utf8(text).translate(_ESCAPES)


def _indented(trace: str) -> str:
    escaped = _utf8(_end_of(trace)).translate(_TRACE_ESCAPES)
    return "\n".join("    " + line for line in escaped.split("\n"))


def _plain(value: Any, whole: bool = False, depth: int = 0) -> Any:
    """The same as JSON can have it, and no longer than a line may be."""
    if isinstance(value, str):
        return _utf8(value if whole else _cut(value))
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 64 else _cut(f"{value:#x}")
    if depth < (_DEPTH_MAX if not whole else 100):
        if isinstance(value, dict):
            items = list(value.items())[: None if whole else _ITEMS_MAX]
            return {_plain(str(name)): _plain(item, whole, depth + 1) for name, item in items}
        if isinstance(value, list | tuple):
            return [_plain(item, whole, depth + 1) for item in value[: None if whole else _ITEMS_MAX]]
    try:
        return _plain(str(value), whole)
    except (RecursionError, ValueError):  # nested too deeply for that, or with a number of thousands of digits
        return f"a {type(value).__name__} that cannot be shown"


def outcome(event: str, stream_id: str, **more: Any) -> dict[str, Any]:
    """The `extra` of a line about one stream: what happened, and its fields."""
    return {"about": {"event": event, "stream": stream_id, **more}}
