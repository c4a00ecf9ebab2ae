"""Redis over TLS, with a client certificate and the users of deploy/redis/users.acl."""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from midstream.doctor.redis import examined_redis
from shared.connections import check
from shared.errors import Unusable
from shared.grants import check_for_all
from shared.settings import Settings
from tests.support.needs import needs
from tests.support.redis_server import USER_PASSWORD, USERS, RedisServer, binary_of, free_port
from tests.support.waiting import wait_until

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "run-with-your-own-redis.md").read_text()


@dataclass(frozen=True)
class Authority:
    """Signs certificates, whose files are in `directory`."""

    directory: Path
    name: str

    def __post_init__(self) -> None:
        self.sign(self.name, is_authority=True)

    def file(self, name: str) -> Path:
        """Returns the file of a certificate, which also has its key."""
        return self.directory / f"{name}.pem"

    def sign(self, name: str, *, is_authority: bool = False) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        signing = key
        if not is_authority:
            loaded = serialization.load_pem_private_key(self.file(self.name).read_bytes(), None)
            assert isinstance(loaded, ec.EllipticCurvePrivateKey)
            signing = loaded
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .sign(signing, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        self.file(name).write_bytes(certificate.public_bytes(pem) + secret)
        return self.file(name)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    authority = Authority(tmp_path_factory.mktemp("tls"), "authority")
    for name in ("server", "client"):
        authority.sign(name)
    return authority


def with_tls(authority: Authority, port: int, *arguments: str) -> RedisServer:
    """Returns a Redis, not started, that has TLS at this port and asks each client for a certificate."""
    needs("redis-server (Debian: apt install redis-server)", binary_of("redis"))
    server = str(authority.file("server"))
    options = ["--tls-port", str(port), "--tls-cert-file", server, "--tls-key-file", server]
    options += ["--tls-ca-cert-file", str(authority.file("authority")), "--tls-auth-clients", "yes"]
    return RedisServer("redis", tcp=True, arguments=[*options, *arguments])


@pytest.fixture(scope="module")
def server_url(authority: Authority) -> Iterator[str]:
    """The URL of a Redis that asks each client for a certificate, without the login and the files."""
    port = free_port()
    with with_tls(authority, port):
        yield f"127.0.0.1:{port}/0"


async def test_all_that_both_kinds_of_process_do_goes_over_tls(authority: Authority, server_url: str) -> None:
    """As the shipped user for both, with a client certificate."""
    url = (
        f"rediss://midstream:{USER_PASSWORD}@{server_url}?ssl_ca_certs={authority.file('authority')}"
        f"&ssl_certfile={authority.file('client')}&ssl_keyfile={authority.file('client')}"
    )
    await check_for_all(url, Settings(redis_url=url))


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("ssl_ca_certs={authority}", "cannot be reached"),
        ("ssl_certfile={client}", "CERTIFICATE_VERIFY_FAILED|certificate verify failed"),
        ("ssl_ca_certs={other}&ssl_certfile={client}", "CERTIFICATE_VERIFY_FAILED|certificate verify failed"),
        ("ssl_ca_certs={authority}&ssl_certfile={missing}", "missing.pem.*No such file"),
    ],
)
async def test_a_connection_that_is_not_safe_is_not_used(
    authority: Authority, server_url: str, tmp_path: Path, query: str, reason: str
) -> None:
    files = {"authority": authority.file("authority"), "client": authority.file("client")}
    files |= {"other": Authority(tmp_path, "other").file("other"), "missing": tmp_path / "missing.pem"}
    with pytest.raises(Unusable, match=f"(?i){reason}") as error:
        await check(
            Settings(
                redis_url=f"rediss://midstream:{USER_PASSWORD}@{server_url}?{query.format(**files)}",
                redis_start_seconds=0.5,
            )
        )
    assert USER_PASSWORD not in str(error.value)


def test_the_shipped_users_are_the_documented_ones() -> None:
    documented = dict(re.findall(r"^ACL SETUSER (\S+) on >\S+ (.+)$", PAGE, re.MULTILINE))
    assert {name: f"on resetpass {rules}" for name, rules in documented.items()} == USERS


async def test_the_doctor_reaches_the_masters_of_a_cluster_with_the_files_of_the_url(authority: Authority) -> None:
    port, own = free_port(), free_port()
    arguments = ("--cluster-enabled", "yes", "--cluster-port", str(own), "--tls-cluster", "yes")
    with with_tls(authority, port, *arguments) as node:
        with redis.Redis(port=node.port, protocol=2) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            await wait_until(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"), what="all slots")
        client_file = authority.file("client")
        url = f"rediss+cluster://127.0.0.1:{port}?ssl_ca_certs={authority.file('authority')}&ssl_certfile={client_file}"
        report = await examined_redis(url, role=None, progress=lambda activity: None)
    assert not [finding.problem for finding in report.faults]
