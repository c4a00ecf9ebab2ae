"""What the command line says before it runs anything."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from urllib.parse import unquote

import pytest

from midstream import cli, gateway_answers
from shared.errors import Unusable
from shared.metrics import defined
from tests.support.http_server import HttpServer, Request, response

pytestmark = pytest.mark.usefixtures("logging_as_it_was")


def test_without_a_command_it_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "usage: midstream" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["up", "--prot", "80"], ["usage: midstream up", "--prot 80", "did you mean --port?"]),
        (["tail", "x", "--jsn"], ["usage: midstream tail", "did you mean --json?"]),
        (["settings", "--yaml"], ["usage: midstream settings", "--yaml"]),
        (["up", "--port", "x"], ["usage: midstream up", "must be a port from 0 to 65535"]),
    ],
)
def test_a_wrong_option_shows_the_usage_of_its_command(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    assert raised.value.code == 2
    output = capsys.readouterr().err
    assert all(word in output for word in words), output


def test_the_metrics_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["metrics", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [metric.exposed for metric in defined()]
    assert all({"kind", "where", "labels", "help", "costs"} <= set(row) for row in rows)


@pytest.mark.parametrize("folder", ["/proc/foo", "a file"])
def test_a_folder_that_cannot_keep_data_is_told_in_one_line(
    folder: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MIDSTREAM_REDIS_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("a file").touch()
    assert cli.main(["up", "--port", "0", "--data-dir", folder]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"midstream up: the folder {folder} cannot keep the embedded Valkey's data: ")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("MIDSTREAM_CONSOLE", "maybe"), ("OPENAI_BASE_URL", "localhost:11500"), ("MIDSTREAM_PROVIDER_ON_CANCEL", "no")],
)
def test_a_wrong_setting_is_told_before_anything_starts(
    variable: str, value: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert cli.main(["up", "--port", "0"]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"midstream up: {variable}")


def test_a_misspelt_variable_is_told_once_and_not_handed_on(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIDSTREAM_LEASE_SECOND", "1")
    monkeypatch.setenv("MIDSTREAM_LOG_FORMAT", "json")
    assert cli.main(["up", "--port", "0", "--data-dir", "/proc/foo"]) == 1
    warning, _ = capfd.readouterr().err.splitlines()
    assert "did you mean MIDSTREAM_LEASE_SECONDS?" in json.loads(warning)["message"]


class _Answers(HttpServer):
    """Answers a path with the status and the body that are in it: `/200/text`."""

    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, status, body = request.path.split("/", 2)
        writer.write(response(int(status), "application/json", unquote(body).encode()))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/200/%7B%22a%22:%22123456789012345678901234567890%22%7D", "more than 32 bytes"),
        ("/200/no%20JSON", "does not answer as a Midstream gateway"),
        ("/200/%5B%5D", "answers 200"),
        ("/404/%7B%22detail%22:%22not%20here%22%7D", "answers 404: not here"),
    ],
)
async def test_what_is_no_answer_of_a_gateway_is_an_error(
    path: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_answers, "_ANSWER_BYTES_MAX", 32)
    async with _Answers() as server:
        with pytest.raises(Unusable, match=words):
            await asyncio.to_thread(gateway_answers.get, server.origin, path)
        assert await asyncio.to_thread(gateway_answers.get, server.origin, "/200/%7B%22a%22:1%7D") == {"a": 1}
