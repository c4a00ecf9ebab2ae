"""`python -m producer`: one worker process. SIGTERM drains it: it finishes its answers, or hands them back."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import platform
import resource
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import uvloop
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from producer.loading import provider_of
from producer.metrics import WorkerMeasuring
from producer.named_providers import NamedProviders
from producer.presence import presence
from producer.provider import Provider
from producer.run import unstopped
from producer.worker import BLOCK_SECONDS, Worker
from shared.accounts import Accounts
from shared.archive import archive_of
from shared.connections import RedisConnection, check, connection_to
from shared.due_list import DueList
from shared.errors import Unusable
from shared.event_log import EventLog
from shared.grants import check_grants, until_up
from shared.lanes import lanes_of
from shared.logs import set_up_logging
from shared.metrics import BUILD_INFO
from shared.metrics_server import Answer, MetricsServer
from shared.provider_kinds import SIMULATED, check_for_worker, provider_kinds
from shared.queue import RequestQueue
from shared.receipt import DeliveryNotes
from shared.redis_retry import until_redis_answers
from shared.redis_server import complaint_about, eviction_policy
from shared.replicas import ReplicatedCommands
from shared.running_parts import RunningParts
from shared.settings import Settings, unknown
from shared.tracing import set_up_tracing
from shared.unkept import Unkept
from shared.usage import Usage
from shared.version import VERSION
from shared.webhooks import Secrets, WebhookStore

if TYPE_CHECKING:
    from producer.archiving import Archiving
    from producer.webhooks import Webhooks
    from shared.archive.store import Archive
    from shared.spans import Tracing

logger = logging.getLogger("producer")

_LAST_SPANS_SECONDS = 0.5
"""How long the trace collector may take for the last spans; no reader waits for a worker that has drained."""
_OTHER_FILES = 200
"""Open beside one connection per answer: idle connections to the provider, Redis, the log output."""


def _raise_open_files(needed: int) -> None:
    """Raises the limit of open files, as far as the system allows: many begin with 1024, fewer than a worker may need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        if most < needed:
            logger.warning(
                "only %d files may be open at once, and up to %d are needed: raise the limit (ulimit -n)", most, needed
            )


def make_provider(settings: Settings) -> Provider:
    """Returns the providers that the settings name. Raises Unusable."""
    check_for_worker(settings)
    kinds = provider_kinds(settings)
    if SIMULATED in kinds.values():
        chosen = settings.provider or settings.providers
        reason = "the settings say so" if chosen else "neither OPENAI_API_KEY nor OPENAI_BASE_URL is set"
        logger.warning("answers are SIMULATED: %s", reason)
    return NamedProviders({name: provider_of(kind, settings) for name, kind in kinds.items()})


def _archiving(
    archive: Archive, connection: RedisConnection, log: EventLog, deliveries: DeliveryNotes, settings: Settings
) -> Archiving:
    from producer.archiving import Archiving  # imports the database's libraries

    unkept = Unkept(connection, log_ttl_seconds=settings.log_ttl_seconds, ended_ttl_seconds=settings.ended_ttl_seconds)
    return Archiving(archive, unkept, connection, log, deliveries, settings)


def _webhooks(
    secrets: Secrets,
    connection: RedisConnection,
    replicated: ReplicatedCommands | None,
    log: EventLog,
    deliveries: DeliveryNotes,
    settings: Settings,
) -> Webhooks:
    from producer.webhook_post import Poster
    from producer.webhooks import Webhooks

    store = WebhookStore(connection, log_ttl_seconds=settings.log_ttl_seconds, replicated=replicated)
    return Webhooks(store, Poster(settings), secrets, log, deliveries, settings)


def _webhook_secrets(settings: Settings) -> Secrets:
    """Returns the secrets that sign webhooks; none: this worker sends none. Raises Unusable where webhooks are wanted."""
    secrets = Secrets.of(settings.webhook_secrets)
    if not secrets and (settings.webhook_url or settings.webhook_hosts):
        raise Unusable(
            "MIDSTREAM_WEBHOOK_SECRETS is missing, without which no webhook can be signed: `midstream webhooks secret --new` makes one"
        )
    return secrets


async def work(settings: Settings, ready_fd: int | None, tracing: Tracing | None = None) -> None:
    """Runs one worker until a signal stops it; writes a byte to `ready_fd` once it takes requests. Raises Unusable."""
    try:
        async with RunningParts() as running:
            worker = await _start(running, settings, tracing)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, worker.drain)
            _spare_the_garbage_collector()
            if ready_fd is not None:
                os.write(ready_fd, b"1")
                os.close(ready_fd)
            await worker.run()
    finally:
        if unstopped():
            logger.warning("leaving %d generators that do not stop", unstopped())
            logging.shutdown()
            os._exit(0)  # asyncio would wait for them for ever


class _Traces:
    """The traces, as a part of the process."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    async def close(self) -> None:
        await self._tracing.close(_LAST_SPANS_SECONDS)


async def _start(running: RunningParts, settings: Settings, tracing: Tracing | None) -> Worker:
    """Connects, and builds and starts the parts of a worker. They are closed in reverse: Redis and traces last. Raises Unusable."""
    if tracing is not None:
        running.add(_Traces(tracing))
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    provider = running.add(make_provider(settings))
    archive, webhook_secrets = archive_of(settings), _webhook_secrets(settings)
    server = await check(settings)
    scripts = (*EventLog.SCRIPTS, *RequestQueue.SCRIPTS, *DueList.SCRIPTS, Accounts.SETTLE.source)
    connection = connection_to(settings, name="worker", scripts=scripts, gathers=True)
    durable = connection_to(settings, name="durable", scripts=EventLog.SCRIPTS) if settings.min_replicas else None
    running.add_together(connection, *([] if durable is None else [durable]))
    connection.start()
    if durable is not None:
        durable.start()
    seconds = settings.redis_start_seconds
    await until_up(connection, within_seconds=seconds)
    await check_grants(connection, "worker", within_seconds=seconds, min_replicas=settings.min_replicas)
    complaint = complaint_about(await until_redis_answers(eviction_policy, connection))
    if complaint:
        logger.error(complaint)
    replicated = None if durable is None else ReplicatedCommands(durable, settings.min_replicas)
    log = EventLog(
        connection,
        log_ttl_seconds=settings.log_ttl_seconds,
        ended_ttl_seconds=settings.unkept_ttl_seconds,
        tombstone_ttl_seconds=settings.tombstone_ttl_seconds,
        replicated=replicated,
    )
    # XREADGROUP BLOCK needs a connection of its own. Its time limit ends one that died silently: else nothing more would be claimed.
    lanes = [
        (queue, connection.dedicated(queue.key, name="claims", block_seconds=BLOCK_SECONDS))
        for queue in lanes_of(connection, settings, consumer=name)
    ]
    running.add_together(*(claims for _, claims in lanes))
    for _, claims in lanes:
        claims.start()
    deliveries = DeliveryNotes(connection)
    archiving = None if archive is None else _archiving(archive, connection, log, deliveries, settings)
    webhooks = (
        _webhooks(webhook_secrets, connection, replicated, log, deliveries, settings) if webhook_secrets else None
    )
    worker = Worker(
        name=name,
        log=log,
        lanes=lanes,
        deliveries=deliveries,
        usage=Usage(Accounts(connection, settings), log, deliveries, settings),
        provider=provider,
        settings=settings,
        tracing=tracing,
        archiving=archiving,
        webhooks=webhooks,
    )
    measuring = WorkerMeasuring(connection, settings, worker.tally)

    async def metrics() -> Answer:
        measuring.handover.hand_over()
        return Answer(generate_latest(), content_type=CONTENT_TYPE_LATEST)

    async def healthz() -> Answer:
        return Answer(b"ok\n")

    running.add(measuring).start()
    metrics_url = await running.add(MetricsServer({"/metrics": metrics, "/healthz": healthz}, settings)).open()
    BUILD_INFO.gauge().labels(VERSION, platform.python_version()).set(1)
    running.add(
        presence(worker, connection, name=name, provider=provider.name, capacity=settings.worker_concurrency)
    ).start()
    if archiving is not None:
        running.add(archiving).start()
    if webhooks is not None:
        running.add(webhooks).start()
    logger.info("worker %s is up: %s, %s, %d at once", name, server, provider.name, settings.worker_concurrency)
    if metrics_url is not None:
        logger.info("metrics: %s", metrics_url)
    return worker


def _spare_the_garbage_collector() -> None:
    """Makes collections rare and short."""
    gc.collect()
    gc.freeze()  # what exists now stays for good: the collector can skip it
    # Tokens create small tuples and futures by the ten thousand, and hardly ever a cycle: at the default threshold of 700
    # the garbage collector took a twelfth of the CPU time.
    gc.set_threshold(50_000, 20, 50)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m producer",
        description="One Midstream worker: takes requests from the queue and generates their answers. "
        "Its settings are environment variables: `midstream settings` lists them.",
    )
    parser.add_argument("--version", action="version", version=f"midstream {VERSION}")
    parser.add_argument("--log-format", choices=("json", "text"), help="how lines look on standard error")
    parser.add_argument("--ready-fd", type=int, metavar="N", help="write a byte to this descriptor when it is up")
    options = parser.parse_args(arguments)
    try:
        settings = Settings.from_environment(os.environ)
        set_up_logging(settings.log_level, options.log_format or settings.log_format)
        for warning in unknown(os.environ).values():
            logger.warning(warning)
        _raise_open_files(settings.worker_concurrency + _OTHER_FILES)
        uvloop.run(work(settings, options.ready_fd, set_up_tracing("midstream-worker", os.environ)))
    except Unusable as error:
        print(f"producer: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
