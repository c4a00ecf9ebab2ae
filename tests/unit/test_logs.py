"""Log lines for machines and for people, which never have the text of a prompt or an answer."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest

from shared.logs import JsonLines, audit_line, outcome, request_id, set_up_logging

pytestmark = pytest.mark.usefixtures("logging_as_it_was")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_each_log_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", "json")
    logging.getLogger("gateway.following.tail").warning("two\nlines and %r", "a quote")
    (line,) = lines(capsys)
    assert line["message"] == "two\nlines and 'a quote'"
    assert (line["level"], line["logger"]) == ("warning", "gateway.following.tail")
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


def test_a_traceback_is_within_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", "json")
    try:
        raise ValueError("wrong")
    except ValueError:
        logging.getLogger("x").exception("it broke")
    (line,) = lines(capsys)
    assert line["exception"].startswith("Traceback (most recent call last)")
    assert line["exception"].endswith("ValueError: wrong")


def test_values_that_json_cannot_hold_are_logged_as_text() -> None:
    record = logging.makeLogRecord({"msg": "m", "about": {"event": "x", "odd": {1}}})
    assert json.loads(JsonLines().format(record))["odd"] == "{1}"


LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
HOSTILE = (
    f"stop{LINE_ENDS}2026-11-27 00:00:00,000 INFO gateway forged\x1b[2J\x9b31m\x7f\x00\u202e\u2066\ufeff\ud800 end"
)


def written(log_format: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Returns the log lines for a hostile text: in a message, in fields, and in a traceback."""
    set_up_logging("info", log_format)
    about = outcome("attempt", "abc", reason=HOSTILE, nested={HOSTILE: [HOSTILE]}, request_id=HOSTILE)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("x").exception("it ended: %s", HOSTILE, extra=about)
    return capsys.readouterr().err


def test_hostile_text_cannot_forge_a_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    output = written("json", capsys)
    assert len(output.splitlines()) == 1  # by Unicode's line ends, too
    assert output.rstrip("\n").isprintable()
    line = json.loads(output)
    shown = HOSTILE.encode("utf-8", "backslashreplace").decode()
    assert line["message"] == f"it ended: {shown}"  # nothing of it is lost
    assert line["reason"] == line["request_id"] == shown
    assert line["nested"] == {shown: [shown]}
    assert line["exception"].endswith(f"ValueError: {shown}")


def test_hostile_text_cannot_forge_a_text_line(capsys: pytest.CaptureFixture[str]) -> None:
    output = written("text", capsys)
    first, *trace = output.splitlines()
    assert "ERROR x it ended: stop\\n\\r\\x0b" in first
    assert "\\x1b[2J" in first
    assert trace
    assert all(line.startswith("    ") for line in trace)
    assert all(line.isprintable() for line in (first, *trace))
    assert any("ValueError: stop" in line for line in trace)


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_lines_are_bounded(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", log_format)
    long, deep = "x" * 3_000_000, json.loads("[" * 500 + "]" * 500)
    values = {
        "long": long,
        "many": [long] * 5000,
        "deep": deep,
        "number": 1 << 20_000,
        "odd": {1: {2}},
        "digits": [[[[[[[1 << 20_000]]]]]]],
    }
    for name, value in values.items():
        logging.getLogger("x").info("it ended: %s", long, extra=outcome("attempt", "abc", **{name: value}))
    try:
        raise ValueError(long)
    except ValueError:
        logging.getLogger("x").exception("it broke")
    output = capsys.readouterr().err
    assert "Logging error" not in output
    for line in output.splitlines():
        assert len(line) < 100_000
        if log_format == "json":
            assert json.loads(line)["level"] in ("info", "error")


def test_a_line_that_is_too_long_keeps_its_short_values(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", "json")
    logging.getLogger("x").info(
        "it ended", extra=outcome("attempt", "abc", usage={str(n): "y" * 9000 for n in range(999)})
    )
    (line,) = lines(capsys)
    assert (line["event"], line["stream"], line["message"]) == ("attempt", "abc", "it ended")
    assert line["left_out_of_characters"] > 1_000_000
    assert "usage" not in line


def test_texts_are_not_shortened_if_they_are_to_be_logged(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", "json")
    about = {
        "about": {"event": "receipt", "text": "x" * 1_000_000, "messages": [{"role": "user", "content": "y" * 9000}]}
    }
    logging.getLogger("midstream.receipt").info("stream abc", extra=about)
    (line,) = lines(capsys)
    assert len(line["text"]) == 1_000_000
    assert len(line["messages"][0]["content"]) == 9000


def test_the_text_format(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", "text")
    logging.getLogger("x").info("it ended", extra=outcome("attempt", "abc"))
    assert capsys.readouterr().err.endswith(" INFO x it ended\n")


@pytest.mark.parametrize(("stream", "begins_with"), [(Terminal(), "2"), (io.StringIO(), "{")])
def test_the_automatic_format_is_text_only_on_a_terminal(
    stream: io.StringIO, begins_with: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    set_up_logging("info")
    logging.getLogger("x").info("who reads me?")
    assert stream.getvalue().startswith(begins_with)


def test_an_audit_line_shows_all_of_it_to_people_and_no_value_can_pretend_to_be_another_field(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up_logging("error", "text")  # it is there at every level
    audit_line(
        "deleted", principal='user:eve" principal=key:root\n\u2028', stream=None, address="192.0.2.1", former=["a", "b"]
    )
    line = capsys.readouterr().err
    assert line.endswith(
        ' INFO midstream.audit deleted principal="user:eve\\" principal=key:root\\n\\u2028" address=192.0.2.1 former="a,b"\n'
    )


def test_levels_and_receipts(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("error", "json")
    logging.getLogger("x").warning("passed over")
    logging.getLogger("midstream.receipt").info("a receipt, whatever the level", extra={"about": {"event": "receipt"}})
    assert [line["event"] for line in lines(capsys)] == ["receipt"]
