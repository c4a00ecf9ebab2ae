"""Follows a stream and resumes it after a lost connection, as a browser's EventSource does."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from shared.errors import MidstreamError
from shared.sse import Decoder, Message

_SILENT_SECONDS_MAX = 60.0
"""Idle timeout: with a keep-alive every 15 s, a connection that is silent for this long is dead."""
_CONNECT_SECONDS = 5.0
_PAUSE_SECONDS = 2.0
ENDS = ("done", "failed", "cancelled")


class StreamError(MidstreamError):
    """The stream could not be followed."""


def follow(
    url: str,
    *,
    last_event_id: str = "",
    give_up_seconds: float = 60.0,
    on_cut: Callable[[str, str], None] | None = None,
) -> Iterator[Message]:
    """Yields every event of a stream, from its beginning or after an id, to its end, across any number of connections.

    `on_cut` gets each lost connection's reason and the id after which to resume. Raises StreamError when the server
    refuses, or cannot be reached for `give_up_seconds`.
    """
    reached_at = time.monotonic()
    pause_seconds = _PAUSE_SECONDS
    timeout = httpx2.Timeout(_CONNECT_SECONDS, read=_SILENT_SECONDS_MAX)
    with httpx2.Client(timeout=timeout) as client:
        while True:
            # Not event streams alone: a full gateway would answer with an empty one instead of 503.
            headers = {"Accept": "text/event-stream, application/problem+json", "Cache-Control": "no-store"}
            if last_event_id:
                headers["Last-Event-ID"] = last_event_id
            why = "the server ended the response"
            try:
                with client.stream("GET", url, headers=headers) as response:
                    if response.status_code == 204:
                        return
                    if response.status_code == 503:
                        why = "the server is not ready (503)"
                    elif response.status_code != 200:
                        raise StreamError(explain(response))
                    elif media_type_of(response) != "text/event-stream":
                        raise StreamError(
                            f"{url} answers with {media_type_of(response) or 'no media type'}, not with an event stream: "
                            "name a stream by its id, or by the URL of its events, as in /v1/streams/{id}/events"
                        )
                    else:
                        decoder = Decoder()
                        for part in response.iter_bytes():
                            reached_at = time.monotonic()
                            for message in decoder.feed(part):
                                last_event_id = message.id or last_event_id
                                yield message
                                if message.event in ENDS or message.data == "[DONE]":
                                    return
                            if decoder.retry_milliseconds is not None:
                                pause_seconds = decoder.retry_milliseconds / 1000
            except httpx2.UnsupportedProtocol:
                raise StreamError(f"{url} must begin with http:// or https://") from None
            except (httpx2.HTTPError, httpx2.StreamError) as error:
                why = str(error) or type(error).__name__
            except httpx2.InvalidURL as error:
                raise StreamError(f"{url} is not a URL: {error}") from None
            if time.monotonic() - reached_at > give_up_seconds:
                raise StreamError(f"{url} could not be reached for {give_up_seconds:g} s: {why}")
            if on_cut is not None:
                on_cut(why, last_event_id)
            time.sleep(pause_seconds * random.uniform(0.8, 1.2))


@contextmanager
def connect(url: str, last_event_id: str = "") -> Iterator[Iterator[Message]]:
    """Opens one connection and yields its events; the caller resumes. Raises StreamError."""
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    with (
        httpx2.Client(timeout=httpx2.Timeout(_CONNECT_SECONDS, read=_SILENT_SECONDS_MAX)) as client,
        client.stream("GET", url, headers=headers) as response,
    ):
        if response.status_code != 200:
            raise StreamError(explain(response))
        decoder = Decoder()
        yield (message for part in response.iter_bytes() for message in decoder.feed(part))


def media_type_of(response: Any) -> str:
    """Returns a response's media type without parameters; empty if it has none."""
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()


def explain(response: Any) -> str:
    """Returns a refused response as one sentence: method, URL, status and detail."""
    response.read()
    try:
        body = response.json()
        detail = body["detail"] if isinstance(body, dict) else ""
    except (ValueError, KeyError):
        detail = response.text[:200]
    return f"{response.request.method} {response.request.url} answered {response.status_code}: {detail}"
