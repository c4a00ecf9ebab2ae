"""A job whose progress anybody can watch, and stop: midstream up --provider examples.job_with_progress:resize"""

import time
from collections.abc import Iterator
from typing import Any

STEP_SECONDS = 0.1


def resize(request: dict[str, Any], so_far: Any) -> Iterator[Any]:
    """Works through `request["files"]`. Not async: it runs in a thread of its own, and may block."""
    files = request["files"]
    done = {event["data"]["file"] for event in so_far.events}  # by a worker that died
    for number, file in enumerate(files, 1):
        if file not in done:
            time.sleep(STEP_SECONDS)  # here the work on one file is done
            yield {"event": "progress", "data": {"file": file, "done": number, "of": len(files)}}
    yield f"{len(files)} files are resized."
