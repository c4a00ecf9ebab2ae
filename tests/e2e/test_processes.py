"""A gateway of several processes: readers are spread over them, and one that dies takes nothing with it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.listening import CAN_SHARE
from midstream.processes import LocalMidstream
from shared.errors import Unusable
from shared.settings import Settings
from tests.support.needs import needs
from tests.support.system import Process, Reader, System, answer_of, environment_of
from tests.support.waiting import wait_until

_UP_SECONDS_MAX = 20.0
_ASKED = 24
"""The number of connections for a question to all processes: that all reach the same of two happens once in 8 million runs."""


@pytest.fixture(autouse=True)
def _spread() -> None:
    needs("a system that spreads connections over processes (Linux)", CAN_SHARE)


def up(gateway: Process) -> list[tuple[int, int]]:
    """Returns number and pid of every child that has been ready so far, in order."""
    found = re.findall(r"process (\d+) is up after .*: pid (\d+)", gateway.logged())
    return [(int(number), int(pid)) for number, pid in found]


async def until_up(gateway: Process, count: int) -> list[tuple[int, int]]:
    """Returns once so many children have been ready; a restarted child counts again."""
    await wait_until(lambda: len(up(gateway)) >= count, within_seconds=_UP_SECONDS_MAX, what=f"{count} are up")
    return up(gateway)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def metrics_dir_of(pid: int) -> Path:
    variables = dict(one.split(b"=", 1) for one in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if one)
    return Path(variables[b"PROMETHEUS_MULTIPROC_DIR"].decode())


_ENDLESS = {"tokens": 5000, "tokens_per_second": 10}
"""Longer than any test: the stream is cancelled when the test has seen enough."""
_ALONE = {"connection": "close"}
"""Makes a request over a new connection, which any of the processes may get."""


async def everywhere(url: str, name: str) -> set[float]:
    """Returns the values of a metric, read over so many connections that every process has answered."""
    values = set()
    async with httpx2.AsyncClient(trust_env=False, verify=False) as http:
        for _ in range(_ASKED):
            text = (await http.get(f"{url}/metrics", headers=_ALONE)).text
            values.add(sum(map(float, re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))))
    return values


async def until_everywhere(url: str, name: str, value: float) -> None:
    """Waits until every process reports this value: plain numbers are copied to the metrics once a second."""

    async def has_value() -> bool:
        return await everywhere(url, name) == {value}

    await wait_until(has_value, what=f"{name} is {value:g} everywhere")


async def nobody_listens(url: str) -> bool:
    async with httpx2.AsyncClient(trust_env=False, verify=False) as http:
        try:
            await http.get(f"{url}/healthz")
        except httpx2.ConnectError:
            return True
        except httpx2.TransportError:
            return False
    return False


async def connections_by_pid(system: System, stream_id: str) -> Counter[int]:
    """Returns from the receipt how many of a stream's connections each process has."""
    response = await system.http.get(f"{system.gateway_url()}/v1/streams/{stream_id}/receipt")
    listed = response.json()["delivered"]["connections"]
    return Counter(int(one["gateway"].rpartition("-")[2]) for one in listed)


async def resume(system: System, stream_id: str, readers: list[Reader], *, gateway: int = 0) -> list[list[Reader]]:
    """Resumes each reader that was cut off; returns the pairs, once each new reader has got new tokens."""
    lives = []
    for one in readers:
        assert one.last_id
        lives.append([one, system.follow(stream_id, gateway=gateway, after=one.last_id)])
    for _, second in lives:
        await second.until_tokens(3)
    return lives


async def assert_whole(system: System, stream_id: str, lives: list[list[Reader]], *, gateway: int = 0) -> None:
    """Ends the stream, and checks that every reader has got all of its text over its connections, in order and nothing twice."""
    response = await system.http.post(f"{system.gateway_url(gateway)}/v1/streams/{stream_id}/cancel")
    text = response.json()["text"]
    assert text
    for life in lives:
        await life[-1].until_end()
        answer = answer_of(*(one.messages for one in life))
        assert (answer.text, answer.end) == (text, "cancelled")


async def test_a_killed_process_is_restarted() -> None:
    async with System(
        settings={"delivery_report_seconds": 0.2, "connections_max": 1000}, gateway_settings={"gateway_processes": 2}
    ) as system:
        gateway, url = system.gateways[0], system.gateway_url()
        (_, killed), (_, left) = sorted(await until_up(gateway, 2))
        stream_id = await system.create(simulate=_ENDLESS)
        readers = [system.follow(stream_id) for _ in range(200)]
        for one in readers:
            await one.until_tokens(3, within_seconds=30)

        async def all_in_receipt() -> bool:
            return sum((await connections_by_pid(system, stream_id)).values()) == 200

        await wait_until(all_in_receipt, what="all connections are in the receipt")
        spread = await connections_by_pid(system, stream_id)
        assert set(spread) == {killed, left}
        assert min(spread.values()) >= 60, spread  # fewer of 200 happen once in 100 million runs
        await until_everywhere(url, "midstream_readers", 200)

        os.kill(killed, signal.SIGKILL)
        await wait_until(lambda: "was ended by SIGKILL" in gateway.logged())
        is_back = False
        while (
            not is_back
        ):  # until then, requests are answered by the other; at least one is made before its log is looked at
            answer = await system.http.get(f"{url}/healthz", headers=_ALONE, timeout=5.0)
            assert answer.status_code == 200
            is_back = len(up(gateway)) >= 3
        number, started = up(gateway)[-1]
        assert (number, runs(started)) == (1, True)
        await wait_until(lambda: sum(one.ended for one in readers) == spread[killed])
        await until_everywhere(url, "midstream_readers", spread[left])
        await until_everywhere(url, "midstream_gateway_processes", 2)
        await until_everywhere(url, "midstream_gateway_process_starts_total", 3)

        cut = [one for one in readers if one.ended]
        lives = await resume(system, stream_id, cut)
        await assert_whole(system, stream_id, [*lives, *([one] for one in readers if one not in cut)])
        assert started in await connections_by_pid(system, stream_id)
        await until_everywhere(url, "midstream_readers", 0)
        # The counts of the killed process are kept: its successor continues them.
        await until_everywhere(url, "midstream_reader_closes_total", 200)


@pytest.mark.alone("they leave within 4 s")
async def test_all_processes_drain_at_the_same_time_and_nothing_is_lost() -> None:
    async with System(gateways=2, gateway_settings={"gateway_processes": 2}) as system:
        first, second = system.gateways
        children = [pid for _, pid in await until_up(first, 2)]
        await until_up(second, 2)
        folder = metrics_dir_of(children[0])
        stream_id = await system.create(simulate=_ENDLESS)
        readers = [system.follow(stream_id) for _ in range(60)]
        for one in readers:
            await one.until_tokens(3)
        began = time.monotonic()
        first.send(signal.SIGTERM)
        assert await first.exit_code() == 0
        assert time.monotonic() - began < 4.0  # a child that must be killed takes longer
        assert not any(runs(pid) for pid in children)
        assert not folder.exists()
        for one in readers:
            await one.until_end()
            assert one.retry_milliseconds is not None
        lives = await resume(system, stream_id, readers, gateway=1)
        await assert_whole(system, stream_id, lives, gateway=1)


async def test_a_stopped_child_is_replaced() -> None:
    async with System(gateway_settings={"gateway_processes": 2}) as system:
        gateway = system.gateways[0]
        (_, one), _ = sorted(await until_up(gateway, 2))
        os.kill(one, signal.SIGTERM)
        await until_up(gateway, 3)
        assert f"process 1 (pid {one}) ended with 0" in gateway.logged()
        assert await everywhere(system.gateway_url(), "midstream_gateway_processes") == {2}


async def test_children_do_not_outlive_a_supervisor_that_is_killed() -> None:
    async with System(gateway_settings={"gateway_processes": 2}) as system:
        gateway, url = system.gateways[0], system.gateway_url()
        children = [pid for _, pid in await until_up(gateway, 2)]
        folder = metrics_dir_of(children[0])
        assert folder.stat().st_mode & 0o777 == 0o700
        stream_id = await system.create(simulate=_ENDLESS)
        reader = system.follow(stream_id)
        await reader.until_tokens(3)
        gateway.kill()
        await wait_until(lambda: not any(map(runs, children)), what="the children have ended")
        assert await nobody_listens(url)
        assert not folder.exists()
        await reader.until_end()  # the response ended properly
        await system.start_gateway(0)
        await assert_whole(system, stream_id, await resume(system, stream_id, [reader]))


async def test_a_second_gateway_cannot_listen_on_the_same_port(tmp_path: Path) -> None:
    async with System(gateway_settings={"gateway_processes": 2}) as system:
        for processes in (1, 2):
            settings = {**system.gateways[0].settings, "gateway_processes": processes}
            second = Process("gateway", settings, tmp_path / f"{processes}.log")
            second.start()
            assert await second.exit_code() == 1
            assert (
                second.logged() == f"gateway: cannot listen on 127.0.0.1:{settings['port']}: Address already in use\n"
            )


async def test_an_error_of_all_processes_is_logged_once(tmp_path: Path) -> None:
    settings = {
        "redis_url": "unix:///nowhere/redis.sock",
        "redis_start_seconds": 0.2,
        "port": 0,
        "gateway_processes": 4,
    }
    gateway = Process("gateway", settings, tmp_path / "gateway.log")
    gateway.start()
    assert await gateway.exit_code(within_seconds=_UP_SECONDS_MAX) == 1
    assert gateway.logged().count("cannot be reached") == 1
    assert gateway.logged().count("ended with 1") == 1
    gateway.assert_no_complaints()


@pytest.fixture
def up_of_two() -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "midstream.cli", "up", "--gateways", "2", "--port", "0", "--provider", "simulated"]
    running = subprocess.Popen(command, env=environment_of({}), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        yield running
    finally:
        running.kill()
        running.wait()
        assert running.stdout is not None
        running.stdout.close()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_midstream_up_starts_the_given_number_of_processes(
    up_of_two: subprocess.Popen[bytes], how: signal.Signals
) -> None:
    assert up_of_two.stdout is not None
    line = (await asyncio.to_thread(up_of_two.stdout.readline)).decode()
    url = line.removeprefix("midstream is up: ").strip()

    async def both() -> Any:
        return await everywhere(url, "midstream_gateway_processes") == {2}

    await wait_until(both, within_seconds=_UP_SECONDS_MAX, what="both count themselves")
    up_of_two.send_signal(how)
    assert await asyncio.to_thread(up_of_two.wait, 10) == (0 if how == signal.SIGTERM else -how)

    async def gone() -> bool:
        return await nobody_listens(url)

    await wait_until(gone, what="nothing listens any more")


def children_of(pid: int, module: str) -> list[int]:
    """Returns the pids of a process's children that run `python -m module`."""
    pids = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [
        child for child in pids if f"-m\0{module}\0".encode() in Path(f"/proc/{child}/cmdline").read_bytes() + b"\0"
    ]


@pytest.fixture
def up_of_one(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Starts `midstream up`, which writes to the file `log`."""
    command = [sys.executable, "-m", "midstream.cli", "up", "--gateways", "1", "--port", "0", "--provider", "simulated"]
    with (tmp_path / "log").open("wb") as output:
        running = subprocess.Popen(command, env=environment_of({}), stdout=output, stderr=output)
    yield running
    running.kill()
    running.wait()


async def test_midstream_up_restarts_ready_processes_with_a_back_off(
    up_of_one: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    def logged() -> str:
        return (tmp_path / "log").read_text()

    await wait_until(lambda: "midstream is up: " in logged(), within_seconds=_UP_SECONDS_MAX)
    for module, name, pause in (
        ("producer", "worker 1", "0.1"),
        ("producer", "worker 1", "0.2"),
        ("gateway", "the gateway", "0.1"),
    ):
        await wait_until(partial(children_of, up_of_one.pid, module), what=name, within_seconds=_UP_SECONDS_MAX)
        (child,) = children_of(up_of_one.pid, module)
        os.kill(child, signal.SIGKILL)  # within 5 s of its start
        line = f'"logger":"midstream","message":"{name} was ended by SIGKILL; restarting it in {pause} s"'
        await wait_until(lambda line=line: line in logged(), what=line)  # type: ignore[misc]
    await wait_until(lambda: logged().count("gateway is up: ") == 2, within_seconds=_UP_SECONDS_MAX)
    assert up_of_one.poll() is None
    up_of_one.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(up_of_one.wait, 10) == 0


def test_midstream_up_ends_when_a_child_never_gets_ready(tmp_path: Path) -> None:
    environment = {**environment_of({}), "MIDSTREAM_LEASE_SECONDS": "none"}  # which its own settings do not show
    with (tmp_path / "log").open("wb") as output:
        midstream = LocalMidstream(
            Settings(port=0, gateway_processes=1), redis_url=None, environment=environment, output=output
        )
        with pytest.raises(Unusable, match=r"^(the gateway|worker 1) ended with 1 during its start$"), midstream:
            pass
