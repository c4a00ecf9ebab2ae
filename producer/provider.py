"""The seam to whoever generates the answers, and what can go wrong there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from shared.errors import MidstreamError, Unusable
from shared.events import Item
from shared.outcomes import FailureCode
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class Finish:
    """How the provider ended its answer: the reason and the usage as it said them, null where it said none."""

    reason: str
    usage: dict[str, Any] | None
    about: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What else it said: `provider`, of the answer (system_fingerprint, service_tier); `choice`, with the reason."""


class ProviderError(MidstreamError):
    """The provider did not answer to the end."""

    code = FailureCode.PROVIDER_UNAVAILABLE
    retryable = True

    def __init__(
        self,
        message: str,
        *,
        code: FailureCode | None = None,
        retry_after_seconds: float | None = None,
        status: int | None = None,
        error: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code or self.code
        self.retry_after_seconds = retry_after_seconds
        self.status = status
        self.error = error
        """The provider's own error object, of bounded size."""

    def about(self) -> dict[str, Any]:
        """What the log keeps of it beside its code and message, for clients that know the provider's own errors."""
        told = {"status": self.status, "provider_error": self.error, "retry_after": self.retry_after_seconds}
        return {name: value for name, value in told.items() if value is not None}


class Unavailable(ProviderError):
    """It may be tried again: overload, a lost connection, silence, a stream that broke off."""


class Refused(ProviderError):
    """It may not: the provider says that the request itself is at fault."""

    code = FailureCode.PROVIDER_REFUSED
    retryable = False


class Hearer(Protocol):
    """Who is told what a provider says."""

    def accept(self, items: list[Item]) -> bool:
        """Take what came together. False: that is enough; the provider is to wait for `wait_for_room` before it says more."""

    def odd(self, kind: str) -> None:
        """Note that the provider said something of a shape that nothing documents: it was left out, or made text."""

    async def wait_for_room(self) -> None:
        """Wait until more may come. Raises what has ended the answer meanwhile."""


class Provider(Protocol):
    """Who generates. One per worker process, used by all its attempts at once."""

    name: str

    def model_of(self, request: dict[str, Any]) -> str:
        """The model that will answer, as readers are told."""

    async def generate(self, request: dict[str, Any], partial: str, hearer: Hearer) -> Finish:
        """Ask, and tell the answer as it comes: a call for each token, not a task's turn, which costs as much as the rest.

        With `partial` the answer goes on from that text, which is not repeated. To cancel it closes the connection, so
        that the provider stops. Raises Unavailable, Refused, and what `wait_for_room` raises.
        """

    async def close(self) -> None:
        """Give back what is held open."""


def provider_name(settings: Settings) -> str:
    """Which provider the settings name. Raises Unusable for one that there is not, or that lacks something."""
    told = bool(settings.openai_api_key or settings.openai_base_url)
    name = settings.provider or ("openai" if told else "simulated")
    if name not in ("openai", "simulated"):
        raise Unusable(f"MIDSTREAM_PROVIDER={name!r}: openai or simulated is wanted")
    if name == "openai" and not told:
        raise Unusable("the openai provider needs OPENAI_API_KEY, or OPENAI_BASE_URL for a server that wants no key")
    if settings.provider_on_cancel not in ("close", "drain"):
        raise Unusable(f"MIDSTREAM_PROVIDER_ON_CANCEL={settings.provider_on_cancel!r}: close or drain is wanted")
    return name
