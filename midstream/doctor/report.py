"""Names the hop that causes each fault, from the findings at all addresses; as text and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from midstream.doctor.checks import CHECKS, Finding, Verdict
from midstream.doctor.examine import Examined
from midstream.doctor.kinds import NAMES, changes, kind_of

MARKS = {Verdict.OK: "✓", Verdict.FAULT: "✗", Verdict.ADVICE: "!", Verdict.UNKNOWN: "–"}
_CELL_CHARACTERS_MAX, _WIDTH = 30, 100
"""Of a cell in the table, so that three addresses fit beside each other, and of a line of text."""


@dataclass(frozen=True, slots=True)
class Hop:
    """One address, and the proxy that it adds to the path."""

    examined: Examined
    kind: str
    evidence: str

    @property
    def label(self) -> str:
        return self.examined.address.label


@dataclass(frozen=True, slots=True)
class Complaint:
    """A check that failed, and the first address at which it did: the hop that causes it."""

    finding: Finding
    hop: Hop
    before: Hop | None
    """The address before `hop`, where the check passed; None for the first address, or if the one before was not tested."""
    also_at: list[str]

    @property
    def culprit(self) -> str:
        hop, kind = self.hop, NAMES.get(self.hop.kind, "")
        if self.before is not None:
            return f"{kind} at {hop.label}" if kind and kind.lower() not in hop.label.lower() else hop.label
        return f"{kind} on the way to {hop.label}" if kind else f"The way to {hop.label}"


@dataclass(frozen=True, slots=True)
class Report:
    """The result for all addresses."""

    hops: list[Hop]
    faults: list[Complaint]
    advice: list[Complaint]

    @property
    def unreachable(self) -> list[Hop]:
        return [hop for hop in self.hops if hop.examined.unreachable]

    @property
    def exit_code(self) -> int:
        """Returns 2 rather than 1: an address that was not tested may be at fault too."""
        if self.unreachable:
            return 2
        return 1 if self.faults else 0


def report_of(examined: Sequence[Examined]) -> Report:
    """Builds the report. Addresses go from the gateway outwards, the one that readers use last."""
    hops: list[Hop] = []
    for result in examined:
        before = hops[-1].examined.traces if hops else []
        kind, evidence = kind_of(result.address.name, result.traces, before)
        hops.append(Hop(result, kind, evidence))
    complaints: dict[Verdict, list[Complaint]] = {Verdict.FAULT: [], Verdict.ADVICE: []}
    reached = [hop for hop in hops if not hop.examined.unreachable]
    for check in CHECKS:
        for verdict, listed in complaints.items():
            showing = [hop for hop in reached if _verdict(hop, check) is verdict]
            if showing:
                index = reached.index(showing[0])
                before_it = reached[index - 1] if index else None
                if before_it is not None and _verdict(before_it, check) in (None, Verdict.UNKNOWN):
                    before_it = None
                also = [hop.label for hop in showing[1:]]
                listed.append(Complaint(showing[0].examined.findings[check], showing[0], before_it, also))
    return Report(hops, complaints[Verdict.FAULT], complaints[Verdict.ADVICE])


def _verdict(hop: Hop, check: str) -> Verdict | None:
    finding = hop.examined.findings.get(check)
    return None if finding is None else finding.verdict


def as_text(report: Report, took_seconds: float) -> str:
    """Returns the report for people: a table of all checks at all addresses, then what is wrong and what to change."""
    parts = [_table(report)]
    for hop in report.unreachable:
        parts.append(wrapped(f"✗ {hop.examined.address.url} {hop.examined.unreachable}", "  "))
    for complaint in report.faults:
        parts.append(_complaint("✗", complaint))
    for complaint in report.advice:
        parts.append(_complaint("!", complaint))
    faults, reached = len(report.faults), len(report.hops) - len(report.unreachable)
    if report.unreachable:
        end = f"{len(report.unreachable)} of {len(report.hops)} addresses could not be tested"
        end += f"; {faults} {'fault' if faults == 1 else 'faults'} at the others." if reached else "."
    elif faults:
        end = f"{faults} {'fault' if faults == 1 else 'faults'} found."
    else:
        end = "SSE streams as it should."
    parts.append(f"{end} ({took_seconds:.0f} s)")
    return "\n\n".join(parts)


def _table(report: Report) -> str:
    rows = [["", *(hop.label for hop in report.hops)]]
    if any(hop.examined.address.name for hop in report.hops):
        rows.append(["", *(hop.examined.address.place if hop.examined.address.name else "" for hop in report.hops)])
    kinds = [NAMES.get(hop.kind, "") for hop in report.hops]
    if any(kinds):
        rows.append(["what it is", *(kind or "–" for kind in kinds)])
    for check, title in CHECKS.items():
        cells = []
        for hop in report.hops:
            finding = hop.examined.findings.get(check)
            cells.append("" if finding is None else f"{MARKS[finding.verdict]} {finding.words}")
        if any(cells):
            rows.append([title, *cells])
    rows = [[_cut(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _cut(cell: str) -> str:
    return cell if len(cell) <= _CELL_CHARACTERS_MAX + 2 else f"{cell[: _CELL_CHARACTERS_MAX + 1]}…"


def _complaint(mark: str, complaint: Complaint) -> str:
    finding, hop = complaint.finding, complaint.hop
    where = f" At {complaint.before.label}, before it, all is well." if complaint.before else ""
    evidence = f" ({hop.evidence})" if hop.kind and hop.evidence and hop.evidence != "as it was named" else ""
    lines = [wrapped(f"{mark} {complaint.culprit} {finding.problem}.{where}{evidence}  [{finding.check}]", "  ")]
    for change in changes(finding.check, hop.kind):
        lines.append(f"      {change}")
    return "\n".join(lines)


def wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def as_json(report: Report, took_seconds: float) -> dict[str, Any]:
    """Returns the report for programs."""
    return {
        "ok": report.exit_code == 0,
        "exit_code": report.exit_code,
        "took_seconds": round(took_seconds, 1),
        "addresses": [_address(hop) for hop in report.hops],
        "faults": [_complaint_json(complaint) for complaint in report.faults],
        "advice": [_complaint_json(complaint) for complaint in report.advice],
    }


def _address(hop: Hop) -> dict[str, Any]:
    examined = hop.examined
    return {
        "url": examined.address.url,
        "name": examined.address.name or None,
        "kind": hop.kind or None,
        "evidence": hop.evidence or None,
        "unreachable": examined.unreachable or None,
        "gateway_version": examined.gateway_version or None,
        "checks": {
            check: {"verdict": str(finding.verdict), "words": finding.words, **finding.figures}
            for check in CHECKS
            if (finding := examined.findings.get(check)) is not None
        },
    }


def _complaint_json(complaint: Complaint) -> dict[str, Any]:
    finding, hop = complaint.finding, complaint.hop
    return {
        "check": finding.check,
        "at": hop.label,
        "url": hop.examined.address.url,
        "kind": hop.kind or None,
        "well_before_at": complaint.before.label if complaint.before else None,
        "also_at": complaint.also_at,
        "problem": finding.problem,
        "change": changes(finding.check, hop.kind),
        **finding.figures,
    }
