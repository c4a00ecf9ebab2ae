"""A backend with a login of its own, whose page reads its answers from Midstream: docs/how-to/give-a-page-its-answers.md"""

import os
import secrets
from pathlib import Path
from typing import Annotated, Any

import httpx
from fastapi import Body, Cookie, Depends, FastAPI, HTTPException, Response
from fastapi.responses import FileResponse

PASSWORDS = dict(pair.split(":") for pair in os.environ["USERS"].split(","))  # ada:secret,bob:geheim: or your own login
MIDSTREAM, KEY = os.getenv("MIDSTREAM_URL", "http://127.0.0.1:8000"), os.environ["MIDSTREAM_API_KEY"]
midstream = httpx.AsyncClient(base_url=MIDSTREAM, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
users: dict[str, str] = {}  # by session
app = FastAPI()


@app.get("/")
def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("index.html"))


@app.post("/login")
def log_in(name: Annotated[str, Body()], password: Annotated[str, Body()], response: Response) -> None:
    if not secrets.compare_digest(PASSWORDS.get(name, secrets.token_hex()).encode(), password.encode()):
        raise HTTPException(401)
    users[session := secrets.token_urlsafe()] = name
    response.set_cookie("session", session, httponly=True, samesite="strict")


def logged_in(session: Annotated[str, Cookie()] = "") -> str:
    if session not in users:
        raise HTTPException(401)
    return users[session]


async def given(path: str, body: Any, user: str) -> dict[str, str]:
    answer = await midstream.post(path, json=body, headers={"X-Midstream-Owner": user})
    if answer.is_error:  # also 404 for another user's answer: to this user it does not exist
        raise HTTPException(answer.status_code, answer.json()["detail"])
    return {"midstream": MIDSTREAM, "id": answer.json().get("id", ""), "token": answer.json()["access_token"]}


@app.post("/answers")
async def ask(question: Annotated[str, Body(embed=True)], user: Annotated[str, Depends(logged_in)]) -> dict[str, str]:
    return await given("/v1/streams", {"messages": [{"role": "user", "content": question}]}, user)


@app.post("/answers/{answer_id}/token")  # for a page that was reloaded
async def token(answer_id: str, user: Annotated[str, Depends(logged_in)]) -> dict[str, str]:
    return await given(f"/v1/streams/{answer_id}/tokens", {"scopes": ["cancel"]}, user)
