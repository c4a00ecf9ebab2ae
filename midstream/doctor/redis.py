"""`midstream doctor --redis`: whether a Redis, a cluster or a primary behind Sentinels is as Midstream needs it, and what to change.

redis_observe (what is there) ──► redis_checks (what that means) ──► text or JSON, here
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from midstream.doctor.checks import Finding, Verdict
from midstream.doctor.redis_checks import CHECKS, judged
from midstream.doctor.redis_observe import observe
from midstream.doctor.report import MARKS, wrapped
from shared.grants import ROLES, Role
from shared.settings import Settings


async def examined_redis(url: str, *, role: Role | None, progress: Callable[[str], None]) -> RedisReport:
    """Looks at a Redis and judges it; `midstream.doctor.doctor_of_redis` says what the parameters mean. Raises Unusable."""
    began = time.monotonic()
    settings = Settings.from_environment(os.environ)
    settings = replace(settings, redis_url=url) if url else settings
    seen = await observe(settings, ROLES if role is None else (role,), progress)
    servers = [str(server.address) for server in seen.servers]
    return RedisReport(servers, judged(seen, settings), time.monotonic() - began)


@dataclass(frozen=True, slots=True)
class RedisReport:
    """The findings, in the order of CHECKS, and the servers that have keys."""

    servers: list[str]
    findings: list[Finding]
    took_seconds: float

    @property
    def faults(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.verdict is Verdict.FAULT]

    @property
    def advice(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.verdict is Verdict.ADVICE]

    @property
    def exit_code(self) -> int:
        return 1 if self.faults else 0

    def as_text(self) -> str:
        """Returns the report for people: a row for each check, then what to change."""
        width = max(map(len, CHECKS.values()))
        rows = [
            f"{CHECKS[finding.check].ljust(width)}  {MARKS[finding.verdict]} {finding.words}"
            for finding in self.findings
        ]
        changes = [
            wrapped(f"{MARKS[finding.verdict]} {finding.problem}  [{finding.check}]", "  ")
            for finding in (*self.faults, *self.advice)
        ]
        count = len(self.faults)
        end = f"{count} fault{'s' * (count > 1)} found." if count else "Midstream can use it."
        return "\n\n".join(["\n".join(rows), *changes, f"{end} ({self.took_seconds:.1f} s)"])

    def as_json(self) -> dict[str, Any]:
        """Returns the report for programs."""
        return {
            "ok": self.exit_code == 0,
            "exit_code": self.exit_code,
            "took_seconds": round(self.took_seconds, 1),
            "servers": self.servers,
            "checks": {
                finding.check: {"verdict": str(finding.verdict), "words": finding.words, **finding.figures}
                for finding in self.findings
            },
            "faults": [
                {"check": finding.check, "change": finding.problem, **finding.figures} for finding in self.faults
            ],
            "advice": [
                {"check": finding.check, "change": finding.problem, **finding.figures} for finding in self.advice
            ],
        }
