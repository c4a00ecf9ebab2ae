"""The provider's address is checked before it is used, and what is said of it names no secret."""

from __future__ import annotations

import pytest

from producer.provider import provider_name
from shared.errors import Unusable
from shared.provider_address import check_base_url, hint_at, host_of
from shared.settings import Settings


@pytest.mark.parametrize(
    "url",
    ["", "http://127.0.0.1:11434/v1", "https://api.example.com/v1/", "http://[::1]:8080/v1", "https://x/v1beta/openai"],
)
def test_an_address_that_can_be_used(url: str) -> None:
    check_base_url(url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("localhost:11500", "must begin with http:// .*as in http://localhost:11500"),
        ("localhost/v1", "as in http://localhost/v1"),
        ("//localhost/v1", "as in http://localhost/v1"),
        ("htp://localhost/v1", "must begin with http://"),
        ("unix:///run/x.sock", "must begin with http://"),
        ("http:///v1", "and a host"),
        ("http://localhost:port/v1", "is no URL"),
        ("http://localhost:99999/v1", "is no URL"),
        ("http://local host/v1", "a space"),
        ("http://localhost/v1?api-version=1", "before `\\?`"),
        ("http://localhost/v1/chat/completions", "without /chat/completions, as in http://localhost/v1$"),
        ("http://localhost/v1/models", "without /models"),
    ],
)
def test_an_address_at_which_nothing_could_be_asked(url: str, words: str) -> None:
    with pytest.raises(Unusable, match=f"^OPENAI_BASE_URL.*{words}"):
        provider_name(Settings(openai_base_url=url))


def test_no_message_has_a_password() -> None:
    for url in ("user:secret@host/v1", "ftp://user:secret@host", "http://user:secret@host/v1/chat/completions"):
        with pytest.raises(Unusable) as raised:
            check_base_url(url)
        assert "secret" not in str(raised.value)
    assert host_of("http://user:secret@host:1/v1") == "host:1"


def test_a_404_is_explained_where_the_address_has_no_version() -> None:
    assert "/v1" in hint_at("http://localhost:11434", 404)
    assert "/v1" in hint_at("http://localhost:11434/", 404)
    for url, status in (
        ("http://localhost:11434/v1", 404),
        ("http://localhost:11434", 401),
        ("", 404),
        ("http://x", None),
    ):
        assert hint_at(url, status) == ""
