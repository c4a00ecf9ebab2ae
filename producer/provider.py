"""The interface to whoever generates the answers, and its errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from shared.errors import MidstreamError, Unusable
from shared.events import Item
from shared.outcomes import FailureCode
from shared.provider_address import check_base_url
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class Finish:
    """How the provider ended its answer: the finish_reason in OpenAI's words, and the usage that it sent; no usage if it sent none."""

    reason: str
    usage: dict[str, Any] | None
    about: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Its other fields: `provider`, those of the answer (system_fingerprint, service_tier); `choice`, those of the end, in which
    `native_finish_reason` is the provider's own word where that is another."""


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
        """Returns what the log keeps beside code and message, for clients that know the provider's own errors."""
        fields = {"status": self.status, "provider_error": self.error, "retry_after": self.retry_after_seconds}
        return {name: value for name, value in fields.items() if value is not None}


class Unavailable(ProviderError):
    """An error that may pass: overload, a lost connection, silence, a stream that broke off. It is tried again."""


class Refused(ProviderError):
    """An error that stays: the provider says that the request itself is at fault."""

    code = FailureCode.PROVIDER_REFUSED
    retryable = False


class Hearer(Protocol):
    """Takes what a provider generates."""

    def accept(self, items: list[Item]) -> bool:
        """Takes the items that came together. False: the provider must await `wait_for_room` before it gives more."""

    def odd(self, kind: str) -> None:
        """Takes note of what is not as documented and was tolerated: `shared.metrics.PROVIDER_ODDITIES_TOLERATED` has the kinds."""

    async def wait_for_room(self) -> None:
        """Waits until more may be given. Raises what has ended the answer meanwhile."""


class Provider(Protocol):
    """Generates answers. One per worker process, used by all of its attempts at once."""

    name: str
    base_url: str
    """Where it is asked; empty if it asks nobody."""

    def model_of(self, request: dict[str, Any]) -> str:
        """Returns the name of the model that will answer, as readers see it."""

    async def generate(self, request: dict[str, Any], partial: str, hearer: Hearer) -> Finish:
        """Streams the answer to the hearer: one plain call per token, since a task switch would double its cost.

        With `partial` the answer continues that text, which is not repeated. Cancelling it closes the connection, so that
        the provider stops. Raises Unavailable, Refused, and what `wait_for_room` raises.
        """

    async def close(self) -> None:
        """Closes the connections to the provider."""


def provider_name(settings: Settings) -> str:
    """Returns the name of the provider that the settings choose. Raises Unusable if it lacks a setting, or one is wrong."""
    has_openai = bool(settings.openai_api_key or settings.openai_base_url)
    name = settings.provider or ("openai" if has_openai else "simulated")
    if name == "openai" and not has_openai:
        raise Unusable("the openai provider needs OPENAI_API_KEY, or OPENAI_BASE_URL for a server that needs no key")
    if name == "openai":
        check_base_url(settings.openai_base_url)
    return name
