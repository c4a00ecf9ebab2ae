"""Releases side by side on one Redis: logs of an earlier one read as they did there, and are continued; what a later one adds is
passed over."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from shared.events import FORMAT
from shared.ids import new_stream_id
from shared.keys import REQUESTS, log_key
from shared.sse import Decoder, Message
from tests.support.system import Answer, Process, System, answer_of
from tests.support.waiting import wait_until

_RECORDED = {
    path.stem: json.loads(path.read_text()) for path in sorted(Path(__file__).parents[1].glob("recordings/logs/*.json"))
}
"""By release, as tests/recordings/record_logs.py wrote them."""
_ENDED = [(release, kind) for release, recorded in _RECORDED.items() for kind in recorded["ended"]]
_UNFINISHED = [(release, kind) for release, recorded in _RECORDED.items() for kind in recorded["unfinished"]]
_TTL_SECONDS = 600


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system() -> AsyncIterator[System]:
    async with System(settings={"lease_seconds": 0.5}) as system:
        yield system


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(("release", "kind"), _ENDED)
async def test_an_earlier_release_s_log_reads_as_it_did_there(system: System, release: str, kind: str) -> None:
    recorded = _RECORDED[release]["ended"][kind]
    await _restore(system, recorded["id"], recorded["entries"])
    response = await system.http.get(system.events_url(recorded["id"]))
    messages = Decoder().feed(response.content)
    assert [[it.id, it.event, it.data] for it in messages if it.event != "live"] == recorded["events"]
    state = await system.state(recorded["id"])
    assert {name: state.get(name) for name in recorded["state"]} == recorded["state"]


@pytest.mark.parametrize(("release", "kind"), _UNFINISHED)
async def test_an_answer_that_an_earlier_release_began_is_finished(system: System, release: str, kind: str) -> None:
    recorded = _RECORDED[release]["unfinished"][kind]
    await _restore(system, recorded["id"], recorded["entries"])
    await system.commands.xadd(REQUESTS, {"id": recorded["id"]})
    reader = await system.follow(recorded["id"]).until_end()
    answer = answer_of(reader.messages)
    assert answer.end == "done"
    assert [it["reason"] for it in answer.restarted] == ["worker_lost"]


async def test_what_a_later_release_adds_is_passed_over(system: System) -> None:
    stream_id = new_stream_id()
    entries = _plain_log()
    entries[0][2] = json.dumps({**json.loads(entries[0][2]), "format": FORMAT, "colour": {"of": "later"}})
    entries[1][2] = json.dumps({**json.loads(entries[1][2]), "colour": "later"})
    entries[2:2] = [["1-1", "later", "anything"]]
    entries[3:] = [
        ["1-2", "t", "Once"],
        ["1-3", "done", json.dumps({"finish_reason": "stop", "usage": None, "colour": 1})],
    ]
    await _restore(system, stream_id, entries)
    reader = await system.follow(stream_id).until_end()
    answer = answer_of(reader.messages)
    assert (answer.items, answer.end) == ([("delta", {}), ("token", "Once")], "done")


async def test_a_log_of_a_newer_format_is_left_to_a_newer_worker(system: System) -> None:
    stream_id = new_stream_id()
    entries = _plain_log()[:2]
    entries[0][2] = json.dumps({**json.loads(entries[0][2]), "format": FORMAT + 1})
    await _restore(system, stream_id, entries)
    await system.commands.xadd(REQUESTS, {"id": stream_id})
    sentence = f"stream {stream_id}: left to another worker"
    await wait_until(lambda: sentence in system.workers[0].logged(), what="the worker's line")
    assert len(await system.commands.xrange(log_key(stream_id))) == len(entries), "it has written to the log"
    assert (await system.state(stream_id))["status"] == "running", "readers can read it all the same"
    await system.http.post(f"{system.gateway_url()}/v1/streams/{stream_id}/cancel")
    await wait_until(lambda: _queue_is_empty(system), what="the request leaves the queue")


async def _restore(system: System, stream_id: str, entries: list[list[str]]) -> None:
    for entry_id, field, value in entries:
        await system.commands.xadd(log_key(stream_id), {field: value}, id=entry_id)
    await system.commands.expire(log_key(stream_id), _TTL_SECONDS)


async def _queue_is_empty(system: System) -> bool:
    return bool(await system.commands.xlen(REQUESTS) == 0)


def _plain_log() -> list[list[Any]]:
    recorded: list[list[Any]] = json.loads(json.dumps(next(iter(_RECORDED.values()))["ended"]["plain"]["entries"]))
    return recorded


async def test_each_process_is_replaced_under_load_and_nothing_is_lost() -> None:
    settings = {"lease_seconds": 1, "worker_drain_seconds": 0.3, "drain_seconds": 0.3}
    async with System(gateways=2, workers=2, settings=settings) as system:
        readers: dict[str, asyncio.Task[Answer]] = {}

        async def begin() -> str:
            gateway = len(readers) % 2
            stream_id = await system.create(simulate={"tokens": 80, "tokens_per_second": 20}, gateway=gateway)
            readers[stream_id] = asyncio.create_task(_read_to_the_end(system, stream_id, gateway))
            return stream_id

        async def begin_at(worker: Process) -> str:
            """Begins answers until this worker has one of them, which goes on for four seconds."""
            for _ in range(100):
                stream_id = await begin()
                await system.until_status(stream_id, "running")
                if await system.worker_of(stream_id) is worker:
                    return stream_id
            raise AssertionError("the worker claims nothing")

        interrupted = []
        for index, worker in enumerate(system.workers):
            for _ in range(9):
                await begin()
            interrupted.append(await begin_at(worker))
            worker.send(signal.SIGTERM)
            await worker.exit_code()
            await system.start_worker(index)
        for index, gateway in enumerate(system.gateways):
            gateway.send(signal.SIGTERM)
            await gateway.exit_code()
            await system.start_gateway(index)
        answers = dict(zip(readers, await asyncio.gather(*readers.values()), strict=True))
        assert {(answer.end, len(answer.tokens)) for answer in answers.values()} == {("done", 80)}
        assert all(answers[stream_id].restarted for stream_id in interrupted)


async def _read_to_the_end(system: System, stream_id: str, gateway: int) -> Answer:
    """Follows a stream as an EventSource behind a load balancer does: after each loss at another gateway."""
    connections: list[list[Message]] = []
    after = ""
    while not connections or not connections[-1] or connections[-1][-1].event not in ("done", "failed", "cancelled"):
        reader = system.follow(stream_id, gateway=gateway, after=after)
        await reader.until_over()
        connections.append([it for it in reader.messages if it.event != "live"])
        after, gateway = reader.last_id, 1 - gateway
        if not connections[-1]:
            await asyncio.sleep(0.05)
    return answer_of(*connections)
