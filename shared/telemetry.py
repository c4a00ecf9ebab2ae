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

from shared.errors import Unusable

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_FORMATS = ("auto", "json", "text")

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""The HTTP request that this work is done for; its worker goes on under the same."""


def set_up_logging(level: str, log_format: str = "auto") -> None:
    """Once per process, from its `__main__`. Raises Unusable for a level or a format that there is not."""
    if level.lower() not in _LEVELS:
        raise Unusable(f"MIDSTREAM_LOG_LEVEL={level!r}: one of {', '.join(_LEVELS)} is wanted")
    if log_format not in _FORMATS:
        raise Unusable(f"MIDSTREAM_LOG_FORMAT={log_format!r}: one of {', '.join(_FORMATS)} is wanted")
    text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(TextLines() if text else JsonLines())
    logging.basicConfig(level=_LEVELS[level.lower()], handlers=[handler], force=True)
    for noisy in ("httpx2", "httpcore2", "openai", "asyncio", "websockets"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("midstream.receipt").setLevel(logging.INFO)  # whatever the level: it is what one is billed by


class TextLines(logging.Formatter):
    """For people: time, level, who, what."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")


class JsonLines(logging.Formatter):
    """For machines: one object per line. `extra={"about": {...}}` gives a line fields of its own, the first ones first."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = dict(getattr(record, "about", {}))
        line |= {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if asked_by := line.get("request_id") or request_id.get():
            line["request_id"] = asked_by
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def outcome(event: str, stream_id: str, **more: Any) -> dict[str, Any]:
    """The `extra` of a line that tells how something ended."""
    return {"about": {"event": event, "stream": stream_id, **more}}
