"""An agent whose run survives its crash: each step is a stream with the key `run:step`. python agent_steps.py RUN"""

import os
import sys
import time

import httpx

STEPS = ("Name a river.", "What grows on its banks?", "Write a line of verse about that.")
midstream = httpx.Client(base_url=os.getenv("MIDSTREAM_URL", "http://127.0.0.1:8000"), timeout=90)


def step(run: str, number: int, messages: list[dict[str, str]]) -> str:
    """Returns the answer of one step, which is generated once, however often this is called."""
    body = {"messages": messages, "midstream": {"on_disconnect": "continue", "metadata": {"run": run}}}
    while True:
        try:
            created = midstream.post("/v1/streams", json=body, headers={"Idempotency-Key": f"{run}:{number}"})
            url = f"/v1/streams/{created.raise_for_status().json()['id']}?wait=60"
            while (state := midstream.get(url).raise_for_status().json())["status"] in ("queued", "running"):
                pass
            break
        except httpx.TransportError:
            time.sleep(1)  # the gateway is away: ask again, under the same key
    if state["status"] != "completed":
        raise SystemExit(f"step {number} {state['status']}: {state.get('error')}")
    return str(state["text"])


def main(run: str) -> None:
    messages: list[dict[str, str]] = []
    for number, task in enumerate(STEPS, 1):
        messages.append({"role": "user", "content": task})
        messages.append({"role": "assistant", "content": step(run, number, messages)})
        print(f"step {number}: {messages[-1]['content']}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
