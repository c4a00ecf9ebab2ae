"""Serves the page, and stands in for your identity provider: whoever gives a name is logged in. Only for trying it out."""

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import Body, FastAPI
from fastapi.responses import HTMLResponse

ISSUER = os.getenv("ISSUER", "http://127.0.0.1:9000")
KEY = ec.generate_private_key(ec.SECP256R1())
app = FastAPI()


@app.get("/")
def page() -> HTMLResponse:
    html = Path(__file__).with_name("index.html").read_text()
    return HTMLResponse(html.replace("http://127.0.0.1:8000", os.getenv("MIDSTREAM_URL", "http://127.0.0.1:8000")))


@app.get("/keys")  # most providers have theirs at /.well-known/jwks.json
def keys() -> dict[str, Any]:
    return {"keys": [{**json.loads(jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key())), "kid": "1", "use": "sig"}]}


@app.post("/token")
def token(name: Annotated[str, Body(embed=True)]) -> dict[str, str]:
    claims = {"sub": name, "iss": ISSUER, "aud": "midstream", "exp": time.time() + 60}
    return {"token": jwt.encode(claims, KEY, "ES256", headers={"kid": "1"})}
