"""`python -m tests.stress.fuzz_openapi --seconds N --seed S`: what /openapi.json describes, asked by Schemathesis with and without a key.

Schemathesis makes requests from the document, valid and invalid ones, and compares each answer with it. Exit code 0 if there was no
5xx, no status, media type, header or body that the document does not have, and no traceback in the gateway's log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from tests.support.guarded_gateway import MODULE, TOKEN_KEYS
from tests.support.system import System

PROGRAM = "schemathesis"
_CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
)
_SETTINGS: dict[str, object] = {
    "auth": "required",
    "token_keys": TOKEN_KEYS,
    "connection_seconds": 0.5,  # an answer that never ends by itself holds the run up for no longer
    "entry_milliseconds": 0,
}
_KEY = "tk_root"
"""May do everything, so that requests come to the handlers."""
_REQUEST_SECONDS_MAX = 20.0
_SHOWN_CHARACTERS = 6000
_ERROR = re.compile(r"^_{3,} (.+) _{3,}$", re.MULTILINE)
"""The headings of errors: a method and a path."""
_CUT_OFF = "GET /v1/streams/{stream_id}/text"


def program() -> str | None:
    """Returns the path of Schemathesis, which has an environment of its own: it drags in more than all else that the tests need."""
    return os.environ.get("SCHEMATHESIS") or shutil.which(PROGRAM)


async def fuzz(seconds: float, seed: int) -> list[str]:
    """Runs for so many seconds, half of them with a key; returns what was wrong."""
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="midstream-fuzz-") as directory:
        async with System(settings=_SETTINGS, gateway_module=MODULE) as system:
            answer = await system.http.get(
                f"{system.gateway_url()}/openapi.json", headers={"authorization": f"Bearer {_KEY}"}
            )
            assert answer.status_code == 200, answer.text
            document = Path(directory, "openapi.json")
            await asyncio.to_thread(document.write_bytes, answer.content)
            for key in (_KEY, None):
                wrong += await _run(system.gateway_url(), document, key, seconds / 2, seed)
            try:
                system.assert_no_complaints()
            except AssertionError as error:
                wrong.append(str(error)[:_SHOWN_CHARACTERS])
            if not system.gateways[0].runs:
                wrong.append(f"the gateway has ended\n{system.gateways[0].tail()}")
    return wrong


async def _run(url: str, document: Path, key: str | None, seconds: float, seed: int) -> list[str]:
    path = program()
    assert path is not None, f"{PROGRAM} is missing"
    report = document.with_name(f"report-{'no-' if key is None else ''}key.json")
    arguments = [path, "run", str(document), "--url", url, "--checks", ",".join(_CHECKS), "--seed", str(seed)]
    arguments += ["--max-time", str(max(1, round(seconds))), "--request-timeout", str(_REQUEST_SECONDS_MAX)]
    arguments += ["--suppress-health-check", "all", "--continue-on-failure", "--warnings", "off"]
    arguments += ["--report", "json", "--report-json-path", str(report)]
    if key is not None:
        arguments += ["--header", f"Authorization: Bearer {key}"]
    process = await asyncio.create_subprocess_exec(
        *arguments,
        cwd=document.parent,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "140"},
    )
    output, _ = await process.communicate()
    text = output.decode(errors="replace")
    who = "with a key" if key is not None else "without a key"
    try:
        found = json.loads(await asyncio.to_thread(report.read_bytes))
    except FileNotFoundError:
        return [f"{who}: {PROGRAM} made no report:\n{text[-_SHOWN_CHARACTERS:]}"]
    operations, cases = found["operations"], found["test_cases"]
    print(
        f"{who}: {cases['generated']:,} requests to {operations['tested']} of {operations['total']} operations",
        flush=True,
    )
    wrong = []
    details = text[max(0, text.find("= ERRORS =")) :]
    # A text that does not end well is cut off, which this program calls an error, and asks that operation no more.
    cut_off = _ERROR.findall(details) == [_CUT_OFF] and "Response ended prematurely" in details
    if operations["tested"] + cut_off < operations["total"]:
        wrong.append(f"{who}: not every operation was asked in {seconds:g} s")
    if found["errors"] and not cut_off:  # of the tool itself, or a request without an answer
        wrong.append(f"{who}: errors {json.dumps(found['errors'])}\n{details[:_SHOWN_CHARACTERS]}")
    if found["failures"]:
        wrong.append(f"{who}: {text[text.find('FAILURES') :][:_SHOWN_CHARACTERS]}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.stress.fuzz_openapi", description="Requests made from /openapi.json, by Schemathesis."
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default 60)")
    parser.add_argument("--seed", type=int, default=1, help="what is sent (default 1)")
    arguments = parser.parse_args()
    if program() is None:
        parser.error(
            f"{PROGRAM} is missing: pip install schemathesis, in an environment of its own, or SCHEMATHESIS=path"
        )
    wrong = asyncio.run(fuzz(arguments.seconds, arguments.seed))
    for line in wrong:
        print(f"WRONG {line}", flush=True)
    print(f"seed {arguments.seed}: {'failed' if wrong else 'held'}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
