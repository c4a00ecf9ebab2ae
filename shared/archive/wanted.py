"""Which streams a list is to have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which streams a list is to have. What is empty or None does not matter. Times are Unix seconds."""

    owner: str | None = None
    status: str = ""
    model: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    from_time: float | None = None
    to_time: float | None = None
    before: str = ""
    """Only streams whose id is smaller: created earlier."""
    with_deleted: bool = False
