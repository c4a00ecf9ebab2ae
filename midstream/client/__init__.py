"""A client of Midstream's native API, synchronous and for asyncio: docs/how-to/use-the-python-client.md.

    with Client("http://127.0.0.1:8000") as client:
        for event in client.ask("Tell me about rivers."):
            print(event.text)

events, text            what a caller gets
answer                  from messages to events, each once
protocol                what comes next: requests, pauses, the end; no I/O
outbox                  what a writer sends next, and keeps in case Redis forgets it; no I/O
sync_client, async_client, sync_writer, async_writer, transport    the same over httpx2, waiting or awaiting
"""

from midstream.client.async_client import AsyncClient
from midstream.client.async_writer import AsyncWriter
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
    Stopped,
    StreamError,
    StreamEvent,
    Token,
    WriterState,
)
from midstream.client.sync_client import Client
from midstream.client.sync_writer import Writer

__all__ = [
    "AsyncClient",
    "AsyncWriter",
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
    "Stopped",
    "StreamError",
    "StreamEvent",
    "Token",
    "Writer",
    "WriterState",
]
