"""own_backend.py with a login: who asked sees and stops an answer, nobody else. uvicorn examples.backend_with_login:app"""

import os
import secrets
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from examples import own_backend as unguarded

PASSWORDS = dict(
    pair.split(":") for pair in os.environ["USERS"].split(",")
)  # ada:secret,bob:geheim; take your own login
app = FastAPI()


def login(given: Annotated[HTTPBasicCredentials, Depends(HTTPBasic())]) -> str:
    expected = PASSWORDS.get(given.username, secrets.token_hex())
    if not secrets.compare_digest(expected.encode(), given.password.encode()):
        raise HTTPException(401, headers={"WWW-Authenticate": "Basic"})
    return given.username


async def owned(answer_id: str, user: Annotated[str, Depends(login)]) -> str:
    receipt = await unguarded.gateway.get(f"/v1/streams/{answer_id}/receipt")
    if receipt.status_code >= 500:
        raise httpx.TransportError(receipt.text)
    if receipt.status_code != 200 or receipt.json()["metadata"].get("user") != user:
        raise HTTPException(404)  # another user's answer is as unknown as none
    return answer_id


@app.exception_handler(httpx.TransportError)
async def away(request: Request, error: Exception) -> Response:  # an EventSource is to come back
    status = 200 if request.method == "GET" else 503
    return Response("retry: 1000\n\n", status, media_type="text/event-stream")


@app.post("/answers")
async def ask(question: str, user: Annotated[str, Depends(login)]) -> dict[str, str]:
    request = {"messages": [{"role": "user", "content": question}], "midstream": {"metadata": {"user": user}}}
    answer = await unguarded.gateway.post("/v1/streams", json=request)
    return {"id": answer.raise_for_status().json()["id"]}


@app.get("/answers/{answer_id}")
async def events(answer_id: Annotated[str, Depends(owned)], request: Request) -> Response:
    return await unguarded.events(answer_id, request)


@app.post("/answers/{answer_id}/stop")
async def stop(answer_id: Annotated[str, Depends(owned)]) -> str:
    stopped = await unguarded.gateway.post(f"/v1/streams/{answer_id}/cancel")
    return str(stopped.raise_for_status().json()["status"])
