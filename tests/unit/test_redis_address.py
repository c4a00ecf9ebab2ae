from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Unusable
from shared.redis_server import RedisAddress, complaint_about


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://localhost", RedisAddress("localhost")),
        ("redis://localhost/", RedisAddress("localhost")),
        ("redis://h:7000/3", RedisAddress("h", 7000, database=3)),
        ("redis://[::1]:7000", RedisAddress("::1", 7000)),
        ("rediss://u:p%2Fw@h:7000/0", RedisAddress("h", 7000, username="u", password="p/w", tls=True)),
        (
            "rediss://h:7000/1?ssl_ca_certs=/ca.pem&ssl_certfile=/c%20c.pem&ssl_keyfile=/key",
            RedisAddress("h", 7000, "", 1, tls=True, ca_file="/ca.pem", certificate_file="/c c.pem", key_file="/key"),
        ),
        ("redis://:secret@h", RedisAddress("h", password="secret")),
        ("unix:///run/redis.sock", RedisAddress(path="/run/redis.sock")),
        (
            "unix://u:p@/run/redis.sock?db=2",
            RedisAddress(path="/run/redis.sock", database=2, username="u", password="p"),
        ),
    ],
)
def test_an_address_is_read(url: str, address: RedisAddress) -> None:
    assert RedisAddress.parse(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://h",
        "redis://",
        "redis:///0",
        "redis://:hunter2@",
        "redis://:hunter2@h:port",
        "redis://:hunter2@h:99999",
        "redis://:hunter2@h/zero",
        "redis://:hunter2@h/-1",
        "redis://u:12/hunter2@h/0",
        "redis://:12#hunter2@h/0",
        "redis://[:hunter2@h",
        "unix://:hunter2@",
        "unix://:hunter2@/path?db=x",
    ],
)
def test_the_error_for_a_malformed_address_describes_a_valid_one_without_a_password(url: str) -> None:
    with pytest.raises(Unusable, match="redis://host:6379/0") as error:
        RedisAddress.parse(url)
    assert "hunter2" not in str(error.value)
    assert error.value.__cause__ is None


@given(st.text(min_size=8, alphabet=st.characters(min_codepoint=33, max_codepoint=126)))
def test_no_unquoted_password_is_ever_shown(password: str) -> None:
    """A password with special characters that is not percent-encoded."""
    try:
        shown = str(RedisAddress.parse(f"redis://user:{password}@host/x"))
    except Unusable as error:
        shown = str(error)
    assert password[-8:] not in shown or password[-8:] in "redis://host:6379/0, rediss://user:password@host:6379/0"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("rediss://:hunter2@h?ssl_cert_reqs=none", "ssl_ca_certs"),
        ("redis://:hunter2@h?ssl_ca_certs=/ca.pem", "with rediss://"),
        ("rediss://:hunter2@h?ssl_keyfile=/key", "without ssl_certfile"),
    ],
)
def test_files_of_tls_that_would_have_no_effect_are_refused(url: str, reason: str) -> None:
    with pytest.raises(Unusable, match=reason) as error:
        RedisAddress.parse(url)
    assert "hunter2" not in str(error.value)


def test_an_address_shows_no_password() -> None:
    assert "hunter2" not in repr(RedisAddress.parse("redis://user:hunter2@h:7000/1"))
    assert str(RedisAddress.parse("redis://user:hunter2@h:7000/1")) == "h:7000"
    assert str(RedisAddress.parse("unix://user:hunter2@/run/redis.sock")) == "unix:///run/redis.sock"


@pytest.mark.parametrize(
    ("url", "commands"),
    [
        ("redis://h", []),
        ("redis://h/2", [("SELECT", 2)]),
        ("redis://:p@h", [("AUTH", "p")]),
        ("redis://u:p@h/1", [("AUTH", "u", "p"), ("SELECT", 1)]),
    ],
)
def test_login_commands(url: str, commands: list[tuple[str | int, ...]]) -> None:
    assert RedisAddress.parse(url).login_commands() == commands


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_an_eviction_policy_is_reported(policy: str) -> None:
    assert policy in (complaint_about(policy) or "")


@pytest.mark.parametrize("policy", [None, "noeviction"])
def test_noeviction_is_not_reported(policy: str | None) -> None:
    assert complaint_about(policy) is None
