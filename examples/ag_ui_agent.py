"""An agent that speaks AG-UI: midstream up --provider examples.ag_ui_agent:answer

Each AG-UI event is an event in the log. A worker that takes over goes on behind the last one.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

Event = dict[str, Any]


def events_of(run: Event) -> Iterator[Event]:
    """Yields a run's events; the same ones however often it is called, so that an interrupted run can be continued."""
    ids = {"threadId": run["threadId"], "runId": run["runId"]}
    message, call = {"messageId": f"{run['runId']}-answer"}, {"toolCallId": f"{run['runId']}-call"}
    yield {"type": "RUN_STARTED", **ids}
    yield {"type": "TOOL_CALL_START", **call, "toolCallName": "search"}
    yield {"type": "TOOL_CALL_ARGS", **call, "delta": '{"query": "rivers"}'}
    yield {"type": "TOOL_CALL_END", **call}
    yield {"type": "TOOL_CALL_RESULT", **call, "messageId": f"{run['runId']}-result", "content": "They flow downhill."}
    yield {"type": "TEXT_MESSAGE_START", **message, "role": "assistant"}
    for number in range(1, 41):
        yield {"type": "TEXT_MESSAGE_CONTENT", **message, "delta": f"word {number}, "}
    yield {"type": "TEXT_MESSAGE_END", **message}
    yield {"type": "RUN_FINISHED", **ids}


async def answer(request: Event, so_far: Any) -> AsyncIterator[Event]:
    for number, event in enumerate(events_of(request["ag_ui"])):
        if number >= len(so_far.events):
            await asyncio.sleep(0.05)  # here a model thinks, or a tool works
            yield {"event": "ag-ui", "data": event}
