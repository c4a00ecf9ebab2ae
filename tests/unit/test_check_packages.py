"""The check of requirements.lock: hashes, licences and advisories."""

from __future__ import annotations

import importlib.util
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ADVISORIES = (ROOT / ".ci" / "advisories.txt").read_text()


def _loaded() -> Any:
    spec = importlib.util.spec_from_file_location("check_packages", ROOT / ".ci" / "check_packages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check = _loaded()


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND GPL-3.0-only", False),
        ("MIT AND (GPL-3.0-only OR AGPL-3.0-only)", False),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
        ("MIT or GPL-3.0-only", False),
        ("(MIT", False),
        ("MIT MIT", False),
        ("", False),
    ],
)
def test_an_expression_is_met_by_the_licences_allowed(expression: str, allowed: bool) -> None:
    assert check.is_allowed(expression) is allowed


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ([("License-Expression", "MIT AND PSF-2.0"), ("License", "GPL")], "MIT AND PSF-2.0"),
        ([("Classifier", "License :: OSI Approved :: BSD License"), ("License", "Copyright ...")], "BSD-3-Clause"),
        ([("Classifier", "License :: DFSG approved"), ("License", "MIT")], "MIT"),
        ([("License", "x" * 1000)], ""),
        ([], ""),
    ],
)
def test_the_licence_that_a_package_names(fields: list[tuple[str, str]], licence: str) -> None:
    metadata = Message()
    for name, value in fields:
        metadata.add_header(name, value)
    assert check.licences(metadata) == licence


def test_every_package_that_is_locked_is_found() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert sum(map(len, check.locked(lock).values())) == lock.count("==") - lock.count("'==") - lock.count("== '")
    assert check.complaints(lock, ADVISORIES) == []


@pytest.mark.parametrize(
    ("lock", "complaint"),
    [
        ("h11==0.14.0 \\\n    --hash=sha256:00\n", "h11 0.14.0: CVE-2025-43859"),
        ("PyJWT==2.10.0 \\\n    --hash=sha256:00\n", "pyjwt 2.10.0: CVE-2024-53861"),
        ("h11==0.16.0\nother==1 \\\n    --hash=sha256:00\n", "h11 0.16.0: requirements.lock has no hash"),
    ],
)
def test_what_is_wrong_is_named(lock: str, complaint: str) -> None:
    assert check.complaints(lock, ADVISORIES) == [complaint]
