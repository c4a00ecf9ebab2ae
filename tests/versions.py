"""Runs all tests of what is stored in Redis against each kind of server, in each of its forms, and prints a table of the results:

    python -m tests.versions [PATH]

PATH: the program of another server, in place of NEWEST_REDIS_SERVER. Exit code 1 if a test failed, or nothing ran in a cell.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from tests.support.redis_server import KINDS, binary_of, version_of

_TESTS = ("tests/contract", "tests/e2e/test_versions.py")
_FORMS = {"": "one server", "cluster": "a cluster of three", "sentinel": "behind Sentinels"}
Cell = tuple[str, str]


def cell_of(test: str) -> Cell | None:
    """Returns the kind of server and the form that a test's name says; None for a test that has neither."""
    _, bracket, parameters = test.partition("[")
    words = parameters.rstrip("]").replace("-", " ").split()
    for kind in sorted(KINDS, key=len, reverse=True):
        length = len(kind.split())
        if bracket and words[:length] == kind.split() and words[length : length + 1] != ["through"]:
            form = words[length] if len(words) > length else ""
            return kind, form if form in _FORMS else ""
    return None


def counts_of(report: Path) -> dict[Cell, Counter[str]]:
    """Returns how many tests of each cell passed and failed, from a report in JUnit's format."""
    counts: dict[Cell, Counter[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        cell = cell_of(case.get("name", ""))
        outcomes = {child.tag for child in case}
        if cell is not None and "skipped" not in outcomes:
            outcome = "failed" if outcomes & {"failure", "error"} else "passed"
            counts.setdefault(cell, Counter())[outcome] += 1
    return counts


def main() -> int:
    if len(sys.argv) > 1:
        os.environ["NEWEST_REDIS_SERVER"] = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        subprocess.run([sys.executable, "-m", "pytest", "-q", *_TESTS, f"--junit-xml={report}"], check=False)
        counts = counts_of(report)
    print(f"\n| server, on {datetime.now(UTC):%Y-%m-%d} | {' | '.join(_FORMS.values())} |\n|---|{'---|' * len(_FORMS)}")
    complete = True
    for kind in KINDS:
        binary = binary_of(kind)
        if binary is not None:
            cells = [counts.get((kind, form), Counter()) for form in _FORMS]
            complete = complete and all(cell["passed"] and not cell["failed"] for cell in cells)
            shown = [", ".join(f"{number} {outcome}" for outcome, number in cell.items()) or "–" for cell in cells]
            print(f"| {version_of(binary)} | {' | '.join(shown)} |")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
