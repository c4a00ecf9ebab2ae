"""A backend of your own before Midstream. MIDSTREAM_URL=http://127.0.0.1:8000 uvicorn examples.own_backend:app"""

import os
from collections.abc import AsyncIterator

import httpx
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

app = FastAPI()
patient = httpx.AsyncHTTPTransport(retries=5)  # a refused connection is tried again, for 7.5 s in all
gateway = httpx.AsyncClient(base_url=os.getenv("MIDSTREAM_URL", "http://127.0.0.1:8000"), transport=patient, timeout=60)


@app.post("/answers")
async def ask(question: str) -> dict[str, str]:  # check here who asks, and note whose answer it is
    answer = await gateway.post("/v1/streams", json={"messages": [{"role": "user", "content": question}]})
    return {"id": answer.raise_for_status().json()["id"]}


@app.get("/answers/{answer_id}")
async def events(answer_id: str, request: Request) -> Response:  # check here whose answer it is
    last = {name: value for name, value in request.headers.items() if name == "last-event-id"}
    try:
        call = gateway.build_request("GET", f"/v1/streams/{answer_id}/events", headers=last)
        answer = await gateway.send(call, stream=True)
    except httpx.TransportError:  # an error status would end the browser's EventSource for good
        return Response("retry: 1000\n\n", media_type="text/event-stream")

    async def body() -> AsyncIterator[bytes]:
        try:
            async for part in answer.aiter_raw():
                yield part
        except httpx.TransportError:
            pass  # the gateway died: the response just ends. The browser drops half an event, and comes back
        finally:
            await answer.aclose()

    status = 200 if answer.status_code >= 500 else answer.status_code  # a full gateway: come back, too
    return StreamingResponse(body(), status, media_type="text/event-stream")
