"""A mixed load: streams that complete, fail, are cancelled or cut off, and readers that resume or come late."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from gateway.following.tails import FIRST_READ_ENTRIES
from tests.support.system import Process, Reader, System

LONG_TOKENS = FIRST_READ_ENTRIES + 400
"""Further back than one read of the log goes, as long as each token has an entry of its own (`entry_tokens_max`)."""


def metrics_address(worker: Process) -> str:
    """Returns the address of a worker's metrics, from its log."""
    found = re.search(r"metrics: http://([0-9.:]+)/metrics", worker.logged())
    assert found, f"the worker serves no metrics:\n{worker.tail()}"
    return found[1]


async def mixed_streams(system: System, gateway: int = 0) -> dict[str, str]:
    """Creates one stream of each kind, follows each to its end, and returns the ids by kind."""
    kinds: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
        "whole": ({"tokens": 60, "tokens_per_second": 60}, {}, {}),
        "long": ({"tokens": LONG_TOKENS, "tokens_per_second": 1000}, {}, {}),
        "truncated": ({"tokens": 60, "tokens_per_second": 100}, {"max_tokens": 20}, {}),
        "resumed": ({"tokens": 90, "tokens_per_second": 60}, {}, {}),
        "restarted": ({"tokens": 40, "tokens_per_second": 100, "fail_after": 10}, {}, {}),
        "failed": ({"tokens": 40, "tokens_per_second": 100, "fail_after": 10}, {}, {"on_interrupt": "fail"}),
        "cancelled": ({"tokens": 5000, "tokens_per_second": 50}, {}, {}),
        "left": ({"tokens": 5000, "tokens_per_second": 50}, {}, {"on_disconnect": {"cancel_after": 0.5}}),
    }
    streams: dict[str, str] = {}
    readers: dict[str, Reader] = {}
    for kind, (simulate, more, midstream) in kinds.items():
        streams[kind] = await system.create(gateway=gateway, simulate=simulate, midstream=midstream, **more)
        readers[kind] = system.follow(streams[kind], gateway=gateway)
    await asyncio.gather(*(readers[kind].until_tokens(10) for kind in ("resumed", "cancelled", "left")))
    for kind in ("resumed", "left"):
        await readers[kind].leave()
    readers["resumed"] = system.follow(streams["resumed"], gateway=gateway, after=readers["resumed"].last_id)
    cancel = f"{system.gateway_url(gateway)}/v1/streams/{streams['cancelled']}/cancel"
    assert (await system.http.post(cancel)).status_code == 200
    await asyncio.gather(*(reader.until_end() for kind, reader in readers.items() if kind != "left"))
    await system.until_status(streams["left"], "cancelled")
    again = system.follow(streams["long"], gateway=gateway)  # from pages of the log: it is longer than one read
    from_far_back = system.follow(streams["long"], gateway=gateway, after="1-100")
    await asyncio.gather(again.until_end(), from_far_back.until_end())
    assert (await system.http.get(f"{system.gateway_url(gateway)}/v1/streams/unknown")).status_code == 404
    return streams
