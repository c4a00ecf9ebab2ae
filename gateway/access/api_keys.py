"""Recognizes API keys, without a round trip to Redis: each process has the table, and looks every two seconds whether it has changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable
from pathlib import Path

from gateway.http.principal import Principal
from gateway.http.problems import away
from shared.api_keys import ApiKey, ApiKeyTable, BadKey, digest_of, is_key, keys_in
from shared.background import Complaints, keep_running
from shared.commands import Executes
from shared.errors import Disconnected, RedisRefused, Unusable
from shared.logs import audit_line
from shared.settings import Settings

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0
"""A revocation is known everywhere within this time and a round trip: the promise is five seconds."""
_TABLE_SECONDS_MAX = 300.0
"""For so long the last table is used while Redis is away: then nobody can know which keys were revoked."""
_NEW_KEYS_PER_LOOK = 20
"""Keys that are not in the table and are looked up in Redis, between two looks: a key that was just made works at once."""
_FILE_BYTES_MAX = 4 << 20


class ApiKeys:
    """Recognizes the keys in Redis, in the file MIDSTREAM_API_KEYS_FILE and in MIDSTREAM_API_KEYS (`Authenticator`)."""

    is_for_urls = False

    def __init__(self, commands: Executes, settings: Settings) -> None:
        """Raises Unusable for a file or a variable that cannot be read, without showing a key."""
        self._table = ApiKeyTable(commands)
        self._file = Path(settings.api_keys_file) if settings.api_keys_file else None
        self._file_state: tuple[int, int] | None = None
        try:
            self._configured = keys_in(settings.api_keys, "MIDSTREAM_API_KEYS")
            self._in_file = self._read_file()
        except BadKey as error:
            raise Unusable(str(error)) from None
        self._in_redis: dict[str, ApiKey] = {}
        self._table_read: dict[str, ApiKey] | None = None
        """The table as it was last read as a whole; None before that."""
        self._version: bytes | None = None
        self._looked_at: float | None = None
        """When Redis last said that the table is as it is here."""
        self._lookups_left = _NEW_KEYS_PER_LOOK
        self._principals: dict[str, Principal] = {}
        self._task: asyncio.Task[None] | None = None
        self._complaints = Complaints(logger.warning)

    def start(self) -> None:
        self._task = keep_running("api_keys", self._keep_up)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def principal_of(self, token: str) -> Principal | None:
        """Returns the principal of a key. Raises Problem 503 while it cannot be known."""
        if not is_key(token):
            return None
        digest = digest_of(token)
        key = self._configured.get(digest) or self._in_file.get(digest) or await self._key_in_redis(digest)
        if key is None or not key.is_valid(time.time()):
            return None
        found = self._principals.get(digest)
        if found is None:
            found = self._principals[digest] = Principal(f"key:{key.name}", key.scopes, None, key.expires_at)
        return found

    async def knows(self, who: Principal) -> bool:
        """Returns whether a key of this name is valid that has these scopes. Raises Problem 503 while it cannot be known."""
        await self._table_is_known()
        keys = (*self._configured.values(), *self._in_file.values(), *self._in_redis.values())
        now = time.time()
        return any(f"key:{key.name}" == who.name and who.scopes <= key.scopes and key.is_valid(now) for key in keys)

    def webhook_of(self, principal_name: str) -> dict[str, object]:
        """Returns the webhook that the newest key of this name has: `url` and `text`; nothing if it has none."""
        key = self._newest_of(principal_name)
        return dict(key.webhook) if key is not None else {}

    def limits_of(self, principal_name: str) -> dict[str, object]:
        """Returns the limits that the keys of this name have in place of the settings'; of several the newest key's."""
        key = self._newest_of(principal_name)
        return dict(key.limits) if key is not None else {}

    def _newest_of(self, principal_name: str) -> ApiKey | None:
        """Returns the newest key in Redis of this principal's name."""
        kind, _, name = principal_name.partition(":")
        keys = [key for key in self._in_redis.values() if key.name == name] if kind == "key" else []
        return max(keys, key=lambda key: key.created_at) if keys else None

    async def _table_is_known(self) -> None:
        """Returns when the table is as it was in Redis, not too long ago. Raises Problem 503."""
        if self._looked_at is None or time.monotonic() - self._looked_at > _TABLE_SECONDS_MAX:
            try:
                await self._look()
            except (Disconnected, RedisRefused):
                raise away() from None

    async def _key_in_redis(self, digest: str) -> ApiKey | None:
        await self._table_is_known()
        key = self._in_redis.get(digest)
        if key is None and self._lookups_left > 0:
            self._lookups_left -= 1
            try:
                key = await self._table.find(digest)
            except (Disconnected, RedisRefused):
                raise away() from None
            if key is not None:
                self._in_redis[digest] = key
        return key

    async def _keep_up(self) -> None:
        while True:
            try:
                await self._look()
            except (Disconnected, RedisRefused) as error:
                logger.debug("the API keys cannot be looked at: %s", error)
            try:
                self._look_at_file()
            except BadKey as error:
                self._complaints.say(f"the keys that were read before stay valid: {error}")
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self) -> None:
        """Reads the table if it has changed. Raises Disconnected, RedisRefused."""
        version = await self._table.version()
        if version != self._version or self._looked_at is None:
            read = await self._table.all()
            if self._table_read is not None and read != self._table_read:
                _note_changes(self._table_read, read)
            self._in_redis, self._table_read = dict(read), read
            self._version = version
            self._principals.clear()
        self._looked_at = time.monotonic()
        self._lookups_left = _NEW_KEYS_PER_LOOK

    def _look_at_file(self) -> None:
        """Reads the file if it has changed. Raises BadKey."""
        if self._file is not None and self._state_of_file() != self._file_state:
            self._in_file = self._read_file()
            self._principals.clear()
            logger.info("%d API keys were read from %s", len(self._in_file), self._file)

    def _read_file(self) -> dict[str, ApiKey]:
        if self._file is None:
            return {}
        self._file_state = self._state_of_file()
        try:
            if self._file.stat().st_size > _FILE_BYTES_MAX:
                raise BadKey(f"MIDSTREAM_API_KEYS_FILE: {self._file} has more than {_FILE_BYTES_MAX} bytes")
            return keys_in(self._file.read_text(), f"MIDSTREAM_API_KEYS_FILE: {self._file}")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            raise BadKey(f"MIDSTREAM_API_KEYS_FILE: {self._file} cannot be read: {reason}") from None

    def _state_of_file(self) -> tuple[int, int] | None:
        with contextlib.suppress(OSError):
            assert self._file is not None
            status = self._file.stat()
            return status.st_mtime_ns, status.st_size
        return None


def _note_changes(before: dict[str, ApiKey], now: dict[str, ApiKey]) -> None:
    """Writes an audit line about the keys that somebody has put into Redis, changed there or deleted."""

    def names(of: dict[str, ApiKey], digests: Iterable[str]) -> list[str] | None:
        return [f"{of[digest].name}:{of[digest].id}" for digest in sorted(digests)] or None

    audit_line(
        "keys_changed",
        added=names(now, now.keys() - before.keys()),
        changed=names(now, (digest for digest in now.keys() & before.keys() if now[digest] != before[digest])),
        removed=names(before, before.keys() - now.keys()),
    )
