"""Records logs as a release writes them, and what its readers get, for later releases to read.

    cd CHECKOUT_OF_THE_RELEASE && .venv/bin/python THIS_FILE NAME > THIS_FOLDER/logs/NAME.json

It runs the release's own processes with the release's own test support, so that nothing here knows the format of a log.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from typing import Any

sys.path.insert(0, os.getcwd())

from shared.keys import log_key
from shared.sse import Decoder
from tests.support.openai_server import OpenAIServer
from tests.support.system import System

_CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bielefeld"}'}}
_SCRIPTS: dict[str, dict[str, Any]] = {
    "plain": {"text": ["Once", " upon", " a", " time", ", é and 漢字", " 👋"]},
    "in one packet": {"tokens": 200},
    "tool call": {"text": ["Let me see."], "tool_calls": [_CALL], "finish_reason": "tool_calls"},
    "reasoning": {"reasoning": ["Hm", "mm."], "text": ["Yes", "."]},
    "refusal": {"refusal": ["I", " can't."]},
    "log probabilities": {"text": ["a", "b"], "logprobs": True},
    "two choices": {"text": ["one"], "further": [["two", "!"]]},
    "cut off": {"tokens": 5, "finish_reason": "length"},
    "the provider's own fields": {"tokens": 3, "about": {"system_fingerprint": "fp_1"}, "last": {"stop_reason": None}},
    "refused": {"fail_status": 400},
}
_WORKER = re.compile(r'"worker":"[^"]*"')
_PACED = {"tokens": 40, "tokens_per_second": 20}


async def _record(name: str) -> dict[str, Any]:
    async with OpenAIServer() as provider:
        settings = {"lease_seconds": 1.0, "ended_ttl_seconds": 3600}
        worker_settings = {"provider": "openai", "openai_base_url": provider.url, "worker_drain_seconds": 0.2}
        async with System(workers=2, settings=settings, worker_settings=worker_settings) as system:
            ids = {kind: await system.create(kind, script=script) for kind, script in _SCRIPTS.items()}
            for stream_id in ids.values():
                await system.http.get(system.events_url(stream_id))

            ids["cancelled"] = await system.create("cancelled", script=_PACED)
            reader = system.follow(ids["cancelled"])
            await reader.until_tokens(3)
            await system.http.post(f"{system.gateway_url()}/v1/streams/{ids['cancelled']}/cancel")

            for policy in ("restart", "continue", "fail"):
                kind = f"its worker was killed: {policy}"
                ids[kind] = await system.create(kind, script=_PACED, midstream={"on_interrupt": policy})
                reader = system.follow(ids[kind])
                await reader.until_tokens(3)
                worker = await system.worker_of(ids[kind])
                worker.kill()
                await reader.until_end()
                await system.start_worker(system.workers.index(worker))

            ended = {kind: await _as_read(system, stream_id) for kind, stream_id in ids.items()}

            unfinished = {}
            for policy in ("restart", "continue"):
                stream_id = await system.create(policy, script=_PACED, midstream={"on_interrupt": policy})
                await system.follow(stream_id).until_tokens(5)
                unfinished[policy] = stream_id
            for worker in system.workers:
                worker.send(signal.SIGSTOP)
            left = {kind: {"id": it, "entries": await _entries(system, it)} for kind, it in unfinished.items()}
            for worker in system.workers:
                worker.send(signal.SIGCONT)
            for stream_id in unfinished.values():
                await system.http.post(f"{system.gateway_url()}/v1/streams/{stream_id}/cancel")
    return {"release": name, "ended": ended, "unfinished": left}


async def _as_read(system: System, stream_id: str) -> dict[str, Any]:
    response = await system.http.get(system.events_url(stream_id))
    decoder = Decoder()
    events = [[it.id, it.event, it.data] for it in decoder.feed(response.content) if it.event != "live"]
    state = await system.state(stream_id)
    return {"id": stream_id, "entries": await _entries(system, stream_id), "events": events, "state": state}


async def _entries(system: System, stream_id: str) -> list[list[str]]:
    """Returns the log's entries: id, field and value, without the name of this machine."""
    entries = await system.commands.xrange(log_key(stream_id))
    return [
        [entry_id.decode(), field.decode(), _WORKER.sub('"worker":"recorded"', value.decode())]
        for entry_id, fields in entries
        for field, value in fields.items()
    ]


if __name__ == "__main__":
    recorded = asyncio.run(_record(sys.argv[1]))
    lines = {
        part: ",\n".join(f"  {json.dumps(kind)}: {json.dumps(log, ensure_ascii=False)}" for kind, log in logs.items())
        for part, logs in recorded.items()
        if isinstance(logs, dict)
    }
    parts = ",\n".join(f' "{part}": {{\n{logs}\n }}' for part, logs in lines.items())
    print(f'{{\n "release": {json.dumps(recorded["release"])},\n{parts}\n}}')
