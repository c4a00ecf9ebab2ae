"""The run: traffic and faults at the same time, then a time without faults, then the last checks."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.stress.agreement import Counts, disagreements, used
from tests.stress.cases import Case
from tests.stress.chaos import Chaos
from tests.stress.fleet import ArchiveKind, Fleet, RedisKind
from tests.stress.history import Broken
from tests.stress.plan import order

_PROGRESS_SECONDS = 5.0
_VERIFIED_AT_ONCE = 16
_AGREE_SECONDS = 120.0
_SETTLE_SECONDS = 45.0
"""The time after the last fault: several times the longest answer, a lease, the provider's tries and a reader's pauses."""

NOT_COVERED = (
    "clock steps (no libfaketime): leases and expiries were seen under a steady clock only",
    "a Redis that forgets (failover to a lagging replica, an older append-only file), TLS",
    "with --redis cluster and sentinel: faults between processes and Redis, other than those of its servers; workers that die meanwhile",
    "Redis at its maxmemory, queue_timeout, expiry of a log while it is read",
    "lost packets and reordered ones: the proxies work on TCP streams, on one machine",
    "the OpenAI, AI SDK and /stream?prompt= faces, NDJSON, access control and its limits",
)


class Failure(Exception):
    """The first invariant that did not hold, with the data that explains it."""

    def __init__(self, broken: list[Broken], case: Case | None = None) -> None:
        super().__init__(str(broken[0]))
        self.broken = broken
        self.case = case


class Stress:
    """One run of one seed."""

    def __init__(
        self,
        seed: int,
        seconds: float,
        *,
        at_once: int = 24,
        streams_max: int | None = None,
        short: bool = False,
        previous: Path | None = None,
        redis: RedisKind = "one",
        archive: ArchiveKind = "sqlite",
        say: Callable[[str], None] = print,
    ) -> None:
        self.seed = seed
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.report: Path | None = None
        """The folder for the histories of a failed run."""
        self._seconds = seconds
        self._at_once = at_once
        self._redis = redis
        self._archive = archive
        self._short = short
        self._streams_max = streams_max
        """The run ends when so many streams have been created, if that is sooner."""
        self._previous = previous
        self._say = say
        self._cases: list[Case] = []
        self._running: dict[asyncio.Task[None], Case] = {}

    async def run(self) -> bool:
        """Runs; returns whether every invariant held."""
        began = time.monotonic()
        async with Fleet(self._previous, self._redis, self._archive) as fleet:
            self._fleet, self._chaos = fleet, Chaos(fleet, self.seed)
            try:
                await self._strike_and_settle(time.monotonic() + self._seconds)
                await self._reckon()
            except (Failure, AssertionError) as failure:
                await asyncio.sleep(0.3)  # the processes' messages about it reach their logs
                self._write_report(failure)
            finally:
                for task in self._running:
                    task.cancel()
                await asyncio.gather(*self._running, return_exceptions=True)
                self.faults = self._chaos.counts
        self._summary(time.monotonic() - began)
        return self.report is None

    # --- the three parts

    async def _strike_and_settle(self, until: float) -> None:
        chaos = asyncio.create_task(self._chaos.run(until))
        progress = asyncio.create_task(self._progress(until))
        try:
            while time.monotonic() < until:
                while len(self._running) < self._at_once and not self._has_enough:
                    self._start(len(self._cases))
                if self._has_enough:
                    break
                await self._look(0.2)
                if chaos.done():
                    chaos.result()
            if self._has_enough:
                self._chaos.stop()
            await chaos
            deadline = time.monotonic() + _SETTLE_SECONDS
            while self._running and time.monotonic() < deadline:
                await self._look(0.2)
            for task, case in self._running.items():
                task.cancel()
                self.counts["hanging"] += 1
                case.entries = await self._fleet.log_of(case.stream_id)
                detail = f"stream {case.stream_id} {_SETTLE_SECONDS:g} s after the last fault"
                raise Failure([Broken("no stream and no reader hangs", "other", detail)], case)
        finally:
            for one in (chaos, progress):
                one.cancel()
            await asyncio.gather(chaos, progress, return_exceptions=True)

    @property
    def _has_enough(self) -> bool:
        return self._streams_max is not None and len(self._cases) >= self._streams_max

    async def _look(self, seconds: float) -> None:
        """Waits a little, and checks the streams that have ended."""
        if self._running:
            await asyncio.wait(self._running, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in [one for one in self._running if one.done()]:
            case = self._running.pop(task)
            try:
                task.result()
            except* AssertionError as group:
                raise Failure(
                    [Broken("a request is answered as it should be", "other", repr(group.exceptions))], case
                ) from None
            self.counts["tokens generated"] += case.history.generated
        complaint = self._fleet.complaint()
        if complaint is not None:
            raise Failure([Broken("no process logs a trace", "other", complaint)])

    def _start(self, number: int) -> None:
        case = Case(self._fleet, order(self.seed, number, short=self._short), self.seed, number, self.counts)
        self._cases.append(case)
        self._running[asyncio.create_task(self._live(case))] = case

    async def _live(self, case: Case) -> None:
        await case.run()
        await case.until_ended()
        broken = await case.verify()
        for one in broken:
            self.counts[one.kind] += one.count
        if broken:
            raise Failure(broken, case)
        self.counts["readers"] += len(case.readings)
        for reading in case.readings:
            self.counts[f"readers: {reading.outcome}"] += 1
            self.counts["events read"] += len(reading.seen)
        how = case.history.end_data.get("code") or case.history.end_data.get("by") or ""
        self.ends[f"{case.history.end}{': ' if how else ''}{how}"] += 1
        case.forget()

    async def _reckon(self) -> None:
        """Checks the logs once more after everything has ended, and that nothing is left behind."""
        for start in range(0, len(self._cases), _VERIFIED_AT_ONCE):
            await asyncio.gather(*map(self._verify_again, self._cases[start : start + _VERIFIED_AT_ONCE]))
        archived = await self._fleet.archived({case.stream_id for case in self._cases})
        for case in self._cases if archived is not None else ():
            broken = case.verify_archived(archived or {})
            if broken:
                raise Failure(broken, case)
            case.entries = []
        self.counts["archived"] = len(archived or {})
        if archived is not None:
            await self._agree()
        self.counts["fallen out of the ring"] = int(sum(await self._fleet.metric("midstream_ring_fallouts_total")))
        left = await self._fleet.left_over({case.stream_id for case in self._cases})
        left += await self._fleet.stop()
        complaint = self._fleet.complaint()
        if left or complaint:
            raise Failure([Broken("nothing is left over", "other", "; ".join([*left, complaint or ""]))])

    async def _verify_again(self, case: Case) -> None:
        try:
            broken = await case.verify_again()
        except AssertionError as error:
            broken = [Broken("a request is answered as it should be", "other", str(error))]
        if broken:
            raise Failure(broken, case)

    async def _agree(self) -> None:
        """Checks that receipts, archive, usage and webhooks agree on all streams, soon: what was read last may still be counted."""
        receipts = {
            case.stream_id: case.counts_of_receipt for case in self._cases if case.counts_of_receipt is not None
        }
        deadline = time.monotonic() + _AGREE_SECONDS
        await self._fleet.have_all_counted_anew()
        while True:
            rows = await self._fleet.rows()
            archived = {
                stream_id: Counts(row.generated, row.delivered, row.prompt or 0, row.completion or 0)
                for stream_id, row in rows.items()
            }
            usage = used(await self._fleet.usage())
            last_bodies = {post.id: post.body for post in self._fleet.receiver.posts}
            webhook_counts = {stream_id: Counts.of_webhook(body) for stream_id, body in last_bodies.items()}
            found = self._fleet.receiver.refused + disagreements(receipts, archived, usage, webhook_counts)
            if not found:
                self.counts |= {f"agreed: {name}": count for name, count in usage.items()}
                self.counts["agreed: receipts"] = len(receipts)
                self.counts["agreed: webhooks"] = len(webhook_counts)
                self.counts["agreed: webhooks that came again"] = len(self._fleet.receiver.posts) - len(webhook_counts)
                return
            if time.monotonic() > deadline:
                for stream_id, delivered in (await self._fleet.counted()).items():
                    row = rows.get(stream_id)
                    if row is None or row.delivered != delivered:
                        found.append(f"{stream_id}: {delivered} count as delivered, the archive has {row}")
                raise Failure([Broken("receipts, archive, usage and webhooks agree", "other", "; ".join(found))])
            await self._fleet.have_all_looked_at()
            await asyncio.sleep(2.0)

    # --- what it says

    async def _progress(self, until: float) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_SECONDS)
            left = max(0.0, until - time.monotonic())
            self._say(
                f"{left:5.0f} s to go: {len(self._cases)} streams, {len(self._running)} of them run, "
                f"{self.counts['events read']} events read, {sum(self._chaos.counts.values())} faults"
            )

    def _write_report(self, failure: Failure | AssertionError) -> None:
        lines = [f"seed {self.seed}: {failure}", ""]
        case = failure.case if isinstance(failure, Failure) else None
        if isinstance(failure, Failure):
            lines += [f"- {one}" for one in failure.broken]
        if case is not None:
            lines += ["", f"stream {case.stream_id}, order {case.number}: {case.order.policies} {case.order.ends_by}"]
            script = {key: value for key, value in case.order.body["script"].items() if key != "text"}
            lines += [f"script: {script}, {len(case.order.answer)} items", "", "its log:"]
            lines += [f"  {at!r} {fields!r}"[:400] for at, fields in case.entries]
            for reading in case.readings:
                lines += ["", f"reader {reading.plan}: {reading.outcome or 'still reading'}", *reading.notes]
                lines += [f"  {one}"[:400] for one in reading.seen]
        lines += ["", "faults:", *self._chaos.journal, "", "processes:", self._fleet.logged()]
        with tempfile.NamedTemporaryFile(
            "w", prefix=f"midstream-stress-{self.seed}-", suffix=".txt", delete=False
        ) as file:
            file.write("\n".join(lines))
        self.report = Path(file.name)
        self._say(f"FAILED with --seed {self.seed}: {str(failure)[:1000]}\nThe histories are in {self.report}")

    def _summary(self, seconds: float) -> None:
        counts = self.counts
        rows = [
            ("seed, time, Redis", f"{self.seed}, {seconds:.0f} s, {self._redis}"),
            ("streams", len(self._cases)),
            ("readers", counts["readers"]),
            *((name, counts[name]) for name in sorted(counts) if name.startswith("readers: ")),
            *((name, counts[name]) for name in ("connections", "tokens generated", "events read")),
            ("archived", counts["archived"]),
            *((name, counts[name]) for name in sorted(counts) if name.startswith("agreed: ")),
            ("fallen out of the ring", counts["fallen out of the ring"]),
            ("requests repeated", counts["requests that broke off"]),
            *((f"ended: {name}", count) for name, count in sorted(self.ends.items())),
            *((f"fault: {name}", count) for name, count in sorted(self.faults.items())),
            *((name, counts[name]) for name in ("lost", "doubled", "out of order", "hanging")),
            ("other violations", counts["other"]),
        ]
        self._say("\n".join(f"  {name:<42} {value:>10}" for name, value in rows))
        self._say("not covered:\n" + "\n".join(f"  - {one}" for one in NOT_COVERED))
