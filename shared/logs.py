"""Logging: one line per event on standard error, as JSON for machines or as text for people.

A line says what happened, to which stream, and for which request. It never has a secret, and has a prompt, a text or a token
only if MIDSTREAM_LOG_TEXTS is set.
"""

from __future__ import annotations

import contextvars
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

import orjson

AUDIT = "midstream.audit"
"""The logger of audit lines: who has changed what others may do, ended or removed an answer, or was not let in."""
_PLAIN_VALUE = re.compile(r"[\w.:/@+-]+", re.ASCII)
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""The id of the HTTP request that the present task works for; the worker that answers it uses the same id."""


def set_up_logging(level: str, log_format: str = "auto") -> None:
    """Sets logging up; called once per process, from its `__main__`. `shared.settings` has checked level and format."""
    text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(TextLines() if text else JsonLines())
    logging.basicConfig(level=_LEVELS[level], handlers=[handler], force=True)
    for noisy in ("httpx2", "httpcore2", "openai", "asyncio", "websockets", "alembic", "aiosqlite", "sqlalchemy"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for logger_name in ("midstream.receipt", AUDIT):  # at every level: they may be used for billing, and as evidence
        logging.getLogger(logger_name).setLevel(logging.INFO)


class TextLines(logging.Formatter):
    """Lines for people: time, level, logger, message. Tracebacks are indented, so only a log line begins at the left margin."""

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
    """Lines for machines: one JSON object each. The fields of `extra={"about": {...}}` come first in it."""

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
        if this_request := line.get("request_id") or request_id.get():
            line["request_id"] = this_request
        if record.exc_info:
            line["exception"] = _utf8(_end_of(self.formatException(record.exc_info)))
        encoded = orjson.dumps(line).decode()
        if len(encoded) > _LINE_CHARACTERS_MAX and _TEXTS.isdisjoint(line):
            line = {name: value for name, value in line.items() if not isinstance(value, dict | list)}
            encoded = orjson.dumps({**line, "left_out_of_characters": len(encoded)}).decode()
        return encoded if encoded.isascii() else encoded.translate(_JSON_ESCAPES)


# --- limits and escapes for texts of others: metadata, provider messages, keys in Redis, the text of an exception

_CHARACTERS_MAX = 2_000
"""The most characters of each text in a line; nobody reads more."""
_LINE_CHARACTERS_MAX = 512 << 10
"""The most characters of a line: a receipt of 1,000 connections has 200,000. A longer line loses its lists and objects."""
_TRACE_CHARACTERS_MAX = 16_000
"""The most characters of a traceback. Its end is kept, where the reason is: an exception's text may have any length."""
_ITEMS_MAX, _DEPTH_MAX = 1_000, 6
"""The most items of each list and object, and the deepest nesting; a receipt names up to 1,000 connections."""
_TEXTS = frozenset({"messages", "text"})
"""Fields that are logged only with MIDSTREAM_LOG_TEXTS, and then without limits."""

# Control characters (escape sequences move a terminal's cursor), Unicode's line ends, and characters that change the direction of text.
_INVISIBLE = [
    *range(0x20),
    *range(0x7F, 0xA0),
    0x61C,
    *range(0x200B, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2066, 0x206A),
    0xFEFF,
]
_ESCAPES = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _INVISIBLE} | {
    10: "\\n",
    13: "\\r",
    9: "\\t",
}
_TRACE_ESCAPES = {code: escape for code, escape in _ESCAPES.items() if code != 10}
_JSON_ESCAPES = {code: f"\\u{code:04x}" for code in _INVISIBLE if code >= 0x7F}


def _utf8(text: str) -> str:
    """Returns the text with lone surrogates escaped, which UTF-8 cannot encode."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _cut(text: str) -> str:
    if len(text) <= _CHARACTERS_MAX:
        return text
    return f"{text[:_CHARACTERS_MAX]}... ({len(text)} characters)"


def _end_of(trace: str) -> str:
    return trace if len(trace) <= _TRACE_CHARACTERS_MAX else "... " + trace[-_TRACE_CHARACTERS_MAX:]


def _escaped(text: str) -> str:
    """Returns the text on one line, with invisible characters escaped."""
    return text if text.isascii() and text.isprintable() else _utf8(text).translate(_ESCAPES)


def _indented(trace: str) -> str:
    escaped = _utf8(_end_of(trace)).translate(_TRACE_ESCAPES)
    return "\n".join("    " + line for line in escaped.split("\n"))


def _plain(value: Any, whole: bool = False, depth: int = 0) -> Any:
    """Returns the value as JSON can hold it, within the limits above; `whole`: without those on length and items."""
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
    except (RecursionError, ValueError):  # nested too deeply, or a number with thousands of digits
        return f"a {type(value).__name__} that cannot be shown"


def outcome(event: str, stream_id: str, **more: Any) -> dict[str, Any]:
    """Returns the `extra` of a line about one stream: what happened, and its fields."""
    return {"about": {"event": event, "stream": stream_id, **more}}


def audit_line(event: str, **fields: Any) -> None:
    """Logs what was done, by whom and to what: fields that are None are left out. `fields` have no token and no text of a stream."""
    fields = {name: value for name, value in fields.items() if value is not None}
    message = " ".join((event, *(f"{name}={_in_message(value)}" for name, value in fields.items())))
    logging.getLogger(AUDIT).info(message, extra={"about": {"event": event, **fields}})


def _in_message(value: Any) -> str:
    """Returns a value as it stands in a line for people: in quotes where it could be taken for another field."""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if _PLAIN_VALUE.fullmatch(text) else orjson.dumps(_utf8(text)).decode()
