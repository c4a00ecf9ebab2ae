"""Compares the documentation with the code: links, settings, metrics, failure codes, files and functions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from midstream import cli
from shared.metrics import defined
from shared.outcomes import FailureCode
from shared.settings import described

_ROOT = Path(__file__).resolve().parents[2]
_PAGES = sorted([*_ROOT.glob("*.md"), *_ROOT.glob("docs/**/*.md")])
_FENCED = re.compile(r"^(```+)[^\n]*\n.*?^\1\s*?$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_OTHERS_SETTINGS = {"OPENAI_API_BASE_URL"}  # Open WebUI's
_CODE = re.compile(r"[a-z]+(_[a-z]+)+")


def named(page: Path) -> str:
    return str(page.relative_to(_ROOT))


def prose(page: Path) -> str:
    return _FENCED.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", _PAGES, ids=named)
def test_every_link_has_a_target(page: Path) -> None:
    for target in _LINK.findall(prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{named(page)} links to {target}"
        assert not anchor or anchor in anchors(linked), f"{named(page)} links to {target}, and there is no such heading"


def test_every_page_is_in_the_index() -> None:
    index = _ROOT / "docs" / "README.md"
    linked = {(index.parent / target).resolve() for target in _LINK.findall(prose(index))}
    assert {page for page in _ROOT.glob("docs/**/*.md") if page != index} <= linked


def test_the_settings_page_is_the_generated_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["settings", "--markdown"]) == 0
    assert (_ROOT / "docs" / "reference" / "settings.md").read_text() == capsys.readouterr().out


@pytest.mark.parametrize("page", [*_PAGES, _ROOT / "docker-compose.yml"], ids=named)
def test_every_setting_named_in_the_docs_exists(page: Path) -> None:
    spoken_of = set(re.findall(r"\b(?:MIDSTREAM|OPENAI)_[A-Z_]*[A-Z]\b", page.read_text()))
    assert spoken_of <= {one.env for one in described()} | {"MIDSTREAM_URL", "MIDSTREAM_API_KEY", *_OTHERS_SETTINGS}


def test_the_metrics_page_is_the_generated_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["metrics", "--markdown"]) == 0
    assert (_ROOT / "docs" / "reference" / "metrics.md").read_text() == capsys.readouterr().out


def test_every_metric_named_in_the_docs_exists() -> None:
    exposed = {one.exposed for one in defined()}
    for page in _PAGES:
        spoken_of = set(
            re.findall(r"`((?:midstream|gen_ai)_[a-z_]+(?:_total|_seconds|_bytes|_usage))\b", page.read_text())
        )
        assert spoken_of <= exposed, named(page)


def test_every_failure_code_is_raised_somewhere() -> None:
    sources = [path.read_text() for room in ("producer", "gateway", "shared") for path in (_ROOT / room).rglob("*.py")]
    raised = {
        code
        for source in sources
        for code in re.findall(r"\bFailureCode\.([A-Z_]+)\b", source.partition("class FailureCode")[0])
    }
    assert raised == {code.name for code in FailureCode}


def test_exactly_the_failure_codes_are_documented() -> None:
    page = prose(_ROOT / "docs" / "reference" / "http.md")
    section = page.partition("## Failure codes")[2].partition("\n## ")[0]
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE))
    assert documented == set(FailureCode)


_OUR_FILE = re.compile(r"`((?:bench|deploy|docs|gateway|midstream|producer|shared|tests)/[\w./-]*\w\.\w+)`")
_FUNCTIONS_IN_FILE = re.compile(_OUR_FILE.pattern + r" · ((?:`[\w.]+`(?:,\s+)?)+)")


def defined_in(path: Path) -> set[str]:
    """Returns the classes and functions that a module defines, methods as `Class.method`."""

    def walk(node: ast.AST, prefix: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield prefix + child.name
                if isinstance(child, ast.ClassDef):
                    yield from walk(child, f"{prefix}{child.name}.")

    return set(walk(ast.parse(path.read_text()), ""))


@pytest.mark.parametrize("page", _PAGES, ids=named)
def test_every_file_named_in_the_docs_exists(page: Path) -> None:
    if page.name != "CHANGELOG.md":  # old entries may name former files
        missing = [path for path in _OUR_FILE.findall(prose(page)) if not (_ROOT / path).exists()]
        assert not missing, f"{named(page)} names files that do not exist"


def test_every_function_of_the_walks_through_the_code_exists() -> None:
    page = _ROOT / "docs" / "explanation" / "how-it-works.md"
    _, _, walks = page.read_text().partition("## Two walks through the code")
    steps = _FUNCTIONS_IN_FILE.findall(walks)
    assert len(steps) >= 20, "the walks are not written as `file.py` · `function`, `Class.method`"
    missing = [
        f"{path} · {name}"
        for path, names in steps
        for name in re.findall(r"`([\w.]+)`", names)
        if name not in defined_in(_ROOT / path)
    ]
    assert not missing
    methods = {name for path, _ in steps for name in defined_in(_ROOT / path)}
    alone = set(re.findall(r"`([A-Z]\w+\.\w+)`", walks))
    assert alone <= methods, "methods that none of the named files defines"
