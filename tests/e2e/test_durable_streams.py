"""The Durable Streams protocol: its conformance suite over two gateways, and its clients from npm, unchanged."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support import node
from tests.support.packages import packages
from tests.support.system import System

pytestmark = pytest.mark.asyncio(loop_scope="module")

_SUITE_SECONDS_MAX = 150.0
_WITHOUT_FORKS = "^(?!Fork|Reserved)"
_TIMED = "TTL Expiration Behavior"
"""These tests leave half a second between a request and the end of a TTL of 2 s: on a busy machine they are run again, one by one."""
_LONG_POLL_SECONDS = 1.0
_CONNECTION_SECONDS = 1.5
"""The gateways end each connection after about so long. The client takes three shorter than 1 s for the stream's end."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system() -> AsyncIterator[System]:
    # The suite asks for a preflight, and waits until a long-poll is over.
    settings = {
        "cors_origins": "*",
        "long_poll_seconds": _LONG_POLL_SECONDS,
        "connection_seconds": _CONNECTION_SECONDS,
    }
    async with System(gateways=2, workers=0, settings=settings) as system:
        yield system


async def test_all_of_the_conformance_suite_but_the_forks(system: System, tmp_path: Path) -> None:
    tests = await conformance(system, tmp_path / "report.json", _WITHOUT_FORKS)
    late = [name for name, test in tests.items() if test["status"] == "failed" and name.startswith(_TIMED)]
    if late:
        names = "|".join(re.escape(name) for name in late)
        again = await conformance(system, tmp_path / "again.json", f"^({names})$", "--maxConcurrency=1")
        tests |= {name: again[name] for name in late}
    failed = {name: test["failureMessages"] for name, test in tests.items() if test["status"] == "failed"}
    assert not failed
    assert Counter(test["status"] for test in tests.values())["passed"] == 250
    assert await system.metric("midstream_messages_written_total", gateway=1) > 100  # the requests went to both


async def conformance(system: System, report: Path, names: str, *options: str) -> dict[str, dict[str, Any]]:
    """Runs the tests of the suite whose names match; returns what the report says of each, by its full name."""
    place = await asyncio.to_thread(packages, "durable")
    process = await asyncio.create_subprocess_exec(
        *("node_modules/.bin/vitest", "run", "conformance.test.mjs", "-t", names, "--testTimeout=45000"),
        *("--reporter=json", f"--outputFile={report}", *options),
        cwd=place,
        env={
            **os.environ,
            "GATEWAYS": " ".join(system.gateway_url(index) for index in range(2)),
            "LONG_POLL_MS": str(int(_LONG_POLL_SECONDS * 1000) + 1000),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_SUITE_SECONDS_MAX):
            printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = await asyncio.to_thread(lambda: report.read_bytes() if report.exists() else b"")
    assert text, printed.decode()[-3000:]
    files = json.loads(text)["testResults"]
    return {test["fullName"]: test for file in files for test in file["assertionResults"]}


async def test_the_clients_of_the_protocol(system: System) -> None:
    messages, words = 200, 100
    seen: dict[str, Any] = await node.run(
        "clients.mjs",
        {
            "writeUrl": f"{system.gateway_url(0)}/v1/stream/clients",
            "readUrl": f"{system.gateway_url(1)}/v1/stream/clients",
            "messages": messages,
            "words": words,
        },
        folder="durable",
    )
    expected = [{"number": number} for number in range(messages)]
    assert seen["caughtUp"] == expected
    assert seen["live"] == [expected, expected]
    assert seen["fenced"] == "StaleEpochError"
    assert seen["sent"] == seen["reconnected"] == "".join(f"{number} " for number in range(words))
