"""The dashboards and alerts with a real Prometheus that scrapes a running system: every expression gives data."""

from __future__ import annotations

import asyncio
import json
import math
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from shared.metrics import defined
from tests.support.load import metrics_address, mixed_streams
from tests.support.prometheus import Prometheus, needs_prometheus
from tests.support.redis_server import free_port
from tests.support.system import System
from tests.support.waiting import wait_until
from tests.support.webhook_receiver import WebhookReceiver

_ROOT = Path(__file__).resolve().parents[2]
_RULES = _ROOT / "deploy" / "prometheus" / "rules" / "midstream.yml"
_COMPARISON = re.compile(r"^(.*\S)\s*(?:==|>|<)\s*[0-9.]+$")
_ROUNDS = 3


def expressions() -> Iterator[tuple[str, str]]:
    """Yields every expression, with the name of its panel."""
    for path in sorted((_ROOT / "deploy" / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"].replace("$__rate_interval", "30s")


@asynccontextmanager
async def scraped(archive: Path) -> AsyncIterator[tuple[System, Prometheus]]:
    """A gateway of two processes and two workers, with a Prometheus that has seen all of them."""
    settings: dict[str, object] = {"lease_seconds": 1, "provider_backoff_seconds": 0.05}
    settings |= {"metrics_port": free_port() - 100, "archive_url": f"sqlite:///{archive}/archive.sqlite"}
    async with (
        WebhookReceiver() as receiver,
        System(
            workers=2,
            settings={**settings, **receiver.settings(), "webhook_url": receiver.url},
            gateway_settings={"gateway_processes": 2, "ring_events": 16},
        ) as system,
    ):
        targets = {
            "midstream-gateway": [f"127.0.0.1:{system.gateways[0].settings['port']}"],
            "midstream-worker": [metrics_address(worker) for worker in system.workers],
        }
        async with Prometheus(targets, [_RULES]) as prometheus:
            await prometheus.until_all_up()
            yield system, prometheus


async def test_every_panel_and_every_rule_shows_data(tmp_path: Path) -> None:
    needs_prometheus()
    async with scraped(tmp_path) as (system, prometheus):
        for _ in range(_ROUNDS):
            await asyncio.gather(*(mixed_streams(system) for _ in range(3)))

        async def all_counted() -> bool:
            return await prometheus.value("sum(midstream_receipts_total)") >= _ROUNDS * 3 * 8

        await wait_until(all_counted, within_seconds=20.0, what="every stream's receipt is counted")
        empty = []
        for name, expression in expressions():
            values = [value for _, value in await prometheus.query(expression)]
            if not any(math.isfinite(value) for value in values):
                empty.append(f"{name}: {expression}: {values}")
        assert not empty, "\n".join(empty)
        rules = await prometheus.rules()
        assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
        assert len(rules) == _RULES.read_text().count("- alert:")
        for rule in rules:
            comparison = _COMPARISON.match(rule["query"])
            assert comparison, f"{rule['name']}: {rule['query']}"
            values = [value for _, value in await prometheus.query(comparison[1])]
            assert any(math.isfinite(value) for value in values), f"{rule['name']} has no data: {comparison[1]}"


async def test_every_metric_is_on_a_dashboard_or_in_a_rule() -> None:
    shown = "\n".join(expression for _, expression in expressions()) + _RULES.read_text()
    missing = [one.exposed for one in defined() if not re.search(rf"\b{one.exposed}(_bucket|_sum|_count)?\b", shown)]
    assert missing == []


def promtool(*arguments: str) -> str:
    needs_prometheus()
    done = subprocess.run(["promtool", *arguments], cwd=_ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_rules_and_the_configuration() -> None:
    assert "rules found" in promtool("check", "rules", str(_RULES))
    assert "is valid" in promtool("check", "config", "deploy/prometheus/prometheus.yml")


def test_each_alert_fires_on_its_problem_and_not_on_similar_data() -> None:
    tests = _ROOT / "deploy" / "prometheus" / "tests" / "midstream.yml"
    assert "SUCCESS" in promtool("test", "rules", str(tests))
    for name in re.findall(r"- alert: (\w+)", _RULES.read_text()):
        for kind in ("fires", "is quiet"):
            assert f"- name: {name} {kind}\n" in tests.read_text()


def test_each_alert_has_a_reason_and_a_place_in_the_runbook() -> None:
    page = (_ROOT / "docs" / "how-to" / "watch-it.md").read_text()
    headings = {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in re.findall(r"^### (.+)$", page, re.M)}
    rules = re.split(r"\n      - alert: ", _RULES.read_text())[1:]
    for rule in rules:
        name = rule.splitlines()[0]
        runbook = re.search(r"runbook: (\S+)", rule)
        assert "reason: " in rule, name
        assert runbook, name
        assert runbook[1] in headings, name
        assert f"`{name}`" in page


def test_the_dashboards_are_the_generated_ones() -> None:
    made = subprocess.run(
        [sys.executable, "deploy/grafana/make_dashboards.py", "--check"], cwd=_ROOT, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
