"""`midstream bench` as a process, with very small sizes."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from bench.guard import judge, storm
from bench.processes.parts import Cores, Parts
from bench.report import OURS, PEER, ratios, summed_up, table
from bench.sizes import QUICK
from bench.workloads import store
from bench.workloads.faces import FACES
from midstream import cli
from shared.errors import Unusable
from tests.support.http_server import Closed, HttpServer, Request, head
from tests.support.needs import needs
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.long

_PNG = b"\x89PNG\r\n\x1a\n"
needs_linux = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the bench reads /proc")
measures = pytest.mark.alone("its figures are of this machine, and what they are held against is absolute")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "midstream.cli", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@needs_linux
@measures
def test_a_quick_run_completes(tmp_path: Path) -> None:
    for part in ("matplotlib", "sse_starlette"):
        needs(part, importlib.util.find_spec(part))
    out, png = tmp_path / "bench.json", tmp_path / "bench.png"
    ran = bench(
        *("W1", "--quick", "--readers", "20", "--rate", "400", "--seconds", "0.5"),
        *("--json", str(out), "--plot", str(png)),
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == ""
    assert png.read_bytes().startswith(_PNG)
    results = json.loads(out.read_text())
    sides = results["workloads"]["W1"]["sides"]
    for side in (OURS, PEER):
        (run,) = sides[side]["runs"]
        assert 50 < run["events"] < 400
        assert 0 < run["p50_ms"] <= run["p99_ms"] <= run["max_ms"]
        assert run["server_us_per_event"] >= 0  # counted in ticks of 10 ms: 200 events may take less
        assert run["missing"] == run["doubled"] == run["out_of_order"] == 0
        assert [step["offered_per_s"] for step in run["curve"]]
        assert sides[side]["medians"]["p50_ms"] == run["p50_ms"]
    ratio = results["workloads"]["W1"]["ratios"]["p50_ms"]  # not of CPU, of which 200 events may take no tick
    medians = [sides[side]["medians"]["p50_ms"] for side in (OURS, PEER)]
    assert ratio == pytest.approx(medians[1] / medians[0])
    assert results["void"] is False
    assert {"machine", "versions", "settings", "cores"} <= results.keys()
    for line in ("W1  many streams, a reader each", "gateway CPU per event", "ratio"):
        assert line in ran.stdout


@needs_linux
@measures
def test_the_whole_path_is_a_sum_beside_the_ordinary_way_as_a_whole(tmp_path: Path) -> None:
    needs("sse_starlette", importlib.util.find_spec("sse_starlette"))
    out = tmp_path / "bench.json"
    ran = bench("W7", "--quick", "--seconds", "0.5", "--json", str(out))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    result = json.loads(out.read_text())["workloads"]["W7"]
    (ours,), (peer,) = (result["sides"][side]["runs"] for side in (OURS, PEER))
    for run, kinds in ((ours, ("full", "pace", "half", "equal")), (peer, ("equal",))):
        for kind in kinds:
            assert run[f"{kind}_tokens_per_s"] > 50, kind
            assert run[f"{kind}_missing"] == run[f"{kind}_doubled"] == run[f"{kind}_out_of_order"] == 0, kind
            assert 0 < run[f"{kind}_p50_ms"] <= run[f"{kind}_p99_ms"], kind
            parts = [run[f"{kind}_{part}_us_per_token"] for part in ("worker", "redis", "gateway")]
            assert run[f"{kind}_sum_us_per_token"] == pytest.approx(sum(parts)), kind
            assert 0 < run[f"{kind}_floor_us_per_token"] < 200, kind
            assert run[f"{kind}_sum_of_floor"] == pytest.approx(sum(parts) / run[f"{kind}_floor_us_per_token"]), kind
    assert ours["pace_tokens_per_entry"] > 1.5
    assert (
        peer["equal_tokens_per_entry"] < 1.5
    )  # more, if few of the tokens that Redis got have reached readers by the end
    for kind in ("full", "pace", "half", "equal"):
        figure = f"{kind}_sum_us_per_token"
        assert result["ratios"][figure] == pytest.approx(peer["equal_sum_us_per_token"] / ours[figure])
    assert f"{PEER}: was given 25 of 100 answers" in ran.stdout


@needs_linux
@measures
def test_tokens_that_share_an_entry_cost_redis_less() -> None:
    with Parts(Cores()) as parts:
        one, many = (store.w6(parts, QUICK, print, units=(unit,)) for unit in (1, 16))
    assert 5 < many["bytes_per_token_16"] < one["bytes_per_token_1"] < 60
    assert 0.05 < many["us_per_token_16"] < one["us_per_token_1"] < 500


class Lossy(HttpServer):
    """A gateway that leaves out one token of each stream."""

    def __init__(self, redis_url: str, *, without: int) -> None:
        super().__init__()
        self._client = redis.asyncio.Redis.from_url(redis_url, protocol=2, max_connections=100, socket_timeout=None)
        self._without = b"1-%d" % without

    async def __aexit__(self, *_: object) -> None:
        await super().__aexit__()
        await self._client.aclose()

    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream_id, last = request.path.split("/")[3], b"0-0"
        writer.write(head(200, {"content-type": "text/event-stream"}))
        while not writer.is_closing() and not reader.at_eof():
            reply: Any = await self._client.xread({f"midstream:{{{stream_id}}}:log": last}, block=200)
            for last, fields in reply[0][1] if reply else ():
                text = fields.get(b"t")
                if text is not None and last != self._without:
                    writer.write(b'data: {"token":"%b"}\nid: %b\n\n' % (text, last))
            await writer.drain()
        raise Closed


@needs_linux
async def test_a_lost_token_makes_the_result_invalid(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    with RedisServer() as server:
        async with Lossy(server.url, without=5) as lossy:
            where = ("--url", lossy.origin, "--redis", server.url)
            small = ("--quick", "--readers", "4", "--rate", "80", "--seconds", "0.5", "--json", str(out))
            ran = await asyncio.to_thread(bench, "W1", "W5", *where, *small)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "VOID" in ran.stdout
    assert "W5 left out" in ran.stdout
    (run,) = json.loads(out.read_text())["workloads"]["W1"]["sides"][OURS]["runs"]
    assert run["void"] is True
    assert run["missing"] == 4
    assert run["doubled"] == run["out_of_order"] == 0


@needs_linux
def test_every_face_is_compared_with_the_native_one(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    ran = bench("--faces", "--quick", "--readers", "10", "--rate", "200", "--seconds", "1", "--json", str(out))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (run,) = json.loads(out.read_text())["workloads"]["faces"]["sides"][OURS]["runs"]
    for name in FACES:
        assert run[f"{name}_events_per_s"] > 50, name  # of 200: beside other tests many come after the end
        assert run[f"{name}_missing"] == run[f"{name}_doubled"] == run[f"{name}_closed"] == 0, name
        assert 0 < run[f"{name}_p50_ms"] <= run[f"{name}_p99_ms"], name
        assert f"{name}: gateway CPU per event" in ran.stdout


@needs_linux
def test_the_guard_detects_a_gateway_whose_readers_share_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Parts(Cores()) as parts:
        assert judge(storm(parts)) == 0, capsys.readouterr().out
        assert judge(storm(parts, page_cache_bytes_max=0, page_events=16, ring_events=16)) == 1
    output = capsys.readouterr().out
    assert "OVER storm: log reads for all readers" in output
    assert "must share its pages" in output


def _run(**figures: object) -> dict[str, Any]:
    return {"void": False, "generators": False, **figures}


def test_a_row_names_the_figure_of_the_ordinary_way_that_it_stands_beside() -> None:
    ours = summed_up(
        [_run(full_sum_us_per_token=40.0, full_p99_ms=3.0), _run(full_sum_us_per_token=60.0, full_p99_ms=4.0)]
    )
    peer = summed_up([_run(equal_sum_us_per_token=400.0, notes=["was given fewer answers"])] * 2)
    sides = {OURS: ours, PEER: peer}
    better = ratios("W7", sides)
    assert better == {"full_sum_us_per_token": pytest.approx(8.0)}
    lines = table({"W7": {"sides": sides, "ratios": better}}, targets=True).splitlines()
    (row,) = [" ".join(line.split()) for line in lines if "all CPU per token" in line]
    assert row.endswith("50 µs 40 – 60 400 µs 8.0 × ≥ 6 × cheaper")
    assert lines.count(f"    {PEER}: was given fewer answers") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["W9"], "W1, W2"),
        (["W1", "--rate", "nan"], "a number from 1"),
        (["W1", "--readers", "20001"], "from 1 to 20000"),
        (["--runs", "0"], "a whole number from 1 to 20"),
    ],
)
def test_the_error_for_a_wrong_option_names_valid_values(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["bench", *arguments])
    assert left.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--url", "http://127.0.0.1:1"], "--url needs --redis"),
        (["--plot", "x.jpg"], "ends in .png"),
        (["--json", "/nowhere/at/all.json"], "there is no folder"),
        (["guard", "W1"], "guard stands alone"),
        (["--pid", "gateway=x"], "of a process of this machine"),
        (["--cores", "server=99,load=0"], "server=A,load=B"),
    ],
)
def test_the_error_for_impossible_options_says_why(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_cores_are_named() -> None:
    with pytest.raises(Unusable, match="of the cores"):
        Cores.of("server=0")
    assert "not pinned" in Cores().describe()
