"""A program that writes a stream: `python -m tests.support.external_writer KIND URL STREAM NAME PAUSE COUNT`.

KIND is `plain`, which needs nothing but Python's own library, or `client`, with `midstream.client`. It writes the tokens `NAME:0 `,
`NAME:1 `, … with this pause between two, and then the end. It prints how many tokens are stored, a line each time, and the
reason when it is stopped; then its exit code is 3.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Callable
from typing import Any

STOPPED = 3


def plain(url: str, stream_id: str, name: str, pause_seconds: float, count: int) -> int:
    """Sends one token per request, each after the event that the answer before named; repeats what was not answered."""
    host = url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=5)

    def post(path: str, body: Any, after: str = "") -> tuple[int, dict[str, Any]]:
        headers = {"stream-lease": "1", **({"last-event-id": after} if after else {})}
        for _ in range(10):
            try:
                connection.request("POST", f"/v1/streams/{stream_id}/{path}", json.dumps(body), headers)
                response = connection.getresponse()
                return response.status, json.loads(response.read())
            except (OSError, http.client.HTTPException):
                connection.close()
                time.sleep(0.1)
        raise SystemExit("no gateway answers")

    status, answer = post("attempts", {"writer": name.partition("/")[0]})
    for number in range(count + 1):
        event = {"token": f"{name}:{number} "} if number < count else {"end": "done"}
        if status == 200:
            status, answer = post("events", event, answer["last_event_id"])
        if status != 200:
            print(f"stopped {answer.get('reason')}", flush=True)
            return STOPPED
        print(min(number + 1, count), flush=True)
        time.sleep(pause_seconds)
    return 0


def client(url: str, stream_id: str, name: str, pause_seconds: float, count: int) -> int:
    """Writes with `midstream.client`, whose requests carry what has come meanwhile."""
    from midstream.client import Client, Stopped

    try:
        with Client(url) as opened, opened.write(stream_id, lease_seconds=1) as writer:
            state = writer.state
            before = 0 if state is None else state.tokens
            for number in range(count):
                writer.token(f"{name}:{number} ")
                state = writer.state
                print(0 if state is None else state.tokens - before, flush=True)
                time.sleep(pause_seconds)
    except Stopped as stopped:
        print(f"stopped {stopped.reason}", flush=True)
        return STOPPED
    print(count, flush=True)
    return 0


WRITERS: dict[str, Callable[[str, str, str, float, int], int]] = {"plain": plain, "client": client}

if __name__ == "__main__":
    kind, url, stream_id, name, pause_seconds, count = sys.argv[1:]
    sys.exit(WRITERS[kind](url, stream_id, name, float(pause_seconds), int(count)))
