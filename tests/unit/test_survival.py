"""The README's table "What survives what": every row names tests, and they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]

SHOWN_BY = {
    "the reader's connection breaks": [
        "e2e/test_curl.py::test_cut_twice_and_resumed",
        "e2e/test_browser.py::test_the_browser_resumes_by_itself_and_stops_after_done",
    ],
    "a gateway is killed, or replaced by a new version": [
        "e2e/test_takeover.py::test_a_stopping_gateway_makes_its_readers_reconnect",
        "e2e/test_takeover.py::test_gateway_killed_and_readers_resume_on_the_other",
        "e2e/test_browser.py::test_gateway_killed_twice",
    ],
    "a gateway loses Redis for a moment": ["e2e/test_redis_killed.py::test_connections_cut_in_mid_stream"],
    "a worker is killed in mid-answer": ["e2e/test_takeover.py::test_worker_killed_in_mid_answer"],
    "a worker freezes and wakes up late": [
        "e2e/test_takeover.py::test_worker_frozen_past_its_lease_writes_nothing_more"
    ],
    "the provider fails before the first token": [
        "e2e/test_model.py::test_retries_before_the_first_token_are_invisible"
    ],
    "the provider fails in mid-answer": ["e2e/test_model.py::test_the_provider_breaks_off_in_mid_answer"],
    "Redis restarts, or a replica that lags takes over": [
        "e2e/test_redis_killed.py::test_killed_and_started_again",
        "e2e/test_redis_forgets.py::test_a_replica_is_promoted_while_it_lags",
        "e2e/test_redis_forgets.py::test_redis_starts_from_an_older_append_only_file",
    ],
    "Redis has reached its `maxmemory`": [
        "e2e/test_redis_forgets.py::test_streams_fail_while_redis_is_full_and_work_again_afterwards"
    ],
    "all readers have gone": ["e2e/test_model.py::test_the_last_reader_leaves"],
}


def test_every_row_of_the_table_has_tests() -> None:
    section = (_ROOT / "README.md").read_text().split("## What survives what")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \|", section, re.MULTILINE)
    assert rows[0] == "fault"
    assert set(rows[1:]) == set(SHOWN_BY)


def test_the_tests_of_the_table_exist() -> None:
    for tests in SHOWN_BY.values():
        for test in tests:
            path, _, name = test.partition("::")
            tree = ast.parse((_ROOT / "tests" / path).read_text())
            functions = {node.name for node in tree.body if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef)}
            assert name in functions, test
