"""Real parts that a machine may lack: without one a test is skipped at home, and fails in CI (`CI=true`)."""

from __future__ import annotations

import os

import pytest


def needs(part: str, present: object) -> None:
    """Continues if the part is present; else skips the test, or with `CI=true` fails it."""
    if present:
        return
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(f"{part} is missing, and in CI nothing may be")
    pytest.skip(f"{part} is missing")
