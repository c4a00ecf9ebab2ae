"""Workers and gateways that are killed, frozen or stopped while streams run."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import pytest

from shared.keys import log_key
from tests.support.system import Process, Reader, System, answer_of
from tests.support.waiting import wait_until

LEASE_SECONDS = 1
SETTINGS = {"lease_seconds": LEASE_SECONDS}
TALK = {"tokens": 120, "tokens_per_second": 80}


async def stream_in_mid_answer(
    system: System, policy: str = "restart", *, seen: int = 30
) -> tuple[str, Reader, Process]:
    """Returns a stream in mid-answer, its reader and its worker."""
    stream_id = await system.create("take over", simulate=TALK, midstream={"on_interrupt": policy})
    reader = system.follow(stream_id)
    await reader.until_tokens(seen)
    return stream_id, reader, await system.worker_of(stream_id)


async def uninterrupted(system: System) -> str:
    """Returns the text of an undisturbed run."""
    stream_id = await system.create("take over", simulate={"tokens": TALK["tokens"], "tokens_per_second": 0})
    return str((await system.state(stream_id, wait_seconds=20))["text"])


async def ids_in_log(system: System, stream_id: str) -> list[bytes]:
    return [entry_id for entry_id, _ in await system.commands.xrange(log_key(stream_id))]


@pytest.mark.parametrize("policy", ["restart", "continue", "fail"])
async def test_worker_killed_in_mid_answer(policy: str) -> None:
    async with System(workers=2, settings=SETTINGS) as system:
        expected = await uninterrupted(system)
        stream_id, reader, worker = await stream_in_mid_answer(system, policy)
        worker.kill()
        event = await reader.until_event("failed" if policy == "fail" else "restarted")
        answer = answer_of((await reader.until_end()).messages)
        state = await system.state(stream_id)
        assert answer.text == state["text"]
        if policy == "fail":
            assert (event["code"], event["retryable"]) == ("worker_lost", True)
            assert (state["status"], state["error"]) == ("failed", event)
            assert len(answer.tokens) >= 30
            assert expected.startswith(answer.text)
        else:
            assert (answer.end, answer.text) == ("done", expected)
            assert (event["attempt"], event["reason"]) == (2, "worker_lost")
            kept = max(int(one.id.split("-")[1]) for one in reader.messages if one.id.startswith("1-"))
            assert event["base"] == (kept if policy == "continue" else 0)


async def test_a_reader_that_was_disconnected_during_the_takeover() -> None:
    """The reader resumes with an id of the first attempt, and gets the restart."""
    async with System(gateways=2, workers=2, settings=SETTINGS) as system:
        stream_id, reader, worker = await stream_in_mid_answer(system)
        await reader.leave()
        worker.kill()
        await system.until_status(stream_id, "completed")
        rest = await system.follow(stream_id, gateway=1, after=reader.last_id).until_end()
        answer = answer_of(reader.messages, rest.messages)
        assert (answer.end, answer.text) == ("done", (await system.state(stream_id))["text"])
        assert [one["base"] for one in answer.restarted] == [0]


@pytest.mark.parametrize("meanwhile", ["taken over", "deleted"])
async def test_worker_frozen_past_its_lease_writes_nothing_more(meanwhile: str) -> None:
    async with System(workers=2, settings=SETTINGS) as system:
        stream_id, reader, worker = await stream_in_mid_answer(system)
        worker.send(signal.SIGSTOP)
        await reader.until_event("restarted")
        first_attempt = [one for one in await ids_in_log(system, stream_id) if one.startswith(b"1-")]
        if meanwhile == "deleted":
            url = f"{system.gateway_url()}/v1/streams/{stream_id}"
            assert (await system.http.delete(url)).status_code == 204
        worker.send(signal.SIGCONT)
        await wait_until(lambda: f"stream {stream_id}: " in worker.logged(), what="the worker notices its fence")
        assert f"stream {stream_id}: taken over by another" in worker.logged() or (
            f"stream {stream_id}: ended by another" in worker.logged()
        )
        await reader.until_end()
        ids = await ids_in_log(system, stream_id)
        if meanwhile == "deleted":
            assert len(ids) == 1
            assert (await system.http.get(url)).status_code == 404
        else:
            assert [one for one in ids if one.startswith(b"1-")] == first_attempt
            answer = answer_of(reader.messages)
            assert (answer.end, len(answer.tokens)) == ("done", TALK["tokens"])
        again = await system.create("and the worker goes on", simulate={"tokens": 3})
        assert (await system.state(again, wait_seconds=10))["status"] == "completed"


async def test_worker_asked_to_stop_finishes() -> None:
    async with System(settings=SETTINGS) as system:
        _, reader, worker = await stream_in_mid_answer(system)
        worker.send(signal.SIGTERM)
        await wait_until(lambda: "stopping: " in worker.logged(), what="the worker takes nothing more")
        waiting = await system.create("for the next worker", simulate={"tokens": 3})
        answer = answer_of((await reader.until_end()).messages)
        assert (answer.end, len(answer.tokens), answer.restarted) == ("done", TALK["tokens"], [])
        assert await worker.exit_code() == 0
        assert (await system.state(waiting))["status"] == "queued"
        await system.start_worker(0)
        assert (await system.state(waiting, wait_seconds=10))["status"] == "completed"


async def test_worker_asked_to_stop_hands_back() -> None:
    async with System(workers=2, settings={"lease_seconds": 20, "worker_drain_seconds": 0}) as system:
        expected = await uninterrupted(system)
        _, reader, worker = await stream_in_mid_answer(system, "continue")
        worker.send(signal.SIGTERM)
        assert await worker.exit_code() == 0
        answer = answer_of((await reader.until_end()).messages)  # long before the lease would have expired
        assert (answer.end, answer.text) == ("done", expected)
        assert len(answer.restarted) == 1
        assert answer.restarted[0]["base"] >= 30


async def test_a_request_that_kills_every_worker_ends() -> None:
    async with System(settings={**SETTINGS, "attempts_max": 2}) as system:
        stream_id, reader, _ = await stream_in_mid_answer(system)
        for _ in range(2):
            system.workers[0].kill()
            await system.start_worker(0)
            await wait_until(lambda: len(reader.named("restarted")) + len(reader.named("failed")) >= 1, what="told")
        failed = await reader.until_event("failed")
        assert failed["code"] == "attempts_exhausted"
        assert (await system.state(stream_id))["status"] == "failed"


async def test_no_worker_at_all() -> None:
    async with System(workers=0, settings={"queue_seconds": 1, "sweep_seconds": 0.5}) as system:
        stream_id = await system.create()
        reader = system.follow(stream_id)
        answer = answer_of((await reader.until_end()).messages)
        assert (answer.end, answer.end_data["code"]) == ("failed", "queue_timeout")
        assert answer.end_data["retryable"] is True
        assert (await system.state(stream_id))["error"]["code"] == "queue_timeout"


async def test_all_workers_die_in_mid_answer() -> None:
    async with System(settings={**SETTINGS, "orphan_seconds": 2, "sweep_seconds": 0.5}) as system:
        _, reader, worker = await stream_in_mid_answer(system)
        worker.kill()
        answer = answer_of((await reader.until_end(within_seconds=10.0)).messages)
        assert (answer.end, answer.end_data["code"]) == ("failed", "worker_lost")
        assert len(answer.tokens) >= 30


@pytest.mark.alone("it leaves within a second, with 200 readers of this process")
async def test_a_stopping_gateway_makes_its_readers_reconnect() -> None:
    streams, readers_each = 20, 10
    async with System(gateways=2) as system:
        simulate = {"tokens": 80, "tokens_per_second": 20}
        ids = [await system.create(f"drain {number}", simulate=simulate) for number in range(streams)]
        readers = [(stream_id, system.follow(stream_id)) for stream_id in ids for _ in range(readers_each)]
        await wait_until(
            lambda: all(len(one.messages) > 10 for _, one in readers), within_seconds=20.0, what="all read"
        )
        assert await system.metric("midstream_readers") == streams * readers_each

        gateway = system.gateways[0]
        signalled_at = time.monotonic()
        gateway.send(signal.SIGTERM)
        code, seconds = await asyncio.to_thread(_exit_of, gateway, signalled_at)
        assert code == 0
        assert seconds < 1.0
        for _, reader in readers:
            await reader.until_end(within_seconds=5.0)
            last_lines = bytes(reader.body).rpartition(b"\n\n")[2].split(b"\n")
            assert last_lines[-2].startswith(b"retry: "), last_lines  # perhaps behind a comment that kept it alive
            assert 500 <= (reader.retry_milliseconds or 0) <= 2000
        assert len({reader.retry_milliseconds for _, reader in readers}) > 20, "the readers would all come at once"

        resumed = [(one, system.follow(stream_id, gateway=1, after=one.last_id)) for stream_id, one in readers]
        texts: dict[str, Any] = {
            stream_id: (await system.state(stream_id, gateway=1, wait_seconds=20))["text"] for stream_id in ids
        }
        for (stream_id, before), (_, after) in zip(readers, resumed, strict=True):
            answer = answer_of(before.messages, (await after.until_end()).messages)
            assert (answer.end, len(answer.tokens)) == ("done", 80)
            assert answer.text == texts[stream_id]


def _exit_of(process: Process, since: float) -> tuple[int, float]:
    """Returns the exit code, and how many seconds after `since` the process ended; in a thread, so that readers do not delay the clock."""
    code = asyncio.run(process.exit_code(within_seconds=10.0))
    return code, time.monotonic() - since


async def test_gateway_killed_and_readers_resume_on_the_other() -> None:
    async with System(gateways=2) as system:
        stream_id = await system.create("kill", simulate=TALK)
        reader = system.follow(stream_id)
        await reader.until_tokens(40)
        system.gateways[0].kill()
        await wait_until(lambda: reader.ended, what="the connection is gone")
        assert reader.error is not None
        rest = await system.follow(stream_id, gateway=1, after=reader.last_id).until_end()
        answer = answer_of(reader.messages, rest.messages)
        assert (answer.end, len(answer.tokens)) == ("done", TALK["tokens"])
        assert answer.text == (await system.state(stream_id, gateway=1))["text"]


@pytest.mark.alone("they go on within 3 s")
async def test_by_default_all_readers_of_a_killed_worker_go_on_within_three_seconds() -> None:
    async with System(workers=2) as system:
        ids = [
            await system.create(f"{number}", simulate={"tokens": 60, "tokens_per_second": 10}) for number in range(150)
        ]
        readers = {stream_id: system.follow(stream_id) for stream_id in ids}
        for reader in readers.values():
            await reader.until_tokens(2)
        workers = {stream_id: await system.worker_of(stream_id) for stream_id in ids}
        killed = max(system.workers, key=list(workers.values()).count)
        orphans = [readers[stream_id] for stream_id in ids if workers[stream_id] is killed]
        assert len(orphans) > 64, "more than one look takes over"
        killed.kill()
        killed_at = time.monotonic()
        await wait_until(lambda: all(one.named("restarted") for one in orphans), what="all go on")
        assert time.monotonic() - killed_at < 3.0
        assert not any(one.named("restarted") for one in readers.values() if one not in orphans)
        for stream_id in ids:
            await system.http.post(f"{system.gateway_url()}/v1/streams/{stream_id}/cancel")


async def test_a_redis_that_stood_still_for_longer_than_a_lease_makes_no_worker_dead() -> None:
    """No worker could renew its leases, and the first command that Redis carries out again may be a look for expired ones."""
    async with System(workers=3, settings=SETTINGS) as system:
        simulate = {"tokens": 100, "tokens_per_second": 20}
        readers = [system.follow(await system.create(f"{number}", simulate=simulate)) for number in range(20)]
        for reader in readers:
            await reader.until_tokens(5)
        system.redis.freeze()
        await asyncio.sleep(1.5 * LEASE_SECONDS)  # what is tested is this time
        system.redis.thaw()
        for reader in readers:
            answer = answer_of((await reader.until_end()).messages)
            assert (answer.end, answer.restarted) == ("done", [])
        assert any("no lease counts as expired" in worker.logged() for worker in system.workers)
