"""`python -m producer`: one worker process. SIGTERM drains it: it finishes its answers, or hands them back."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import resource
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import uvloop

from producer.metrics import WorkerMeasuring
from producer.presence import presence
from producer.provider import Provider, provider_name
from producer.simulated_provider import SimulatedProvider
from producer.worker import BLOCK_SECONDS, Worker
from shared.errors import Unusable
from shared.event_log import EventLog
from shared.grants import check_grants, until_up
from shared.logs import set_up_logging
from shared.queue import RequestQueue
from shared.receipt import DeliveryNotes
from shared.redis_retry import until_redis_answers
from shared.redis_server import (
    OrdinaryCommands,
    RedisAddress,
    check,
    complaint_about,
    eviction_policy,
    ordinary_client,
)
from shared.resp import RespConnection
from shared.settings import Settings
from shared.tracing import set_up_tracing
from shared.version import VERSION

if TYPE_CHECKING:
    from shared.spans import Tracing

logger = logging.getLogger("producer")

_LAST_SPANS_SECONDS = 0.5
"""What a collector gets to take the last spans: of a worker that has drained, no reader waits for that."""
_OTHER_FILES = 200
"""What a worker has open beside a connection per answer: idle connections to the provider, Redis, its log."""


def _raise_open_files(wanted: int) -> None:
    """Many systems allow a process 1024 open files at first, which is fewer than a worker may need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        if most < wanted:
            logger.warning("only %d files may be open at once, %d are wanted: raise it (ulimit -n)", most, wanted)


def make_provider(settings: Settings) -> Provider:
    """The provider that the settings name. Raises Unusable."""
    name = provider_name(settings)
    if name == "simulated":
        why = "as asked for" if settings.provider else "neither OPENAI_API_KEY nor OPENAI_BASE_URL is set"
        logger.warning("answers are SIMULATED: %s", why)
        return SimulatedProvider()
    from producer.openai_provider import OpenAIProvider  # takes a quarter of a second, so only who needs it waits

    return OpenAIProvider(
        api_key=settings.openai_api_key,
        base_url=settings.openai_base_url,
        default_model=settings.default_model,
        connections_max=settings.worker_concurrency,
    )


async def work(settings: Settings, ready_fd: int | None, tracing: Tracing | None = None) -> None:
    """Run one worker until it is asked to stop; a byte goes to `ready_fd` once it is up. Raises Unusable."""
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    provider = make_provider(settings)
    server = await check(settings.redis_url, within_seconds=settings.redis_start_seconds)
    address = RedisAddress.parse(settings.redis_url)
    connection = RespConnection(
        address,
        name="worker",
        reply_seconds=settings.redis_reply_seconds,
        reconnect_seconds_max=settings.reconnect_seconds_max,
        scripts=(*EventLog.SCRIPTS, *RequestQueue.SCRIPTS),
    )
    connection.start()
    try:
        await until_up(connection, address, within_seconds=settings.redis_start_seconds)
        await check_grants(connection, "worker", address, within_seconds=settings.redis_start_seconds)
    except BaseException:
        await connection.close()
        await provider.close()
        raise
    complaint = complaint_about(await until_redis_answers(eviction_policy, connection))
    if complaint:
        logger.error(complaint)
    log = EventLog(
        connection,
        log_ttl_seconds=settings.log_ttl_seconds,
        ended_ttl_seconds=settings.ended_ttl_seconds,
        tombstone_ttl_seconds=settings.tombstone_ttl_seconds,
    )
    queue = RequestQueue(
        connection,
        ttl_seconds=settings.log_ttl_seconds,
        requests_max=settings.queue_requests_max,
        consumer=name,
    )
    # XREADGROUP BLOCK has a connection of its own. It, too, may be dead without a word: then nothing would be claimed any more.
    claims = ordinary_client(settings.redis_url, reply_seconds=BLOCK_SECONDS + settings.redis_reply_seconds)
    worker = Worker(
        name=name,
        log=log,
        queue=queue,
        deliveries=DeliveryNotes(connection),
        blocking=OrdinaryCommands(claims),
        provider=provider,
        settings=settings,
        tracing=tracing,
    )
    measuring = WorkerMeasuring(connection, settings, worker.tally)
    metrics_url = await measuring.serve()
    measuring.start()
    there = presence(worker, connection, name=name, provider=provider.name, capacity=settings.worker_concurrency)
    there.start()
    loop = asyncio.get_running_loop()
    for wish in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(wish, worker.drain)
    gc.collect()
    gc.freeze()  # what is there now stays for good: the collector need not look at it again
    # Tokens make small tuples and futures by the ten thousand, and hardly ever a cycle: at the default of 700 the
    # collector took a twelfth of the work.
    gc.set_threshold(50_000, 20, 50)
    logger.info("worker %s is up: %s, %s, %d at once", name, server, provider.name, settings.worker_concurrency)
    if metrics_url is not None:
        logger.info("metrics: %s", metrics_url)
    if ready_fd is not None:
        os.write(ready_fd, b"1")
        os.close(ready_fd)
    try:
        await worker.run()
    finally:
        await there.close()
        await measuring.close()
        await provider.close()
        await claims.aclose()
        await connection.close()
        if tracing is not None:
            await tracing.close(_LAST_SPANS_SECONDS)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m producer",
        description="One Midstream worker: takes requests from the queue and generates their answers. "
        "Its settings are environment variables: `midstream settings` lists them.",
    )
    parser.add_argument("--version", action="version", version=f"midstream {VERSION}")
    parser.add_argument("--log-format", choices=("json", "text"), help="how lines look on standard error")
    parser.add_argument("--ready-fd", type=int, metavar="N", help="write a byte to this descriptor when it is up")
    told = parser.parse_args(arguments)
    try:
        settings = Settings.from_environment(os.environ)
        set_up_logging(settings.log_level, told.log_format or settings.log_format)
        _raise_open_files(settings.worker_concurrency + _OTHER_FILES)
        uvloop.run(work(settings, told.ready_fd, set_up_tracing("midstream-worker", os.environ)))
    except Unusable as error:
        print(f"producer: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
