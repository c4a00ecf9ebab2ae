"""The provider's address (OPENAI_BASE_URL): the check at the start, how log lines name it, and what a 404 says about it."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from shared.errors import Unusable

OWN_URL = "https://api.openai.com/v1"
"""Used where the settings name no other address."""
USUAL_MODEL = "gpt-4o-mini"
"""Answers where nothing names a model, if the provider has it or is not to be asked."""
_VERSIONED = re.compile(r"/v\d")
_ENDPOINT = re.compile(r"/(chat/completions|completions|responses|models)/?$")


def check_base_url(url: str) -> None:
    """Raises Unusable for an address at which no request could be made. An empty one is OpenAI's own."""
    if not url:
        return
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Unusable(f"OPENAI_BASE_URL is no URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        likely = (
            f"http://{url.removeprefix('//')}" if "://" not in url and "@" not in url else "http://localhost:11434/v1"
        )
        raise Unusable(f"OPENAI_BASE_URL must begin with http:// or https:// and a host, as in {likely}")
    if port == 0 or any(character.isspace() or not character.isprintable() for character in url):
        raise Unusable("OPENAI_BASE_URL has a space or another character, or a port, that no URL has")
    if parts.query or parts.fragment:
        raise Unusable("OPENAI_BASE_URL must end before `?` and `#`: paths are added to it")
    endpoint = _ENDPOINT.search(parts.path)
    if endpoint is not None:
        raise Unusable(
            f"OPENAI_BASE_URL must be the API's address without {endpoint[0]}, as in {url[: -len(endpoint[0])]}"
            if "@" not in url
            else f"OPENAI_BASE_URL must be the API's address without {endpoint[0]}"
        )


def host_of(url: str) -> str:
    """Returns host and port of an address that was checked, as log lines have it: without a user, a password or a path."""
    return urlsplit(url or OWN_URL).netloc.rpartition("@")[2]


def hint_at(url: str, status: int | None) -> str:
    """Returns what is probably wrong with an address that answers with this status, to be added to a message; or nothing."""
    if status == 404 and not _VERSIONED.search(urlsplit(url or OWN_URL).path):
        return "; OPENAI_BASE_URL has no /v1, does it need it?"
    return ""
