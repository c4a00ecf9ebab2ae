"""Our clients at a gateway that has as many readers as it may have: they hear so, wait as long as it says, and get all."""

from __future__ import annotations

import asyncio
import shutil

from tests.support.javascript import follow_in
from tests.support.needs import needs
from tests.support.python_client import KINDS, Collected, Face, Kind
from tests.support.system import System
from tests.support.waiting import wait_until

_RETRY_AFTER_SECONDS = 2
_JITTER_MAX = 1.5


async def test_a_full_gateway_says_503_and_our_clients_come_back() -> None:
    needs("node (Debian: apt install nodejs)", shutil.which("node"))
    async with System(gateway_settings={"connections_max": 2}) as system:
        stream_id = await system.create(simulate={"tokens": 20})
        state = await system.until_status(stream_id, "completed")
        slow_id = await system.create(simulate={"tokens": 900, "tokens_per_second": 20})
        readers = [system.follow(slow_id) for _ in range(2)]
        for reader in readers:
            await reader.until_tokens(1)

        javascript = await follow_in("node", f"{system.gateway_url()}/v1/streams/{stream_id}")
        collected = {kind: Collected() for kind in KINDS}

        async def follow(kind: Kind) -> Collected:
            def note(so_far: Collected) -> bool:
                collected[kind] = so_far
                return False

            return await Face(kind, system.gateway_url()).follow(stream_id, until=note)

        following = [asyncio.create_task(follow(kind)) for kind in KINDS]
        await wait_until(
            lambda: javascript.lines and all(seen.lost for seen in collected.values()), what="each client was refused"
        )
        for reader in readers:
            await reader.leave()
        await system.http.post(f"{system.gateway_url()}/v1/streams/{slow_id}/cancel")

        lines = await javascript.until_end()
        assert lines[0]["type"] == "lost"
        assert lines[0]["error"].startswith("503: this gateway has as many readers")
        waits = [lines[0]["wait_ms"] / 1000]
        assert (lines[-1]["type"], lines[-1]["text"]) == ("done", state["text"])
        for seen in await asyncio.gather(*following):
            assert (seen.lost[0].error.status, seen.events[-1].type, seen.text) == (503, "done", state["text"])
            waits.append(seen.lost[0].wait_seconds)
        assert all(_RETRY_AFTER_SECONDS <= wait <= _RETRY_AFTER_SECONDS * _JITTER_MAX for wait in waits), waits
