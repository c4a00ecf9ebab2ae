"""Where webhooks may go, what signs them, and who is told."""

from __future__ import annotations

import base64
import ipaddress
import time
from dataclasses import replace
from typing import Any, cast

import pytest
import standardwebhooks

from gateway.access.webhooks import StreamWebhooks
from gateway.http.principal import ANONYMOUS, Principal, act_for, principal
from gateway.http.problems import Problem
from shared.errors import Unusable
from shared.events import Policies, Webhook
from shared.receipt import EndedLog, Generated, StreamNotes, receipt
from shared.settings import Settings
from shared.webhook_target import BadTarget, Targets, target_of
from shared.webhooks import TEXT_BYTES_MAX, Secrets, body_of
from tests.support.webhook_receiver import SECRET

OTHER = "whsec_" + base64.b64encode(b"another secret, of 32 bytes now.").decode()


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://Example.com", ("https", "example.com", 443, "/")),
        ("https://example.com.:8443/a?b=c%20d", ("https", "example.com", 8443, "/a?b=c%20d")),
        ("https://example.com?q", ("https", "example.com", 443, "/?q")),
        ("http://1.2.3.4/", ("http", "1.2.3.4", 80, "/")),
        ("https://[2606:4700::1]/x", ("https", "2606:4700::1", 443, "/x")),
        ("https://xn--bcher-kva.example/", ("https", "xn--bcher-kva.example", 443, "/")),
    ],
)
def test_the_one_form_of_a_url(url: str, parts: tuple[str, str, int, str]) -> None:
    target = target_of(url)
    assert (target.scheme, target.host, target.port, target.path) == parts
    assert target_of(target.url) == target


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "//example.com/",
        "HTTPS://example.com/",
        "ftp://example.com/",
        "https://user@example.com/",
        "https://user:password@example.com/",
        "https://example.com@127.0.0.1/",
        "https://example.com\\@127.0.0.1/",
        "https://example.com/#fragment",
        "https://example.com/a b",
        "https://example.com/\r\nhost: x",
        "https://exa\tmple.com/",
        "https://bücher.example/",
        "https://example.com:0/",
        "https://example.com:65536/",
        "https://example.com:443x/",
        "https://-a.example/",
        "https://a..example/",
        "https://2130706433/",
        "https://127.1/",
        "https://0177.0.0.1/",
        "https://0x7f000001/",
        "https://127.0.0.0x1/",
        "https://[::1/",
        "https://[fe80::1%25eth0]/",
        "https://example.com/" + "x" * 2048,
    ],
)
def test_what_is_no_url_for_a_webhook(url: str) -> None:
    with pytest.raises(BadTarget) as raised:
        target_of(url)
    assert "password" not in str(raised.value)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "127.9.9.9",
        "169.254.169.254",
        "172.16.0.1",
        "192.0.0.1",
        "192.168.1.1",
        "198.18.0.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::7f00:1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not Targets(Settings()).allows(ipaddress.ip_address(address))


def test_addresses_that_may_be_connected_to() -> None:
    public = ("1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1")
    assert all(Targets(Settings()).allows(ipaddress.ip_address(address)) for address in public)
    own = Targets(Settings(webhook_networks="10.1.0.0/16, fd00::/8"))
    assert own.allows(ipaddress.ip_address("10.1.2.3"))
    assert own.allows(ipaddress.ip_address("::ffff:10.1.2.3"))
    assert own.allows(ipaddress.ip_address("fd00::1"))
    assert not own.allows(ipaddress.ip_address("10.2.0.1"))
    with pytest.raises(Unusable):
        Targets(Settings(webhook_networks="10.1.0.1/16"))


@pytest.mark.parametrize(
    ("hosts", "host", "may"),
    [
        ("", "example.com", False),
        ("example.com", "example.com", True),
        ("example.com", "a.example.com", False),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "badexample.com", False),
        ("a.test, B.test", "b.test", True),
        ("*", "anything.test", True),
    ],
)
def test_hosts(hosts: str, host: str, may: bool) -> None:
    targets, url = Targets(Settings(webhook_hosts=hosts)), f"https://{host}/"
    assert targets.check(url, is_operators=True).host == host
    if may:
        assert targets.check(url, is_operators=False).host == host
    else:
        with pytest.raises(BadTarget):
            targets.check(url, is_operators=False)


def test_both_secrets_sign_while_one_is_replaced() -> None:
    body, now = b'{"a":1}', int(time.time())
    headers = Secrets.of(f"{OTHER},{SECRET}").headers("id", now, body)
    for secret in (SECRET, OTHER):
        assert standardwebhooks.Webhook(secret).verify(body, headers) == {"a": 1}
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(SECRET).verify(body + b" ", headers)


def test_each_principal_has_secrets_of_its_own() -> None:
    secrets = Secrets.of(SECRET)
    own, others = secrets.for_principal("key:a"), secrets.for_principal("key:b")
    headers = own.headers("id", int(time.time()), b"{}")
    (text,) = own.texts()
    assert standardwebhooks.Webhook(text).verify(b"{}", headers) == {}
    for text in (*secrets.texts(), *others.texts()):
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            standardwebhooks.Webhook(text).verify(b"{}", headers)


@pytest.mark.parametrize("setting", ["x", "whsec_", "whsec_!", "whsec_c2hvcnQ=", SECRET[6:], ",".join([SECRET] * 3)])
def test_secrets_that_cannot_be_used_are_not_shown(setting: str) -> None:
    with pytest.raises(Unusable) as raised:
        Secrets.of(setting)
    assert SECRET[6:] not in str(raised.value)
    assert SECRET[6:] not in repr(Secrets.of(SECRET)) + str(Secrets.of(SECRET)) + repr(Settings(webhook_secrets=SECRET))
    assert "hidden" not in repr(Policies(webhook=Webhook("https://example.com/hidden")))


def choice(*, key: dict[str, Any] | None = None, authenticates: bool = True, **settings: Any) -> StreamWebhooks:
    return StreamWebhooks(Settings(**settings), cast(Any, None), lambda name: key or {}, authenticates=authenticates)


def test_the_request_comes_before_the_key_and_the_key_before_the_settings() -> None:
    principal.set(Principal("key:shop", frozenset({"act"})))
    asked, key = Webhook("https://a.test/"), {"url": "https://key.test/", "text": True}
    settings: dict[str, Any] = {"webhook_url": "https://all.test/", "webhook_hosts": "a.test"}
    assert choice(key=key, **settings).of(asked) == replace(asked, signer="key:shop")
    assert choice(key=key, **settings).of(None) == Webhook("https://key.test/", True, "key:shop")
    assert choice(**settings).of(None) == Webhook("https://all.test/")
    assert choice().of(None) is None
    assert choice(key=key, **settings).of(Webhook("")) is None
    assert choice(authenticates=False, **settings).of(asked) == asked
    act_for("ann")
    assert choice(**settings).of(asked) == replace(asked, signer="key:shop"), "the service has the secret"
    with pytest.raises(Problem) as raised:
        choice(webhook_hosts="b.test").of(asked)
    assert raised.value.status == 400
    with pytest.raises(Unusable):
        choice(webhook_url="https://127.0.0.1/")
    principal.set(ANONYMOUS)


def test_a_webhook_is_stored_with_the_policies() -> None:
    policies = Policies(webhook=Webhook("https://a.test/", True, "key:a"))
    assert Policies.load(policies.stored()) == policies
    assert Policies.load({**Policies().stored(), "webhook": {"url": 7}}) == Policies()


def test_a_long_text_and_many_connections_are_cut() -> None:
    generated = Generated()
    whole = receipt("id", generated, StreamNotes([]))
    whole["delivered"]["connections"] = [{"id": str(number)} for number in range(30)]
    generated.history.items = [(b"t", "ä".encode())] * TEXT_BYTES_MAX
    body = body_of(EndedLog("id", [], generated, whole), with_text=True)
    assert TEXT_BYTES_MAX < len(body) < TEXT_BYTES_MAX + 4000
    assert b'"text_cut":true' in body
    assert b'"connections_count":30' in body
    assert b'"id":"9"' not in body
    assert b'"id":"29"' in body
    assert b'"text"' not in body_of(EndedLog("id", [], generated, whole), with_text=False)
