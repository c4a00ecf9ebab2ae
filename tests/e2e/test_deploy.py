"""The processes of each deployment, started here: commands, environments and health checks are those of its files.

Only addresses differ. These tests need neither Docker, systemd nor Kubernetes.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis.asyncio

from midstream.doctor.redis import examined_redis
from shared.api_keys import new_key
from shared.settings import described
from shared.sse import Decoder
from tests.support.deployments import DEPLOY, WAYS, Part, compose
from tests.support.needs import needs
from tests.support.proxies import binary_of
from tests.support.redis_server import free_port
from tests.support.waiting import wait_until

_OURS = {one.env for one in described()}
_PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
_START_SECONDS_MAX = 20.0
_EVENT_BYTES, _THOUSANDS = 100, 600


class Running:
    """One command of a deployment. `others` maps addresses in its files to addresses of the test."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], others: Mapping[str, str]) -> None:
        self._others = others
        self._command = [self._here(one) for one in command]
        inherited = {name: value for name, value in os.environ.items() if name not in _OURS}
        here = {name: self._here(value) for name, value in environment.items()}
        self._environment = {**inherited, **here, "PATH": _PATH}

    async def start(self) -> None:
        # From `/`, as in the image.
        self._process = await asyncio.create_subprocess_exec(*self._command, cwd="/", env=self._environment)

    async def stop(self, how: signal.Signals = signal.SIGTERM, *, within_seconds: float) -> int:
        """Stops the process and returns its exit code. TimeoutError if the deployment would have killed it."""
        self._process.send_signal(how)
        async with asyncio.timeout(within_seconds):
            return await self._process.wait()

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def check(self, command: Sequence[str]) -> int:
        """Runs a health check of this part; returns its exit code."""
        arguments = [self._here(one) for one in command]
        silent = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(*arguments, env=self._environment, stdout=silent, stderr=silent)
        return await process.wait()

    async def until_healthy(self, command: Sequence[str]) -> None:
        async def is_healthy() -> bool:
            assert self._process.returncode is None, f"{shlex.join(self._command)} ended"
            return await self.check(command) == 0

        await wait_until(is_healthy, within_seconds=_START_SECONDS_MAX, what=shlex.join(command))

    def _here(self, text: str) -> str:
        if not self._others:
            return text
        there = "|".join(re.escape(one) for one in sorted(self._others, key=len, reverse=True))
        return re.sub(there, lambda found: self._others[found[0]], text)


@asynccontextmanager
async def running(
    command: Sequence[str], environment: Mapping[str, str], others: Mapping[str, str]
) -> AsyncIterator[Running]:
    one = Running(command, environment, others)
    await one.start()
    try:
        yield one
    finally:
        await one.kill()


@asynccontextmanager
async def redis_as_deployed(directory: Path) -> AsyncIterator[int]:
    """Starts docker-compose.yml's Redis, with deploy/redis/redis.conf, and yields its port once its health check succeeds."""
    needs("redis-server (Debian: apt install redis-server)", shutil.which("redis-server"))
    service = compose()["services"]["redis"]
    port = free_port()
    command = [*shlex.split(service["command"]), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)]
    command += ["--logfile", str(directory / "log")]
    check = service["healthcheck"]["test"][1:]
    assert check[0] == "redis-cli"
    async with running(command, {}, {"/etc/redis": f"{DEPLOY}/redis"}) as one:
        await one.until_healthy(["redis-cli", "-p", str(port), *check[1:]])
        yield port
        assert await one.stop(within_seconds=10) == 0
        assert await one.check(["redis-cli", "-p", str(port), *check[1:]]) != 0


async def test_the_cluster_of_compose(tmp_path: Path) -> None:
    """The profile's commands as they are, but for the addresses; then `midstream doctor --redis`."""
    needs("redis-server (Debian: apt install redis-server)", shutil.which("redis-server"))
    services = compose()["services"]
    nodes = {name: one for name, one in services.items() if re.fullmatch(r"redis-\d", name)}
    places = {one["networks"]["redis-cluster"]["ipv4_address"]: free_port() for one in nodes.values()}
    shell, options, script = services["redis-cluster"]["command"]
    for address, port in places.items():
        script = script.replace(f"-h {address}", f"-p {port}").replace(f"{address}:6379", f"127.0.0.1:{port}")
    assert "172." not in script
    async with AsyncExitStack() as stack:
        for one, port in zip(nodes.values(), places.values(), strict=True):
            folder = tmp_path / str(port)
            folder.mkdir()
            own = ["--port", str(port), "--cluster-port", str(free_port()), "--bind", "127.0.0.1", "--dir", str(folder)]
            command = [*shlex.split(one["command"]), *own, "--logfile", str(folder / "log")]
            server = await stack.enter_async_context(running(command, {}, {"/etc/redis": f"{DEPLOY}/redis"}))
            await server.until_healthy(["redis-cli", "-p", str(port), *one["healthcheck"]["test"][2:]])
        for _ in range(2):  # at its next start it leaves the cluster as it is
            making = await asyncio.create_subprocess_exec(shell, options, script, stdout=subprocess.PIPE)
            printed, _ = await asyncio.wait_for(making.communicate(), 30)
            assert making.returncode == 0, printed.decode()
        url = f"redis+cluster://127.0.0.1:{next(iter(places.values()))}"

        async def served() -> bool:
            report = await examined_redis(url, role=None, progress=lambda activity: None)
            found = {one.check: one for one in report.findings}
            return not report.faults and found["replicas"].figures["replicas"] == dict.fromkeys(report.servers, 1)

        await wait_until(served, within_seconds=20, what="the cluster is as the doctor wants it")


async def ask(http: httpx2.AsyncClient, url: str, tokens: int, tokens_per_second: int = 0) -> str:
    body = {
        "messages": [{"role": "user", "content": "hello"}],
        "simulate": {"tokens": tokens, "tokens_per_second": tokens_per_second},
    }
    created = await http.post(f"{url}/v1/streams", json=body)
    assert created.status_code == 201, created.text
    return str(created.json()["id"])


@pytest.mark.parametrize("name", WAYS)
async def test_each_deployment_s_processes_answer_and_stop_in_time(name: str, tmp_path: Path) -> None:
    needs("curl (Debian: apt install curl)", shutil.which("curl"))
    way = WAYS[name]()
    async with AsyncExitStack() as stack:
        redis_port = await stack.enter_async_context(redis_as_deployed(tmp_path))
        gateway_port, worker_port = free_port(), free_port()
        others = {
            "redis://redis:6379": f"redis://127.0.0.1:{redis_port}",
            "redis://midstream-redis:6379": f"redis://127.0.0.1:{redis_port}",
            "redis://127.0.0.1:6379": f"redis://127.0.0.1:{redis_port}",
            "/opt/midstream/bin/python": sys.executable,
            way.gateway_port: str(gateway_port),
            way.worker_port: str(worker_port),
        }
        if way.health_port != way.gateway_port:
            others[way.health_port] = str(free_port())
        key = new_key()
        # The files leave these to the user.
        keys = {
            "MIDSTREAM_TOKEN_KEYS": "a-secret-of-this-test-0123456789abcdef",
            "MIDSTREAM_API_KEYS": f"test create,read {key}",
        }

        async def part(one: Part) -> Running:
            return await stack.enter_async_context(running(one.command, {**one.environment, **keys}, others))

        gateway, worker = await part(way.gateway), await part(way.worker)
        for one, described in ((gateway, way.gateway), (worker, way.worker)):
            for check in described.checks:
                await one.until_healthy(check)
        http = await stack.enter_async_context(httpx2.AsyncClient(timeout=30.0, trust_env=False))
        url = f"http://127.0.0.1:{gateway_port}"
        stranger = await http.post(f"{url}/v1/streams", json={"messages": [{"role": "user", "content": "hello"}]})
        assert stranger.status_code == (201 if name == "compose" else 401)
        http.headers["authorization"] = f"Bearer {key}"
        brief = await ask(http, url, tokens=30)
        assert (await http.get(f"{url}/v1/streams/{brief}?wait=20")).json()["status"] == "completed"

        # A stopping worker finishes its answer; a stopping gateway tells its reader to reconnect.
        long = await ask(http, url, tokens=150, tokens_per_second=60)
        async with http.stream("GET", f"{url}/v1/streams/{long}/events") as response:
            decoder, tokens, ending = Decoder(), 0, None
            async for data in response.aiter_bytes():
                tokens += sum(message.event == "message" for message in decoder.feed(data))
                if tokens and ending is None:
                    ending = asyncio.create_task(worker.stop(within_seconds=way.worker.stop_seconds))
        assert tokens == 150
        assert ending is not None
        assert await ending == 0
        waiting = await ask(http, url, tokens=10)  # no worker generates it any more
        async with http.stream("GET", f"{url}/v1/streams/{waiting}/events") as response:
            assert await gateway.stop(within_seconds=way.gateway.stop_seconds) == 0
            assert b"retry:" in await response.aread()
        for one, described in ((gateway, way.gateway), (worker, way.worker)):
            for check in described.checks:
                if "--retry" not in check:  # systemd's check waits for a start, and would not return
                    assert await one.check(check) != 0


async def test_nginx_as_compose_starts_it(tmp_path: Path) -> None:
    """Its shell script and both configurations. Debian's nginx does not know `resolve`, so that word is removed."""
    needs("nginx (Debian: apt install nginx)", binary_of("nginx"))
    needs("wget (Debian: apt install wget)", shutil.which("wget"))
    service, way = compose()["services"]["nginx"], WAYS["compose"]()
    await asyncio.to_thread(tmp_path.chmod, 0o755)  # if run as root, nginx's processes have another user
    async with AsyncExitStack() as stack:
        redis_port = await stack.enter_async_context(redis_as_deployed(tmp_path))
        gateway_port, port = free_port(), free_port()
        parts = {"redis://redis:6379": f"redis://127.0.0.1:{redis_port}", "8000": str(gateway_port)}
        gateway = await stack.enter_async_context(running(way.gateway.command, way.gateway.environment, parts))
        await gateway.until_healthy(way.gateway.checks[0])
        main = (DEPLOY / "nginx" / "container.conf").read_text().replace("/tmp/", f"{tmp_path}/")
        (tmp_path / "container.conf").write_text(main)
        others = {
            "/etc/midstream/container.conf": f"{tmp_path}/container.conf",
            "/etc/midstream/": f"{DEPLOY}/nginx/",
            "/tmp/midstream.conf": f"{tmp_path}/midstream.conf",
            "server gateway:8000 max_fails=0 resolve": f"server 127.0.0.1:{gateway_port} max_fails=0",
            "listen 8000": f"listen 127.0.0.1:{port}",
            "127.0.0.1:8000/v1/probe": f"127.0.0.1:{port}/v1/probe",
        }
        nginx = await stack.enter_async_context(running(service["command"], {}, others))
        check = service["healthcheck"]["test"][1:]
        await nginx.until_healthy(check)
        worker = await stack.enter_async_context(running(way.worker.command, way.worker.environment, parts))
        http = await stack.enter_async_context(httpx2.AsyncClient(timeout=30.0, trust_env=False))
        url = f"http://127.0.0.1:{port}"
        stream_id = await ask(http, url, tokens=30)
        assert (await http.get(f"{url}/v1/streams/{stream_id}?wait=20")).json()["status"] == "completed"
        for path in ("/", "/metrics", "/v1/overview", "/readyz"):
            assert (await http.get(f"{url}{path}")).status_code == 404
        rebound = await http.get(f"{url}/v1/models", headers={"host": "rebound.example"})
        assert rebound.status_code == 421
        assert await worker.stop(within_seconds=way.worker.stop_seconds) == 0
        # Idle or not, SIGQUIT lets it end within its time.
        stream_id = await ask(http, url, tokens=10)
        async with http.stream("GET", f"{url}/v1/streams/{stream_id}/events") as response:
            assert response.status_code == 200
            how = signal.Signals[service["stop_signal"]]
            assert await nginx.stop(how, within_seconds=float(service["stop_grace_period"].removesuffix("s"))) == 0
        assert await nginx.check(check) != 0
        assert await gateway.stop(within_seconds=way.gateway.stop_seconds) == 0


async def slow_subscriber(port: int, commands: Any) -> int:
    """Publishes 60 MB (70,000 events a second for 8.6 s) to a subscriber that does not read; returns how often it was still connected."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"SSUBSCRIBE slow\r\n")
    await reader.readuntil(b":1\r\n")
    thousand = b"x" * (_EVENT_BYTES * 1000)
    try:
        return sum([await commands.execute_command("SPUBLISH", "slow", thousand) for _ in range(_THOUSANDS)])
    finally:
        writer.close()


async def test_redis_gets_the_configuration_we_need(tmp_path: Path) -> None:
    async with redis_as_deployed(tmp_path) as port, redis.asyncio.Redis(port=port, decode_responses=True) as commands:
        configuration = await commands.config_get("maxmemory-policy", "appendonly", "save")
        assert configuration == {"maxmemory-policy": "noeviction", "appendonly": "yes", "save": ""}
        assert await slow_subscriber(port, commands) == _THOUSANDS
        await commands.config_set("client-output-buffer-limit", "pubsub 32mb 8mb 60")  # the default, to compare with
        assert await slow_subscriber(port, commands) < _THOUSANDS
