"""Installs npm packages in the versions that a folder of tests/e2e locks, beside that folder's scripts."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.needs import needs

_SOURCES = Path(__file__).resolve().parents[1] / "e2e"
_INSTALL_SECONDS_MAX = 150.0


@functools.cache
def packages(folder: str) -> Path:
    """Returns a copy of tests/e2e/<folder> with node_modules, outside of the checkout, made once per content and machine."""
    needs("node and npm (Debian: apt install nodejs npm)", shutil.which("node") and shutil.which("npm"))
    digest = hashlib.sha256()
    for source in sorted((_SOURCES / folder).iterdir()):
        if source.is_file():
            digest.update(source.read_bytes())
    place = Path(tempfile.gettempdir()) / f"midstream-{folder}-{digest.hexdigest()[:16]}"
    with _lock(folder):
        if not place.exists():
            _install(folder, place)
    return place


def _install(folder: str, place: Path) -> None:
    made = Path(tempfile.mkdtemp(prefix=f"midstream-{folder}-"))
    ignored = shutil.ignore_patterns("node_modules")
    shutil.copytree(_SOURCES / folder, made, dirs_exist_ok=True, ignore=ignored)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    done = subprocess.run(command, cwd=made, capture_output=True, text=True, timeout=_INSTALL_SECONDS_MAX)
    if done.returncode:
        print(done.stderr)
        needs(f"what tests/e2e/{folder}/package.json names (npm ci failed; is its registry reachable?)", False)
    made.rename(place)


@contextmanager
def _lock(folder: str) -> Iterator[None]:
    """Holds the machine's lock for this folder: one of several processes installs, and the others wait."""
    with Path(tempfile.gettempdir(), f"midstream-{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
