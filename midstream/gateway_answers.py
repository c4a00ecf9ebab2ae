"""What a gateway answers to the commands that ask it, with the API key in MIDSTREAM_API_KEY, sent to the address that the user has named."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import httpx2
import orjson

from shared.errors import Unusable

_TIMEOUT_SECONDS = 30.0
"""Twice as long as a gateway waits by default for a Redis that is away (MIDSTREAM_REDIS_WAIT_SECONDS)."""
_ANSWER_BYTES_MAX = 64 << 20
"""Far above the state of the longest answer, and any page of a list."""


def authorization() -> dict[str, str]:
    """Returns the header with the key; nothing where the environment has none."""
    key = os.environ.get("MIDSTREAM_API_KEY", "").strip()
    return {"authorization": f"Bearer {key}"} if key else {}


def get(server: str, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Returns the JSON object at a path of a gateway; parameters of the query that are empty are left out. Raises Unusable."""
    url = f"{server.rstrip('/')}{path}"
    parameters = {name: value for name, value in (query or {}).items() if value}
    try:
        body = bytearray()
        with httpx2.stream(
            "GET", url, params=parameters, headers=authorization(), timeout=_TIMEOUT_SECONDS
        ) as response:
            for part in response.iter_bytes():
                body += part
                if len(body) > _ANSWER_BYTES_MAX:
                    raise Unusable(f"{url} answers with more than {_ANSWER_BYTES_MAX} bytes")
        answer = orjson.loads(body)
    except (httpx2.HTTPError, httpx2.InvalidURL, orjson.JSONDecodeError) as error:
        raise Unusable(f"{url} does not answer as a Midstream gateway does: {error}") from None
    if response.status_code != 200 or not isinstance(answer, dict):
        detail = answer.get("detail") if isinstance(answer, dict) else None
        raise Unusable(f"{url} answers {response.status_code}: {detail or 'no problem document came with it'}")
    return answer
