"""One stream of the run: created, read, perhaps cancelled or deleted, and compared with its log."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections import Counter
from typing import Any

import httpx2

from tests.stress.agreement import Counts
from tests.stress.fleet import ArchivedRow, Fleet
from tests.stress.history import Broken, History, answer_of, check_answer, check_reader, history_of
from tests.stress.plan import StreamOrder
from tests.stress.readers import Reading
from tests.support.waiting import wait_until

_PAUSE_SECONDS = 0.1
_STATUS_OF = {"done": "completed", "failed": "failed", "cancelled": "cancelled"}
_CODES = {
    "worker_lost",
    "attempts_exhausted",
    "provider_unavailable",
    "provider_stalled",
    "provider_timeout",
    "provider_refused",
}
"""The failure codes that this run's faults can cause."""


class Case:
    """One stream. `run` returns when its readers have finished; `verify` returns the invariants that do not hold."""

    def __init__(self, fleet: Fleet, order: StreamOrder, seed: int, number: int, counts: Counter[str]) -> None:
        self._fleet = fleet
        self._counts = counts
        self._dice = random.Random(f"{seed}/{number}/run")
        self._key = f"{seed}/{number}"
        self.number = number
        self.order = order
        self.stream_id = ""
        self.readings: list[Reading] = []
        self.history = History()
        self.entries: Any = []
        self.digest = ""
        self.counts_of_receipt: Counts | None = None
        """What its receipt says at the run's end; None: it is deleted."""

    async def run(self) -> None:
        created = await self._ask("POST", "/v1/streams", {201}, json=self.order.body, key=self._key)
        self.stream_id = created.json()["id"]
        for index, plan in enumerate(self.order.readers):
            dice = random.Random(f"{self._key}/{index}")
            self.readings.append(Reading(self.stream_id, plan, self._fleet.reader_ports, dice, self._counts))
        async with asyncio.TaskGroup() as group:
            for reading in self.readings:
                group.create_task(reading.read())
            if self.order.ends_by:
                group.create_task(self._end())

    async def _end(self) -> None:
        await asyncio.sleep(self.order.ends_after_seconds)
        path = f"/v1/streams/{self.stream_id}"
        if self.order.ends_by == "cancel":
            state = (await self._ask("POST", f"{path}/cancel", {200})).json()
            assert state["status"] in _STATUS_OF.values(), f"cancel answered {state['status']}"
        else:
            await self._ask("DELETE", path, {204})  # also if the reply to the first try was lost
        self._counts[self.order.ends_by] += 1

    async def _ask(
        self, method: str, path: str, wanted: set[int], *, json: Any = None, key: str = ""
    ) -> httpx2.Response:
        """Sends a request to any gateway, again and again, as a client may that repeats its requests."""
        headers = {"Idempotency-Key": key} if key else {}
        while True:
            url = f"http://127.0.0.1:{self._dice.choice(self._fleet.reader_ports())}{path}"
            try:
                response = await self._fleet.http.request(method, url, json=json, headers=headers)
            except httpx2.HTTPError:
                self._counts["requests that broke off"] += 1
            else:
                if response.status_code in wanted:
                    return response
                assert response.status_code == 503, f"{method} {path}: {response.status_code} {response.text}"
            await asyncio.sleep(_PAUSE_SECONDS)

    async def until_ended(self) -> None:
        """Waits until the log has a terminal event: the readers may have left before."""

        async def has_ended() -> bool:
            await asyncio.sleep(_PAUSE_SECONDS)
            entries = await self._fleet.log_of(self.stream_id)
            return bool(entries) and history_of(entries).end != ""

        await wait_until(has_ended, within_seconds=float("inf"))  # the run limits the time

    # --- the verdict

    async def verify(self) -> list[Broken]:
        """Checks all invariants after the stream has ended and its readers have gone."""
        self.entries = await self._fleet.log_of(self.stream_id)
        history = self.history = history_of(self.entries)
        self.digest = _digest(history)
        if history.end == "deleted":
            return self._verify_deleted()
        broken = list(history.broken)
        broken += check_answer(self.order.answer, history.items, whole=history.end == "done")
        broken += self._verify_end(history)
        for reading in self.readings:
            broken += self._verify_reading(reading, history)
        return broken

    def forget(self) -> None:
        """Keeps only what the last check needs."""
        self.entries, self.readings = [], []
        self.history = History(generated=self.history.generated, end=self.history.end, end_data=self.history.end_data)
        self.order.answer.clear()
        self.order.body.clear()

    async def verify_again(self) -> list[Broken]:
        """Checks at the run's end that the log is unchanged, and that `GET` agrees with it."""
        self.entries = await self._fleet.log_of(self.stream_id)
        history = history_of(self.entries)
        if _digest(history) != self.digest:
            return [Broken("an ended stream never changes", "other", f"{self.history.end} became {history.end}")]
        if history.end == "deleted":
            return []
        state = (await self._ask("GET", f"/v1/streams/{self.stream_id}", {200})).json()
        answered = {key: state[key] for key in ("status", "tokens", "text")}
        wanted = {"status": _STATUS_OF[history.end], "tokens": len(history.items), "text": history.text}
        if answered != wanted:
            return [Broken("GET tells what the log holds", "lost", f"{answered} and not {wanted}"[:2000])]
        receipt = (await self._ask("GET", f"/v1/streams/{self.stream_id}/receipt", {200})).json()
        self.counts_of_receipt = Counts.of_receipt(receipt)
        generated, delivered = receipt["generated"], receipt["delivered"]["tokens"]
        added_up = sum(one["tokens"] for one in generated["attempts"])
        if generated["tokens"] != len(history.items) or added_up != history.generated:
            detail = f"{generated}, but {len(history.items)} items stand and {history.generated} were appended"
            return [Broken("generated = appended", "other", detail)]
        if delivered + receipt["undelivered_tokens"] != len(history.items):
            return [Broken("delivered + undelivered = generated", "other", str(receipt["delivered"]))]
        return []

    def verify_archived(self, rows: dict[str, ArchivedRow]) -> list[Broken]:
        """Checks that the archive has what the log holds, and what the receipt says."""
        row, history = rows.get(self.stream_id), history_of(self.entries)
        if row is None:
            return [Broken("every end is archived", "lost", f"stream {self.stream_id}, {history.end}")]
        if history.end == "deleted":
            kept = row.status != "deleted" or row.receipt is not None
            return [Broken("what is deleted is not archived", "other", str(row))] if kept else []
        receipt = json.loads(row.receipt or "{}")
        found = (row.status, row.generated, receipt["generated"]["tokens"], receipt["delivered"]["tokens"])
        wanted = (_STATUS_OF[history.end], len(history.items), len(history.items), row.delivered)
        return (
            []
            if found == wanted
            else [Broken("the archive tells what the log holds", "other", f"{found} and not {wanted}")]
        )

    def _verify_end(self, history: History) -> list[Broken]:
        end, data, policies = history.end, history.end_data, self.order.policies
        reason = ""
        if not end:
            reason = "there is none"
        elif end == "cancelled" and data["by"] == "client" and self.order.ends_by == "":
            reason = "nobody cancelled it"
        elif end == "cancelled" and data["by"] == "disconnect" and policies["on_disconnect"] == "continue":
            reason = "it was to go on without readers"
        elif end == "failed" and data["code"] not in _CODES:
            reason = f"nothing explains {data['code']}"
        elif end == "failed" and data["code"] == "worker_lost" and policies["on_interrupt"] != "fail":
            reason = f"worker_lost under on_interrupt {policies['on_interrupt']}"
        return [Broken("a stream ends in a way that its policy allows", "other", reason)] if reason else []

    def _verify_reading(self, reading: Reading, history: History) -> list[Broken]:
        complete = reading.outcome == "complete"
        broken = check_reader(history.shown, reading.seen, from_now=reading.plan.from_now, complete=complete)
        if reading.outcome not in ("complete", "abandoned"):
            broken.append(Broken("a reader reaches the end", "other", f"it was answered {reading.outcome}"))
        if complete and not reading.plan.from_now:
            broken += check_answer(self.order.answer, answer_of(reading.seen), whole=history.end == "done")
        return broken

    def _verify_deleted(self) -> list[Broken]:
        """Checks what readers got of a deleted log, against the provider's answer and against itself."""
        broken = []
        if self.order.ends_by != "delete":
            broken.append(Broken("a stream ends in a way that its policy allows", "other", "nobody deleted it"))
        for reading in self.readings:
            broken += check_reader(sorted(reading.seen), reading.seen, from_now=True, complete=False)
            if not reading.plan.from_now:
                broken += check_answer(self.order.answer, answer_of(reading.seen), whole=False)
        return broken


def _digest(history: History) -> str:
    return hashlib.sha256(repr((history.end, history.shown)).encode()).hexdigest()
