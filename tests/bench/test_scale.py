"""The simulation and the arithmetic of `bench.scale`: nobody is lost, queues obey Little's law, inputs count."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
import simpy

from bench.scale.__main__ import main
from bench.scale.picture import chart, shares
from bench.scale.plan import plan_of
from bench.scale.simulation import Core, failover, reconnect_storm, rolling_deployment
from bench.scale.units import with_inputs

LOAD, COSTS, PRICES = with_inputs({})


def test_a_core_obeys_littles_law() -> None:
    """The mean number in the system is the rate of arrivals times the mean time in it."""
    environment = simpy.Environment()
    core = Core(environment)
    in_system, changed_at, area = 0, 0.0, 0.0
    times: list[float] = []

    def change(by: int) -> None:
        nonlocal in_system, changed_at, area
        area += in_system * (environment.now - changed_at)
        in_system, changed_at = in_system + by, environment.now

    def customer(at: float) -> simpy.events.ProcessGenerator:
        yield environment.timeout(at)
        change(+1)
        yield from core.use(0.9)
        change(-1)
        times.append(environment.now - at)

    for number in range(500):
        environment.process(customer(number * 0.8 + (number * 37 % 11) / 10))
    environment.run()
    assert len(times) == core.served == 500
    assert area / environment.now == pytest.approx(len(times) / environment.now * sum(times) / len(times))
    assert core.busy_seconds == pytest.approx(500 * 0.9)
    assert environment.now >= core.busy_seconds


def test_no_reader_is_lost_and_the_work_takes_its_time() -> None:
    outcome = reconnect_storm(1000, gateways=1, masters=1, costs=COSTS, events_lacked=1000)
    assert len(outcome.pauses_seconds) == 1000
    work_seconds = 1000 * (COSTS.resume_us + 1000 * COSTS.resume_event_us) / 1e6
    assert outcome.seconds == pytest.approx(work_seconds, rel=0.02), "one core is never idle before the end"
    shared = reconnect_storm(1000, gateways=4, masters=1, costs=COSTS, events_lacked=1000)
    assert outcome.seconds / 5 < shared.seconds < outcome.seconds / 3
    assert outcome == reconnect_storm(1000, gateways=1, masters=1, costs=COSTS, events_lacked=1000), "one seed, one run"


def test_a_lost_master_delays_its_streams_by_detection_and_election() -> None:
    outcome = failover(200, gateways=2, costs=COSTS, node_timeout_seconds=1.0, tokens_per_second=5.0)
    undisturbed = failover(200, gateways=2, costs=COSTS, node_timeout_seconds=1.0, tokens_per_second=5.0, lost=False)
    assert len(outcome.pauses_seconds) == 200
    assert 1.5 <= min(outcome.pauses_seconds) <= outcome.pause(1.0) <= 3.5
    assert undisturbed.pause(1.0) < 0.5


@pytest.mark.parametrize("to_fewest", [False, True])
def test_every_reader_has_moved_when_all_gateways_are_replaced(to_fewest: bool) -> None:
    outcome = rolling_deployment(2000, gateways=10, at_once=2, costs=COSTS, tokens_per_second=20, to_fewest=to_fewest)
    assert min(outcome.moves) >= 1
    assert sum(outcome.moves) == len(outcome.pauses_seconds)
    mean = sum(outcome.moves) / 2000
    assert mean < 1.2 if to_fewest else 1.3 < mean < 2.2


def test_the_plan_grows_with_the_load_and_follows_prices() -> None:
    small, large = (plan_of(with_inputs({"streams": streams})[0], COSTS, PRICES) for streams in (10_000, 1_000_000))
    assert large.gateways == pytest.approx(1_000_000 * 20 * COSTS.gateway_entry_us / 1e6 / COSTS.core_share, abs=1)
    assert large.dollars == pytest.approx(100 * small.dollars, rel=0.15)
    free = plan_of(LOAD, COSTS, with_inputs({"egress_gb": 1e-9})[2])
    assert free.dollars == pytest.approx(large.dollars - large.egress_dollars)
    readers = plan_of(with_inputs({"tokens_per_second": 0.01})[0], COSTS, PRICES)
    assert readers.gateways == 50, "20,000 connections each, however slow the tokens"


def test_inputs_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("streams=0", "streams=many", "nothing=1"):
        assert main(["--set", wrong]) == 2
    assert "nothing is no input" in capsys.readouterr().err


def test_the_command_prints_tables_and_draws(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    assert main(["--set", "streams=5000", "--svg", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "| a master is killed | 5,000 |" in printed
    assert "| 5,000 |" in printed


def test_a_chart_is_a_picture() -> None:
    lines = [("all", shares([1.0, 2.0, 3.0])), ("<none>", shares([0.5]))]
    picture = ElementTree.fromstring(chart("t & u", "s", "%", lines))
    drawn = [one.get("points", "") for one in picture.iter("{http://www.w3.org/2000/svg}polyline")]
    assert [len(points.split()) for points in drawn] == [5, 3]
