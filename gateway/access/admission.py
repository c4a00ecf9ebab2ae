"""Admission: each request's principal is found, and its scope checked, before its handler runs.

    no credential ──► 401       a credential that nobody knows ──► 401       a scope is missing ──► 403

Of several credentials a header alone counts; else the first that is known: the query's, then the cookies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gateway.access.authenticators import Authenticator, Proof, principal_of, proof
from gateway.access.credentials import SESSION_COOKIE, STREAM_COOKIE, Credentials, take_credentials
from gateway.access.sessions import Sessions
from gateway.access.stream_tokens import StreamTokens
from gateway.http.audit import Refusals
from gateway.http.connection import Scope
from gateway.http.principal import ANONYMOUS, NOBODY, OPEN, Principal, act_for, principal, require
from gateway.http.problems import Problem
from gateway.http.routes import Route

OWNER_HEADER = b"x-midstream-owner"
"""For every API; in the native body it is `midstream.owner`."""
_REALM = 'Bearer realm="midstream"'


class Admission:
    """Lets requests in. Where authentication is off (`tokens` is None) everybody may do everything."""

    def __init__(
        self,
        authenticators: Sequence[Authenticator] = (),
        *,
        tokens: StreamTokens | None = None,
        sessions: Sessions | None = None,
        user_cookie: str = "",
    ) -> None:
        """`user_cookie` names the cookie in which an application keeps its users' tokens, if it does."""
        self.tokens = tokens
        self.sessions = sessions
        self.refusals = Refusals()
        self._authenticators = authenticators if tokens is None else (tokens, *authenticators)
        for_urls = tuple(authenticator for authenticator in self._authenticators if authenticator.is_for_urls)
        self._for_urls = for_urls
        self._for_cookies: dict[str, Sequence[Authenticator]] = {}
        if tokens is not None:
            self._for_cookies[STREAM_COOKIE] = (tokens,)
        if sessions is not None:
            self._for_cookies[SESSION_COOKIE] = (sessions,)
        if user_cookie:
            self._for_cookies[user_cookie] = for_urls

    @property
    def is_on(self) -> bool:
        """Whether clients have to show who they are."""
        return self.tokens is not None

    async def admit(self, scope: Scope, route: Route, *, with_cookies: bool) -> None:
        """Sets the principal of a request for this route, and takes its credentials out of its scope.

        `with_cookies`: the request comes from a page that may act for its user. Raises Problem 401, 403.
        """
        credentials = take_credentials(scope, self._for_cookies)
        if not self.is_on:
            principal.set(ANONYMOUS)
            act_for(_owner_in(scope))
            return
        if not with_cookies:
            credentials.cookies = {}
        shown = await self._proof_of(credentials) if credentials else None
        proof.set(shown)
        who = None if shown is None else shown.who
        principal.set(NOBODY if who is None else who)
        if route.scope != OPEN:
            if who is None:
                self.refusals.note(
                    "credential_refused", route=f"{route.method} {route.path}", credential=credentials.kind
                )
                raise _unknown(credentials)
            require(route.scope, who)
            act_for(_owner_in(scope))

    async def principal_for(self, token: str) -> Principal | None:
        """Returns whom a token stands for that has come in a header or a form."""
        return await principal_of(token, self._authenticators)

    async def _proof_of(self, credentials: Credentials) -> Proof | None:
        """Returns the first of these credentials that is known; None if none is."""
        for token, authenticators in self._candidates(credentials):
            who = await principal_of(token, authenticators)
            if who is not None:
                return Proof(token, who, authenticators)
        return None

    def _candidates(self, credentials: Credentials) -> Iterator[tuple[str, Sequence[Authenticator]]]:
        """Yields the tokens of a request, each with what may recognize it there."""
        if credentials.header is not None:
            if credentials.header:
                yield credentials.header, self._authenticators
            return
        if credentials.query:
            yield credentials.query, self._for_urls
        for name, authenticators in self._for_cookies.items():
            if name in credentials.cookies:
                yield credentials.cookies[name], authenticators


def _owner_in(scope: Scope) -> str | None:
    """Returns the end user for whom a service makes a request, as its header says."""
    for name, value in scope["headers"]:
        if name == OWNER_HEADER:
            return str(value, "latin-1")
    return None


def _unknown(credentials: Credentials) -> Problem:
    """Returns the answer to a request without a credential, or with one that stands for nobody (RFC 6750, section 3)."""
    if not credentials:
        detail, challenge = "this needs a credential: Authorization: Bearer ...", _REALM
    else:
        detail = "this credential is not known here: it is wrong, has expired or was revoked, or it may not stand where it does"
        challenge = f'{_REALM}, error="invalid_token"'
    return Problem(401, detail, headers={"www-authenticate": challenge})
