"""The host names that a gateway answers for, by its address and its setting."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.http.hosts import Hosts
from gateway.http.problems import Problem
from shared.errors import Unusable
from shared.settings import Settings


def answered(host: str, *, hosts: str = "", listens_on: str = "127.0.0.1") -> bool:
    checked = Hosts(Settings(host=listens_on, hosts=hosts))
    scope: dict[str, Any] = {"headers": [(b"accept", b"*/*"), (b"host", host.encode("latin-1"))]}
    try:
        checked.check(scope)
    except Problem as problem:
        return problem.status != 421
    return True


HERE = (
    *(
        "localhost",
        "localhost:8000",
        "LOCALHOST",
        "localhost.",
        "localhost.:8000",
        "app.localhost",
        "a.b.localhost:1",
        "",
    ),
    *(
        "127.0.0.1",
        "127.0.0.1:8000",
        "127.255.0.9",
        "127.0.0.1.",
        "[::1]",
        "[::1]:8000",
        "[::ffff:127.0.0.1]:1",
        "10.0.0.9:80",
        "[fe80::1]",
    ),
)
ELSEWHERE = (
    *(
        "rebound.example",
        "rebound.example:8000",
        "localhost.example",
        "notlocalhost",
        "127.0.0.1.example",
        "xlocalhost:80",
    ),
    *(
        "localhost:8000:80",
        "localhost@rebound.example",
        "rebound.example#localhost",
        "[::1].example",
        "[::1",
        "::1]",
        "[]",
    ),
    *(
        "[localhost]",
        "local host",
        "localhost,rebound.example",
        "rebound.example.",
        ":80",
        "127.1",
        "0x7f000001",
    ),
    *("127.0.0.01", "\xe9.example", ".", ".localhost.example", "localhost\x00", "localhost/", "2130706433"),
)


@pytest.mark.parametrize("host", HERE)
def test_loopback_hosts_are_always_answered(host: str) -> None:
    assert answered(host)
    assert answered(host, hosts="chat.example.com")
    assert answered(host, hosts="chat.example.com", listens_on="0.0.0.0")


@pytest.mark.parametrize("host", ELSEWHERE)
def test_unknown_host_names_are_refused(host: str) -> None:
    assert not answered(host)
    assert not answered(host, hosts="chat.example.com", listens_on="0.0.0.0")


def test_only_configured_host_names_are_answered_at_any_port() -> None:
    hosts = "chat.example.com, Second.example. ,"
    for host in ("chat.example.com", "CHAT.example.com:443", "chat.example.com.", "second.example:8"):
        assert answered(host, hosts=hosts)
    for host in ("example.com", "x.chat.example.com", "chat.example.com.evil.example", "xchat.example.com"):
        assert not answered(host, hosts=hosts)


@pytest.mark.parametrize("listens_on", ["0.0.0.0", "::", "10.0.0.9", "gateway.internal"])
def test_a_public_address_answers_all_host_names_unless_some_are_configured(listens_on: str) -> None:
    assert answered("anything.example", listens_on=listens_on)
    assert not answered("anything.example", hosts="chat.example.com", listens_on=listens_on)


@pytest.mark.parametrize("listens_on", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_on_a_loopback_address_other_host_names_need_the_setting(listens_on: str) -> None:
    assert not answered("anything.example", listens_on=listens_on)
    assert answered("anything.example", hosts=" * ", listens_on=listens_on)


def test_every_host_header_is_checked() -> None:
    with pytest.raises(Problem):
        Hosts(Settings()).check({"headers": [(b"host", b"localhost"), (b"host", b"rebound.example")]})
    Hosts(Settings()).check({"headers": []})  # no browser


@pytest.mark.parametrize(
    "hosts", ["https://chat.example.com", "chat.example.com:443", "a/b", "a b", "*.example.com", "*,a"]
)
def test_malformed_host_names_are_refused_at_the_start(hosts: str) -> None:
    with pytest.raises(Unusable, match="MIDSTREAM_HOSTS"):
        Hosts(Settings(hosts=hosts))


def test_the_number_of_host_names_is_limited() -> None:
    with pytest.raises(Unusable, match="100 are the most"):
        Hosts(Settings(hosts=",".join(f"h{number}" for number in range(101))))
