"""From which address a request comes: what a client writes into X-Forwarded-For does not count."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.addresses import Addresses
from gateway.http.problems import Problem
from shared.errors import Unusable
from shared.settings import Settings

PROXIES = "10.0.0.0/8, fd00::/8"


def scope(peer: str | None, *forwarded: str) -> dict[str, Any]:
    headers = [(b"x-forwarded-for", value.encode("latin-1")) for value in forwarded]
    return {"client": None if peer is None else (peer, 1234), "headers": headers}


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.1", (), "192.0.2.1"),
        ("192.0.2.1", ("198.51.100.1",), "192.0.2.1"),
        ("10.0.0.1", (), ""),
        ("10.0.0.1", ("198.51.100.1",), "198.51.100.1"),
        ("10.0.0.1", ("203.0.113.1, 198.51.100.1",), "198.51.100.1"),
        ("10.0.0.1", ("203.0.113.1", "198.51.100.1, 10.2.3.4"), "198.51.100.1"),
        ("10.0.0.1", ("10.0.0.9, 10.0.0.8",), "10.0.0.9"),
        ("10.0.0.1", ("203.0.113.1, nonsense",), ""),
        ("10.0.0.1", ("203.0.113.1, nonsense, 10.0.0.2",), "10.0.0.2"),
        ("10.0.0.1", ("198.51.100.1:4711",), "198.51.100.1"),
        ("10.0.0.1", ("[2001:db8::1]:4711",), "2001:db8::/64"),
        ("fd00::1", ("2001:db8::ffff:1",), "2001:db8::/64"),
        ("::ffff:192.0.2.1", (), "192.0.2.1"),
        ("fe80::1%eth0", (), "fe80::/64"),
        ("10.0.0.1", (",".join(["192.0.2.1"] + ["10.0.0.1"] * 5000),), "10.0.0.1"),
        ("10.0.0.1", ("\xff\u00e9",), ""),
        (None, (), ""),
    ],
)
def test_the_address_of_a_request(peer: str | None, forwarded: tuple[str, ...], address: str) -> None:
    addresses = Addresses(Settings(trusted_proxies=PROXIES))
    assert addresses.address_of(scope(peer, *forwarded)) == address


@given(
    st.lists(
        st.binary(max_size=100) | st.sampled_from([b"10.0.0.9", b"[fd00::1]:80", b",", b"198.51.100.1:99"]), max_size=8
    )
)
def test_whatever_stands_in_the_header_an_address_is_found_or_none(values: list[bytes]) -> None:
    forwarded = {"client": ("10.0.0.1", 1234), "headers": [(b"x-forwarded-for", value) for value in values]}
    address = Addresses(Settings(trusted_proxies=PROXIES)).address_of(forwarded)
    assert not address or ip_network(address)


def test_a_place_is_given_back_once() -> None:
    addresses = Addresses(Settings(limit_connections=1))
    for outlives_request in (False, True):
        taken = addresses.enter(scope("192.0.2.1"))
        assert taken is not None
        with pytest.raises(Problem):
            addresses.enter(scope("192.0.2.1"))
        assert addresses.enter(scope("192.0.2.2")) is not None
        taken.outlives_request = outlives_request
        addresses.request_ended(taken)
        if outlives_request:
            with pytest.raises(Problem):
                addresses.enter(scope("192.0.2.1"))
            addresses.leave(taken)
        addresses = Addresses(Settings(limit_connections=1)) if outlives_request else addresses
        addresses._under_way.pop("192.0.2.2", None)
        assert not addresses._under_way


@pytest.mark.parametrize("networks", ["10.0.0.1/8", "proxy.example.com", "10.0.0.0/33"])
def test_networks_that_are_none_are_refused_at_the_start(networks: str) -> None:
    with pytest.raises(Unusable, match="MIDSTREAM_TRUSTED_PROXIES"):
        Addresses(Settings(trusted_proxies=networks))
