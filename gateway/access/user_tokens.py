"""Recognizes the tokens of an identity provider's users: JWTs (RFC 7519), checked as RFC 8725 says.

The operator's settings decide the algorithms, the issuer and the audience, never the token. Its keys are a JSON Web Key Set
(RFC 7517), from a file or an address, which is read anew in the background.
"""

from __future__ import annotations

import asyncio
import logging
import time
import urllib.parse
import urllib.request
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jwt
import orjson

from gateway.http.principal import OWNER_CHARACTERS_MAX, SCOPES, Principal
from gateway.http.problems import Problem
from gateway.listening import is_loopback
from shared.background import Complaints, keep_running
from shared.errors import Unusable
from shared.settings import Settings

logger = logging.getLogger(__name__)

_ALGORITHMS = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "RSA"),
    **dict.fromkeys(("ES256", "ES384", "ES512"), "EC"),
    "EdDSA": "OKP",
    **dict.fromkeys(("HS256", "HS384", "HS512"), "oct"),
}
"""The type of key that each algorithm needs (RFC 7518, section 6.1): a public key is never taken for a shared secret."""
_USER_SCOPES = SCOPES - {"admin", "act"}
"""What a user may have at all."""
_READ_AGAIN_SECONDS = 600.0
_TRY_AGAIN_SECONDS = 15.0
"""After keys that could not be read; those that were read before stay valid."""
_UNKNOWN_KEY_SECONDS = 60.0
"""A token with an unknown key id makes the keys be read at once, at most so often: strangers can make up key ids."""
_FETCH_SECONDS, _FETCH_BYTES_MAX = 5.0, 1 << 20
_KEYS_MAX = 100
_VERIFIED_MAX = 10_000
"""Tokens whose signature was found right, at about 2 KB: a user comes back with the same token many times."""


class UserTokens:
    """Recognizes JWTs (`Authenticator`). The user's name is `sub`; the scopes are those of MIDSTREAM_JWT_SCOPES."""

    is_for_urls = True

    def __init__(self, settings: Settings) -> None:
        """Raises Unusable."""
        self._source = settings.jwt_keys
        _check_source(self._source)
        self._algorithms = _words(settings.jwt_algorithms)
        if not self._algorithms or not set(self._algorithms) <= _ALGORITHMS.keys():
            raise Unusable(f"MIDSTREAM_JWT_ALGORITHMS={settings.jwt_algorithms!r}: known are {', '.join(_ALGORITHMS)}")
        self._issuer, self._audience = settings.jwt_issuer, settings.jwt_audience
        for name, value in (("MIDSTREAM_JWT_ISSUER", self._issuer), ("MIDSTREAM_JWT_AUDIENCE", self._audience)):
            if not value:
                raise Unusable(
                    f"{name} is not set: without it a token that was made for another service would be let in, too"
                )
        self._leeway_seconds = settings.jwt_leeway_seconds
        self._scopes = frozenset(_words(settings.jwt_scopes))
        if not self._scopes or not self._scopes <= _USER_SCOPES:
            raise Unusable(
                f"MIDSTREAM_JWT_SCOPES={settings.jwt_scopes!r}: a user's scopes are of {', '.join(sorted(_USER_SCOPES))}"
            )
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._read_at = 0.0
        """When the keys were last read, or could not be (monotonic)."""
        self._has_keys = asyncio.Event()
        self._wanted = asyncio.Event()
        """The keys are to be read now."""
        self._verified: OrderedDict[str, Principal] = OrderedDict()
        self._task: asyncio.Task[None] | None = None
        self._complaints = Complaints(logger.warning)

    def start(self) -> None:
        self._task = keep_running("user_keys", self._keep_up)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def principal_of(self, token: str) -> Principal | None:
        """Returns the user of a token. Raises Problem 503 while no keys have been read."""
        if token.count(".") != 2 or not token.startswith("eyJ"):  # a JSON object in base64url
            return None
        found = self._verified.get(token)
        if found is None:
            found = self._user_of(token, await self._key_of(token))
            if found is not None:
                self._verified[token] = found
                if len(self._verified) > _VERIFIED_MAX:
                    self._verified.popitem(last=False)
        if found is None or found.expires_at is None or time.time() >= found.expires_at:
            self._verified.pop(token, None)
            return None
        return found

    async def knows(self, who: Principal) -> bool:
        """Returns false: a user's token begins no session here."""
        return False

    async def _key_of(self, token: str) -> jwt.PyJWK | None:
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            return None
        algorithm, key_id = header.get("alg"), header.get("kid")
        if algorithm not in self._algorithms or not (key_id is None or isinstance(key_id, str)):
            return None
        if not self._has_keys.is_set():
            raise Problem(503, "the identity provider's keys have not been read yet", retry_after_seconds=2)
        key = self._known(key_id)
        if key is None and time.monotonic() - self._read_at > _UNKNOWN_KEY_SECONDS:
            read_at = self._read_at
            self._wanted.set()
            for _ in range(int(_FETCH_SECONDS / 0.05)):
                if self._read_at != read_at:
                    break
                await asyncio.sleep(0.05)
            key = self._known(key_id)
        return key if key is not None and key.key_type == _ALGORITHMS[str(algorithm)] else None

    def _known(self, key_id: str | None) -> jwt.PyJWK | None:
        """Returns the key with this id; for a token without one the only key, if there is one only."""
        if key_id is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id)

    def _user_of(self, token: str, key: jwt.PyJWK | None) -> Principal | None:
        if key is None:
            return None
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=self._algorithms,
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway_seconds,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            logger.debug("a user's token is refused: %s", type(error).__name__)
            return None
        subject = claims["sub"]
        if not isinstance(subject, str) or not 0 < len(subject) <= OWNER_CHARACTERS_MAX or not subject.isprintable():
            return None
        return Principal(f"user:{subject}", self._scopes, None, float(claims["exp"]) + self._leeway_seconds)

    # --- the keys

    async def _keep_up(self) -> None:
        while True:
            self._wanted.clear()
            pause_seconds = _READ_AGAIN_SECONDS
            try:
                self._take(await asyncio.to_thread(_read, self._source))
            except (OSError, ValueError, jwt.PyJWTError) as error:
                self._complaints.say(f"the identity provider's keys cannot be read from {self._source}: {error}")
                pause_seconds = _TRY_AGAIN_SECONDS
            self._read_at = time.monotonic()
            try:
                async with asyncio.timeout(pause_seconds):
                    await self._wanted.wait()
            except TimeoutError:
                continue

    def _take(self, read: bytes) -> None:
        """Takes a key set. Raises ValueError, PyJWTError where it has no key that can be used."""
        document = orjson.loads(read)
        entries = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(entries, list):
            raise ValueError("it is no JSON Web Key Set: an object with a list `keys`")
        keys: dict[str | None, jwt.PyJWK] = {}
        for entry in entries[:_KEYS_MAX]:
            if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
                continue
            try:
                keys[entry.get("kid")] = jwt.PyJWK(entry, entry.get("alg") or self._algorithm_for(entry.get("kty")))
            except (jwt.PyJWTError, ValueError, TypeError, KeyError):
                continue  # of another kind than is used here
        if not keys:
            raise ValueError(f"it has no key for {', '.join(self._algorithms)}")
        if keys.keys() != self._keys.keys():
            logger.info("%d keys of the identity provider are in use", len(keys))
        self._keys = keys
        self._verified.clear()  # a key may have been taken away
        self._has_keys.set()

    def _algorithm_for(self, key_type: Any) -> str | None:
        """Returns the first allowed algorithm for keys of this type."""
        return next((name for name in self._algorithms if _ALGORITHMS[name] == key_type), None)


def _words(text: str) -> list[str]:
    return [word for word in text.replace(",", " ").split() if word]


def _check_source(source: str) -> None:
    """Raises Unusable for an address over which anybody on the way could put keys of their own."""
    address = urllib.parse.urlsplit(source)
    is_safe = address.scheme == "https" or (address.scheme == "http" and is_loopback(address.hostname or ""))
    if address.scheme in ("http", "https") and not is_safe:
        raise Unusable(f"MIDSTREAM_JWT_KEYS={source}: keys are read over https, or from this machine")
    if address.scheme not in ("http", "https") and not Path(source).is_file():
        raise Unusable(f"MIDSTREAM_JWT_KEYS={source}: is neither an https address nor a file")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **options: Any) -> None:
        """Refuses: the address that was configured is the one that is trusted."""


def _read(source: str) -> bytes:
    """Returns the bytes of a key set. Raises OSError, ValueError. Runs in a thread."""
    if urllib.parse.urlsplit(source).scheme in ("http", "https"):
        opener = urllib.request.build_opener(_NoRedirects)
        with opener.open(source, timeout=_FETCH_SECONDS) as response:
            read: bytes = response.read(_FETCH_BYTES_MAX + 1)
    else:
        with Path(source).open("rb") as file:
            read = file.read(_FETCH_BYTES_MAX + 1)
    if len(read) > _FETCH_BYTES_MAX:
        raise ValueError(f"it has more than {_FETCH_BYTES_MAX} bytes")
    return read
