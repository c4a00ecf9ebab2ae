"""Real parts that a machine may lack: without one a test is skipped at home, and fails in CI (`CI=true`)."""

from __future__ import annotations

import os

import pytest


def needs(part: str, present: object) -> None:
    """Go on if the part is present; else skip, or fail where everything must be there."""
    if present:
        return
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(f"{part} is missing, and in CI nothing may be")
    pytest.skip(f"{part} is missing")
