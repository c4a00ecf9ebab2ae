"""Which open connections are noted for the receipts."""

from __future__ import annotations

from typing import Any, cast

from gateway.delivery.delivery import Delivery
from gateway.delivery.ledger import Ledger
from gateway.delivery.reader import Reader
from gateway.faces import NATIVE
from gateway.following.tail import Tail
from shared.ids import BEGINNING, EventId, new_stream_id
from shared.keys import log_key
from shared.receipt import DeliveryNotes
from shared.redis_server import RedisAddress
from shared.resp import RespConnection
from shared.settings import Settings
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


async def test_an_open_connection_is_noted_when_something_of_the_answer_was_sent_over_it(
    valkey_server: RedisServer,
) -> None:
    commands = RespConnection(
        RedisAddress.parse(valkey_server.url), name="test", reply_seconds=5.0, reconnect_seconds_max=0.05
    )
    commands.start()
    await commands.wait_until_up()
    tail = Tail(new_stream_id(), 0.0)
    await commands.execute("XADD", log_key(tail.stream_id), "0-1", "accepted", "{}")
    await commands.execute("EXPIRE", log_key(tail.stream_id), 60)
    notes = DeliveryNotes(commands)
    ledger = Ledger(notes, Settings(delivery_report_seconds=0.1))
    waiting, reading = (
        Reader(cast(Delivery, None), tail, tail.open_ring(NATIVE), cast(Any, None), BEGINNING) for _ in range(2)
    )

    def is_noted(reader: Reader, place: str) -> Any:
        async def noted() -> bool:
            connections = (await notes.read(tail.stream_id)).connections
            return {reader.note.connection: place}.items() <= {one["id"]: one["to"] for one in connections}.items()

        return noted

    try:
        for reader in (waiting, reading):
            ledger.opened(reader)
        ledger.start()
        waiting.cursor = EventId(1, 0)
        for offset in (1, 2):  # by the second report both have been looked at
            reading.cursor = EventId(1, offset)
            await wait_until(is_noted(reading, f"1-{offset}"), what="a report")
        assert len((await notes.read(tail.stream_id)).connections) == 1
        waiting.cursor = EventId(1, 1)
        await wait_until(is_noted(waiting, "1-1"), what="a report of the other one")
    finally:
        await ledger.close()
        await commands.close()
