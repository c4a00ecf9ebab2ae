"""clients/js in Node: its reading of Server-Sent Events, its way with every kind of failure, its size, and its types."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.javascript import CLIENT, EXAMPLES
from tests.support.needs import needs
from tests.support.npm import clients

_HERE = Path(__file__).parent / "javascript"
_LINES_MAX = 300
_EXAMPLE_LINES_MAX = 40
_GZIPPED_BYTES_MAX = 3_000
_RUN_SECONDS_MAX = 120.0


def run(*command: str, cwd: Path | None = None) -> str:
    """Runs a command, and returns what it prints. AssertionError with all of that if it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "NODE_TEST_CONTEXT"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=_RUN_SECONDS_MAX, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("script", sorted(path.name for path in _HERE.glob("*.test.mjs")))
def test_in_node(script: str) -> None:
    """The tests that a script of tests/integration/javascript holds, in Node's own test runner."""
    needs("node (Debian: apt install nodejs)", shutil.which("node"))
    printed = run("node", "--test", "--test-reporter=tap", str(_HERE / script))
    assert "\n# fail 0" in printed
    assert "\n# pass 0" not in printed


def test_one_file_that_imports_nothing() -> None:
    assert len(CLIENT.read_text().splitlines()) <= _LINES_MAX
    assert re.search(r"^\s*import\b|\bimport\(|\brequire\(", CLIENT.read_text(), re.MULTILINE) is None
    package = json.loads((CLIENT.parent / "package.json").read_text())
    assert not {"dependencies", "peerDependencies", "scripts"} & set(package)
    assert {file.name for file in CLIENT.parent.iterdir()} == {*package["files"], "package.json"}


def test_its_size() -> None:
    """Minified by esbuild, compressed as a web server does it at its highest level."""
    esbuild = str(clients() / "node_modules/.bin/esbuild")
    minified = run(esbuild, str(CLIENT), "--bundle", "--minify", "--format=esm", "--log-level=error").encode()
    gzipped = len(gzip.compress(minified, 9, mtime=0))
    print(f"{len(minified)} bytes minified, {gzipped} gzipped")
    assert gzipped < _GZIPPED_BYTES_MAX


def test_its_types(tmp_path: Path) -> None:
    """The strictest TypeScript compiles a use of everything, and finds the mistakes in a wrong one."""
    for file in CLIENT.parent.iterdir():
        shutil.copy(file, tmp_path)
    shutil.copy(_HERE / "types.ts", tmp_path)
    compiler = str(clients() / "node_modules/.bin/tsc")
    run(compiler, "--strict", "--noEmit", "--target", "es2022", "--module", "nodenext", "types.ts", cwd=tmp_path)


@pytest.mark.parametrize(
    "example",
    [path for path in EXAMPLES if not path.parent.name.startswith("page_with_")],  # these have a login, and no client
    ids=lambda path: path.name,
)
def test_an_example_is_short(example: Path) -> None:
    assert len(example.read_text().splitlines()) < _EXAMPLE_LINES_MAX
