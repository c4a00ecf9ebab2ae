"""Logging: one line per event on standard error, never a prompt, a token or a secret."""

from __future__ import annotations

import logging

from shared.errors import Unusable

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def set_up_logging(level: str) -> None:
    """Once per process, from its `__main__`. Raises Unusable for a level that there is not."""
    if level.lower() not in _LEVELS:
        raise Unusable(f"MIDSTREAM_LOG_LEVEL={level!r}: one of {', '.join(_LEVELS)} is wanted")
    logging.basicConfig(
        level=_LEVELS[level.lower()], format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )
    for noisy in ("httpx2", "httpcore2", "openai", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    receipts = logging.getLogger("midstream.receipt")  # lines for machines: JSON and nothing else
    bare = logging.StreamHandler()
    bare.setFormatter(logging.Formatter("%(message)s"))
    receipts.handlers, receipts.propagate = [bare], False
    receipts.setLevel(logging.INFO)
