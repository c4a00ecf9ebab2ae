"""Redis's replies of any shape, as a proxy or a server of another kind may give them: an error that says so, and no other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared import events
from shared.accounts import Accounts
from shared.api_keys import ApiKeyTable
from shared.commands import Commands
from shared.due_list import DueList
from shared.errors import MidstreamError
from shared.event_log import EventLog
from shared.events import Entry
from shared.external_writes import ExternalWrites, WriterLeases, is_external
from shared.ids import FIRST_ID, EventId, new_stream_id
from shared.keys import UNKEPT, WEBHOOKS_DEAD
from shared.presence import last_heard_at
from shared.queue import RequestQueue
from shared.receipt import DeliveryNotes
from shared.settings import Settings
from shared.unkept import Unkept
from shared.webhooks import WebhookStore
from shared.written_log import Append, Bounds, Holdings, Names, WrittenLog

STREAM = new_stream_id()
_REPLIES = st.recursive(
    st.none()
    | st.integers(-5, 5)
    | st.binary(max_size=4)
    | st.sampled_from([b"applied", b"1-0", b"0-1", b"id", b"{}"]),
    lambda parts: st.lists(parts, max_size=4),
    max_leaves=8,
)


class _Odd(Commands):
    """Answers every command alike."""

    def __init__(self, reply: Any) -> None:
        self._reply = reply

    async def execute(self, *arguments: bytes | str | int | float) -> Any:
        return self._reply

    def send(self, arguments: Any, on_reply: Callable[[Any], None]) -> None:
        on_reply(self._reply)

    def send_packed(self, command: bytes, key: bytes, on_reply: Callable[[Any], None]) -> None:
        on_reply(self._reply)


def _log(commands: Commands) -> EventLog:
    return EventLog(commands, log_ttl_seconds=60, ended_ttl_seconds=60, tombstone_ttl_seconds=60)


def _queue(commands: Commands) -> RequestQueue:
    return RequestQueue(commands, ttl_seconds=60, requests_max=10, consumer="worker")


def _writes(commands: Commands) -> ExternalWrites:
    return ExternalWrites(commands, ended_ttl_seconds=60, entries_max=10, bytes_max=10)


def _webhooks(commands: Commands) -> WebhookStore:
    return WebhookStore(commands, log_ttl_seconds=60)


def _holdings(commands: Commands) -> Holdings:
    return Holdings(commands, streams_max=10, life_ms_max=10)


_TOKEN = Entry(EventId(1, 1), events.TOKEN, b"a")
_CALLS: dict[str, Callable[[Commands], Awaitable[Any]]] = {
    "admit": lambda odd: Accounts(odd, Settings()).admit(STREAM, "one", 1, 1),
    "running": lambda odd: Accounts(odd, Settings()).running("one", 5),
    "looks": lambda odd: Accounts(odd, Settings()).looks(5),
    "principals": lambda odd: Accounts(odd, Settings()).principals("2026-11-28", "", 5),
    "usage": lambda odd: Accounts(odd, Settings()).usage("2026-11-28", "one"),
    "key version": lambda odd: ApiKeyTable(odd).version(),
    "keys": lambda odd: ApiKeyTable(odd).all(),
    "key": lambda odd: ApiKeyTable(odd).find("0" * 64),
    "take": lambda odd: DueList(odd, UNKEPT, ttl_seconds=60).take(5, 1.0),
    "count": lambda odd: DueList(odd, UNKEPT, ttl_seconds=60).count(),
    "unkept": lambda odd: Unkept(odd, log_ttl_seconds=60, ended_ttl_seconds=60).newest(5),
    "append": lambda odd: _log(odd).append(STREAM, 1, _TOKEN),
    "read": lambda odd: _log(odd).read(STREAM),
    "read all": lambda odd: _log(odd).read_all(STREAM),
    "page": lambda odd: _log(odd).read_page(STREAM, FIRST_ID, EventId(1, 5)),
    "newest": lambda odd: _log(odd).newest(STREAM),
    "end": lambda odd: _log(odd).end(STREAM, events.DONE, b"{}"),
    "write": lambda odd: _writes(odd).append(STREAM, FIRST_ID, _TOKEN, renew=True, cancelled=b"{}"),
    "is external": lambda odd: is_external(_log(odd), STREAM),
    "leases due": lambda odd: WriterLeases(odd, ttl_seconds=60).due(),
    "lease left": lambda odd: WriterLeases(odd, ttl_seconds=60).remaining_milliseconds(STREAM),
    "last heard": lambda odd: last_heard_at(odd, "worker"),
    "claim": lambda odd: _queue(odd).claim(odd, 5, 10),
    "claim expired": lambda odd: _queue(odd).claim_expired(5, 10),
    "queue counts": lambda odd: _queue(odd).counts(),
    "queue holds": lambda odd: _queue(odd).holds(STREAM),
    "queue newest": lambda odd: _queue(odd).newest(5),
    "queue leases": lambda odd: _queue(odd).leases(b"0-1", 5),
    "idle consumers": lambda odd: _queue(odd).forget_idle_consumers(5),
    "deliveries": lambda odd: DeliveryNotes(odd).read(STREAM),
    "webhook": lambda odd: _webhooks(odd).pending(STREAM),
    "webhooks": lambda odd: _webhooks(odd).listed(WEBHOOKS_DEAD, 5),
    "webhook counts": lambda odd: _webhooks(odd).counts(),
    "oldest webhook": lambda odd: _webhooks(odd).oldest_seconds(),
    "gone": lambda odd: _webhooks(odd).is_gone("https://example.com"),
    "name": lambda odd: Names(odd).find("one", "path"),
    "point": lambda odd: Names(odd).point("one", "path", before="", after=STREAM, life_ms=5),
    "holdings": lambda odd: _holdings(odd).note("one", STREAM, life_ms=5, size_bytes=5),
    "append written": lambda odd: WrittenLog(odd).append(STREAM, Append(), Bounds(10, 10)),
}


@pytest.mark.parametrize("name", _CALLS)
@example(reply=[[None, 1]])
@given(reply=_REPLIES)
async def test_a_reply_of_any_shape_is_an_error_of_ours_at_most(name: str, reply: Any) -> None:
    with suppress(MidstreamError):
        await _CALLS[name](_Odd(reply))
