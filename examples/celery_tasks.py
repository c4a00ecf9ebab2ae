"""A Celery task whose progress anybody can watch, and stop: celery -A examples.celery_tasks worker

The task's arguments hold the stream's id. Run once more, it goes on behind its last event.
"""

import os
import time
from typing import Any

from celery import Celery

from midstream.client import Client, Stopped

MIDSTREAM = os.environ.get("MIDSTREAM_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("MIDSTREAM_API_KEY")  # only where authentication is on; it needs the scopes create and write
STEP_SECONDS = 0.1
WAIT_SECONDS, LOST_SECONDS = 3600, 60
"""The longest wait of a task for a Celery worker, and of its stream for a second run after a worker's death (seconds)."""

app = Celery("examples", broker=os.environ.get("CELERY_BROKER_URL", "redis://127.0.0.1:6379/1"))
app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True)  # a task whose process dies is run once more


def midstream() -> Client:
    return Client(MIDSTREAM, token=KEY)


def start(files: list[str]) -> str:
    """Called by your application: returns the id of the stream with the task's progress."""
    with midstream() as client:
        request = {"midstream": {"on_disconnect": "continue"}}
        stream = client.create_external(request, lease_seconds=WAIT_SECONDS)
    resize.delay(stream.id, files)
    return stream.id


@app.task  # type: ignore[untyped-decorator]
def resize(stream_id: str, files: list[str]) -> Any:
    try:
        with midstream() as client, client.write(stream_id, lease_seconds=LOST_SECONDS) as progress:
            done = progress.state.tokens if progress.state else 0  # events of a run before this one
            for number, file in enumerate(files[done:], done + 1):
                time.sleep(STEP_SECONDS)  # here the work on one file is done
                progress.event("progress", {"file": file, "done": number, "of": len(files)})
    except Stopped as stopped:
        return f"stopped: {stopped.reason}"
