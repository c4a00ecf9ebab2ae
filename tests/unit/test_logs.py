"""What a line of the log looks like: for machines, for people, and never with what was said."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from shared.errors import Unusable
from shared.telemetry import JsonLines, outcome, request_id, set_up_logging


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """The handlers of the test run."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_each_line_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", "json")
    logging.getLogger("gateway.tail").warning("two\nlines and %r", "a quote")
    (line,) = lines(capsys)
    assert line["message"] == "two\nlines and 'a quote'"
    assert (line["level"], line["logger"]) == ("warning", "gateway.tail")
    assert line["time"].endswith("+00:00")
    assert "request_id" not in line


def test_an_outcome_has_fields_of_its_own_first(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", "json")
    logging.getLogger("x").info("it ended", extra=outcome("attempt", "abc", outcome="failed", code="provider_timeout"))
    assert capsys.readouterr().err.startswith(
        '{"event":"attempt","stream":"abc","outcome":"failed","code":"provider_timeout",'
    )


def test_a_line_names_the_request_that_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", "json")
    token = request_id.set("req-1")
    logging.getLogger("x").info("here")
    request_id.reset(token)
    logging.getLogger("x").info("and no more")
    assert [line.get("request_id") for line in lines(capsys)] == ["req-1", None]


def test_a_trace_is_within_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", "json")
    try:
        raise ValueError("wrong")
    except ValueError:
        logging.getLogger("x").exception("it broke")
    (line,) = lines(capsys)
    assert line["exception"].startswith("Traceback (most recent call last)")
    assert line["exception"].endswith("ValueError: wrong")


def test_what_cannot_be_written_as_json_is_written_as_text() -> None:
    record = logging.makeLogRecord({"msg": "m", "about": {"event": "x", "odd": {1}}})
    assert json.loads(JsonLines().format(record))["odd"] == "{1}"


def test_text_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", "text")
    logging.getLogger("x").info("it ended", extra=outcome("attempt", "abc"))
    assert capsys.readouterr().err.endswith(" INFO x it ended\n")


@pytest.mark.parametrize(("stream", "begins_with"), [(Terminal(), "2"), (io.StringIO(), "{")])
def test_not_told_it_is_text_on_a_terminal_only(
    stream: io.StringIO, begins_with: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    set_up_logging("info")
    logging.getLogger("x").info("who reads me?")
    assert stream.getvalue().startswith(begins_with)


def test_levels_and_receipts(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("error", "json")
    logging.getLogger("x").warning("passed over")
    logging.getLogger("midstream.receipt").info("a receipt, whatever the level", extra={"about": {"event": "receipt"}})
    assert [line["event"] for line in lines(capsys)] == ["receipt"]


@pytest.mark.parametrize(("level", "log_format", "named"), [("loud", "json", "LEVEL"), ("info", "xml", "FORMAT")])
def test_what_there_is_not(level: str, log_format: str, named: str) -> None:
    with pytest.raises(Unusable, match=f"MIDSTREAM_LOG_{named}"):
        set_up_logging(level, log_format)
