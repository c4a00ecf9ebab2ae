"""A client of Midstream's native API, synchronous and for asyncio: docs/how-to/use-the-python-client.md.

    with Client("http://127.0.0.1:8000") as client:
        for event in client.ask("Tell me about rivers."):
            print(event.text)

events, text            what a caller gets
answer                  from messages to events, each once
protocol                what comes next: requests, pauses, the end; no I/O
sync_client, async_client, transport    the same over httpx2, waiting or awaiting
"""

from midstream.client.async_client import AsyncClient
from midstream.client.events import (
    Cancelled,
    Created,
    Delta,
    Done,
    End,
    Failed,
    Gap,
    Live,
    Lost,
    OwnEvent,
    Receipt,
    Restarted,
    Started,
    State,
    StreamError,
    StreamEvent,
    Token,
)
from midstream.client.sync_client import Client

__all__ = [
    "AsyncClient",
    "Cancelled",
    "Client",
    "Created",
    "Delta",
    "Done",
    "End",
    "Failed",
    "Gap",
    "Live",
    "Lost",
    "OwnEvent",
    "Receipt",
    "Restarted",
    "Started",
    "State",
    "StreamError",
    "StreamEvent",
    "Token",
]
