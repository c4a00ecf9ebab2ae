"""A real Prometheus as a child process: it scrapes the given targets once a second, and answers queries."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from shared.child_processes import end_all
from tests.support.needs import needs
from tests.support.redis_server import free_port
from tests.support.waiting import wait_until

_START_SECONDS_MAX = 20.0


def needs_prometheus() -> None:
    needs(
        "prometheus with promtool (Debian: apt install prometheus)",
        shutil.which("prometheus") and shutil.which("promtool"),
    )


class Prometheus:
    """A context. `targets` are lists of addresses by job, `rules` are files."""

    def __init__(self, targets: Mapping[str, Sequence[str]], rules: Sequence[Path] = ()) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="midstream-prometheus-"))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.targets = sum(len(addresses) for addresses in targets.values())
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rule.resolve()) for rule in rules],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(addresses)}]}
                for job, addresses in targets.items()
            ],
        }
        path = self._directory / "prometheus.yml"
        path.write_text(json.dumps(config))  # JSON is YAML
        self._command = [
            *("prometheus", f"--config.file={path}", f"--storage.tsdb.path={self._directory}"),
            *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"),
        ]
        self._log = self._directory / "prometheus.log"
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        self._http = httpx2.AsyncClient(timeout=10.0, trust_env=False)
        self._start()
        try:
            await wait_until(self._is_ready, within_seconds=_START_SECONDS_MAX, what="Prometheus is ready")
        except BaseException as error:
            error.add_note(self._log.read_text()[-2000:])
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            end_all([self._process], within_seconds=10, first_signal=signal.SIGTERM)
        await self._http.aclose()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _start(self) -> None:
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(self._command, stdout=output, stderr=output)

    async def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Evaluates an expression now: labels and value of each series. AssertionError if that fails."""
        response = await self._http.get(f"{self.url}/api/v1/query", params={"query": expression})
        answer = response.json()
        assert answer["status"] == "success", f"{expression}: {answer}"
        result = answer["data"]["result"]
        if answer["data"]["resultType"] == "scalar":
            return [({}, float(result[1]))]
        return [(series["metric"], float(series["value"][1])) for series in result]

    async def value(self, expression: str) -> float:
        """Returns the value of an expression that gives one series."""
        ((_, value),) = await self.query(expression)
        return value

    async def rules(self) -> list[dict[str, Any]]:
        """Returns the rules as Prometheus has loaded and evaluated them."""
        answer = (await self._http.get(f"{self.url}/api/v1/rules")).json()
        return [rule for group in answer["data"]["groups"] for rule in group["rules"]]

    async def until_all_up(self) -> None:
        """Waits until every target has been scraped."""

        async def up() -> bool:
            return len(await self.query("up == 1")) == self.targets

        await wait_until(up, within_seconds=_START_SECONDS_MAX, what="all targets are up")

    async def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "Prometheus ended"
        try:
            return (await self._http.get(f"{self.url}/-/ready")).status_code == 200
        except httpx2.TransportError:
            return False
