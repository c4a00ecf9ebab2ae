"""The number of a gateway's processes, by its setting, the machine, and the container's CPU limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway import supervisor
from gateway.supervisor import cores, processes_wanted
from shared.settings import Settings


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def group(root: Path, limits: dict[str, str], own: str) -> tuple[Path, Path]:
    """Makes the files that the kernel shows to a process in the group `own`; `limits` has the limit of each group."""
    for name, limit in limits.items():
        (root / "mounted" / name.strip("/")).mkdir(parents=True, exist_ok=True)
        (root / "mounted" / name.strip("/") / "cpu.max").write_text(f"{limit}\n")
    (root / "membership").write_text(f"12:cpuset:/\n0::{own}\n")
    return root / "membership", root / "mounted"


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max 100000", 8),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("100000 50000", 2),
        ("", 8),
        ("x y", 8),
    ],
)
def test_a_containers_limit_counts(tmp_path: Path, limit: str, expected: int) -> None:
    assert cores(*group(tmp_path, {"/": limit}, "/")) == expected


def test_the_lowest_limit_above_a_process_counts(tmp_path: Path) -> None:
    limits = {"/pod": "300000 100000", "/pod/one": "max 100000", "/other": "100000 100000"}
    assert cores(*group(tmp_path, limits, "/pod/one")) == 3
    assert cores(*group(tmp_path, limits, "/pod/gone")) == 3
    assert cores(*group(tmp_path, limits, "/")) == 8


def test_without_a_container_limit_the_cpu_affinity_counts(tmp_path: Path) -> None:
    assert cores(tmp_path / "none", tmp_path) == 8
    (tmp_path / "membership").write_text("4:cpu,cpuacct:/\n")
    assert cores(tmp_path / "membership", tmp_path) == 8


def test_one_process_unless_the_setting_asks_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "cores", lambda: 6)
    monkeypatch.setattr(supervisor, "CAN_SHARE", True)
    assert processes_wanted(Settings()) == 1
    assert processes_wanted(Settings(gateway_processes=3)) == 3
    assert processes_wanted(Settings(gateway_processes=0)) == 6


def test_one_process_on_systems_that_do_not_spread_connections(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "CAN_SHARE", False)
    assert processes_wanted(Settings(gateway_processes=0)) == 1
    assert not caplog.records  # the setting does not ask for more
    assert processes_wanted(Settings(gateway_processes=3)) == 1
    assert "one gateway process and not 3" in caplog.text
