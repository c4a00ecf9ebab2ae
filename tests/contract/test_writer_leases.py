"""The list of external writers' leases: a look that is under way does not undo a wish for another look."""

from __future__ import annotations

import pytest

from shared.external_writes import WriterLeases
from shared.keys import WRITERS
from tests.contract.conftest import REAL_BACKENDS, Backend

pytestmark = pytest.mark.parametrize("backend", REAL_BACKENDS, indirect=True)

STREAMS = [f"000{number}" + "0" * 32 for number in range(2)]


async def test_a_lease_that_changes_during_a_look_is_looked_at_at_once(backend: Backend) -> None:
    leases = WriterLeases(backend.commands, ttl_seconds=60)
    for stream_id in STREAMS:
        await leases.enlist(stream_id)
    now, taken = await leases.due()
    assert sorted(taken) == STREAMS
    await leases.enlist(STREAMS[0], now=True)
    await leases.look_again(now, dict.fromkeys(STREAMS, now + 60_000))
    assert await backend.client.zscore(WRITERS, STREAMS[1]) == now + 60_000
    assert (await leases.due())[1] == STREAMS[:1]
