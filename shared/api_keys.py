"""API keys of services: their form, and the table of them in Redis.

    msk_<32 random characters><6 characters of checksum>         letters and digits: 190 random bits

The prefix and the checksum are for scanners that look for secrets in code. Redis has no key, only its SHA-256 digest: with so
many random bits nobody finds a key by trying, so no slow hash is needed.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from shared.commands import Executes
from shared.errors import MidstreamError
from shared.keys import API_KEYS
from shared.odd_replies import odd_reply

SCOPES = frozenset({"create", "read", "cancel", "write", "act", "admin"})
KEYS_MAX = 10_000
"""Each gateway process has the whole table in its memory, at about 500 bytes per key."""
PREFIX = "msk_"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_CHARACTERS, _CHECKSUM_CHARACTERS = 32, 6
_FORM = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_RANDOM_CHARACTERS + _CHECKSUM_CHARACTERS}}}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ID_CHARACTERS = 10
"""Of a digest, as people name a key: 40 bits, among 10,000 keys."""
_VERSION = "version"
"""The field whose value changes with each change of the table."""


class BadKey(MidstreamError):
    """An API key, or what is to be made one, is not valid."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a key. Several keys may have one name, as while one is replaced: they are one principal."""

    digest: str
    """SHA-256 of the key, hexadecimal."""
    name: str
    scopes: frozenset[str]
    created_at: float
    expires_at: float | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    """Limits that this key has in place of the settings', by the setting's name."""
    webhook: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Who is told of the ends of its streams: `url` and `text`; empty for who is by default."""

    @property
    def id(self) -> str:
        """A short name for one key, which does not tell it."""
        return self.digest[:_ID_CHARACTERS]

    def is_valid(self, now: float) -> bool:
        return self.expires_at is None or now < self.expires_at

    def stored(self) -> bytes:
        """Returns what Redis has of the key, but for the digest: JSON."""
        return orjson.dumps(
            {
                "name": self.name,
                "scopes": sorted(self.scopes),
                "created_at": self.created_at,
                "expires_at": self.expires_at,
                "limits": dict(self.limits),
                **({"webhook": dict(self.webhook)} if self.webhook else {}),
            }
        )

    @classmethod
    def load(cls, digest: str, stored: bytes) -> ApiKey:
        """Returns the key with this digest, from what `stored` returned. Raises BadKey."""
        try:
            value = orjson.loads(stored)
            expires_at, limits, webhook = value.get("expires_at"), value.get("limits"), value.get("webhook")
            return cls(
                digest,
                checked_name(value["name"]),
                checked_scopes(value["scopes"]),
                float(value["created_at"]),
                None if expires_at is None else float(expires_at),
                limits if isinstance(limits, dict) else {},
                webhook if isinstance(webhook, dict) else {},
            )
        except (ValueError, TypeError, LookupError, AttributeError):
            raise BadKey(f"the entry {digest[:_ID_CHARACTERS]} of the API keys in Redis cannot be read") from None


def new_key() -> str:
    """Returns a new random key."""
    body = "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARACTERS))
    return f"{PREFIX}{body}{_checksum(body)}"


def is_key(text: str) -> bool:
    """Returns whether a text has the form of a key, with the right checksum."""
    if not _FORM.fullmatch(text):
        return False
    body = text[len(PREFIX) : -_CHECKSUM_CHARACTERS]
    return text.endswith(_checksum(body))


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def checked_name(name: Any) -> str:
    """Returns a key's name. Raises BadKey."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadKey(
            f"{str(name)[:80]!r} is no name for a key: up to 64 letters, digits, dots, hyphens and underscores, the first a letter or a digit"
        )
    return name


def checked_scopes(scopes: Any) -> frozenset[str]:
    """Returns the scopes of a key. Raises BadKey."""
    found = frozenset(scopes)
    if not found or not found <= SCOPES:
        wrong = ", ".join(sorted(repr(str(scope)[:40]) for scope in found - SCOPES)) or "none"
        raise BadKey(f"scopes are {', '.join(sorted(SCOPES))}; given: {wrong}")
    return found


def keys_in(text: str, where: str) -> dict[str, ApiKey]:
    """Returns the keys of a file or a variable, by digest. Raises BadKey, which shows no key.

    A key is a line, or in a variable a part before a semicolon: `NAME SCOPE[,SCOPE...] KEY`. KEY is a key, or `sha256:` and its
    digest in hexadecimal. What follows a # is a comment.
    """
    found: dict[str, ApiKey] = {}
    for number, line in enumerate(re.split(r"[\n;]", text), 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        if len(fields) != 3:
            raise BadKey(f"{where}, entry {number}: has {len(fields)} parts and not three: NAME SCOPE,SCOPE KEY")
        name, scopes, key = fields
        digest = key.removeprefix("sha256:") if key.startswith("sha256:") else digest_of(key) if is_key(key) else ""
        if not _DIGEST.fullmatch(digest):
            raise BadKey(
                f"{where}, entry {number}: the third part is neither a key (msk_..., as `midstream keys create` makes it; its "
                "checksum may be wrong) nor sha256: and 64 hexadecimal digits"
            )
        try:
            found[digest] = ApiKey(digest, checked_name(name), checked_scopes(scopes.split(",")), 0.0)
        except BadKey as error:
            raise BadKey(f"{where}, entry {number}: {error}") from None
        if len(found) > KEYS_MAX:
            raise BadKey(f"{where} has more than {KEYS_MAX} keys")
    return found


class ApiKeyTable:
    """The keys in Redis: a hash from a key's digest to what is known of it."""

    def __init__(self, commands: Executes) -> None:
        self._commands = commands

    async def version(self) -> bytes:
        """Returns what changes with each change of the table. Raises Disconnected, RedisRefused."""
        reply = await self._commands.execute("HGET", API_KEYS, _VERSION)
        if reply is not None and not isinstance(reply, bytes):
            raise odd_reply("HGET", "something that is no text")
        return reply or b""

    async def all(self) -> dict[str, ApiKey]:
        """Returns the keys by their digests; entries that cannot be read are left out. Raises Disconnected, RedisRefused."""
        flat = await self._commands.execute("HGETALL", API_KEYS)
        if not isinstance(flat, list) or not all(isinstance(part, bytes) for part in flat):
            raise odd_reply("HGETALL", "something that is no list of texts")
        found = {}
        for name, stored in zip(flat[::2], flat[1::2], strict=False):
            digest = name.decode(errors="replace")
            if digest != _VERSION:
                try:
                    found[digest] = ApiKey.load(digest, stored)
                except BadKey:
                    continue
        return found

    async def find(self, digest: str) -> ApiKey | None:
        """Returns the key with this digest; None if there is none, or one that cannot be read. Raises Disconnected, RedisRefused."""
        stored = await self._commands.execute("HGET", API_KEYS, digest)
        try:
            return ApiKey.load(digest, stored) if isinstance(stored, bytes) else None
        except BadKey:
            return None

    async def put(self, key: ApiKey) -> None:
        """Adds a key, or changes it. Raises Disconnected, RedisRefused."""
        await self._commands.execute("HSET", API_KEYS, key.digest, key.stored(), _VERSION, secrets.token_hex(8))

    async def delete(self, digest: str) -> bool:
        """Deletes a key; returns False if there was none. Raises Disconnected, RedisRefused."""
        deleted = await self._commands.execute("HDEL", API_KEYS, digest)
        await self._commands.execute("HSET", API_KEYS, _VERSION, secrets.token_hex(8))
        return bool(deleted)


async def create(
    table: ApiKeyTable,
    name: str,
    scopes: frozenset[str],
    expires_seconds: float | None,
    limits: Mapping[str, Any],
    webhook: Mapping[str, Any] | None = None,
) -> tuple[str, ApiKey]:
    """Makes a key; returns it, which is stored nowhere, and what is known of it. Raises BadKey, Disconnected, RedisRefused."""
    if len(await table.all()) >= KEYS_MAX:
        raise BadKey(f"there are {KEYS_MAX} keys, which is the most: revoke some")
    key, now = new_key(), time.time()
    expires_at = None if expires_seconds is None else now + expires_seconds
    entry = ApiKey(digest_of(key), checked_name(name), scopes, now, expires_at, limits, webhook or {})
    await table.put(entry)
    return key, entry


def _checksum(body: str) -> str:
    """Returns the CRC-32 of a key's random characters, in characters of the same alphabet."""
    number, characters = zlib.crc32(body.encode()), ""
    for _ in range(_CHECKSUM_CHARACTERS):
        number, place = divmod(number, len(_ALPHABET))
        characters = _ALPHABET[place] + characters
    return characters
