"""The interface to whoever generates the answers, and its errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from shared.errors import MidstreamError
from shared.events import Item
from shared.lifecycle import History
from shared.outcomes import FailureCode


@dataclass(frozen=True, slots=True)
class Finish:
    """How the provider ended its answer: the finish_reason in OpenAI's words, and the usage that it sent; no usage if it sent none."""

    reason: str = "stop"
    usage: dict[str, Any] | None = None
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


class GeneratorError(ProviderError):
    """A generator of the user's own has raised, or yielded what cannot stand in a log. It is not called again by itself: its
    tools may have done what must not be done twice."""

    code = FailureCode.GENERATOR_ERROR
    retryable = False


class SoFar:
    """What a stream's log has when a call of the provider begins: nothing at first, and what earlier attempts wrote where this
    one continues it (`on_interrupt`: `continue`). False where it has nothing."""

    def __init__(self, stream_id: str, history: History) -> None:
        self.stream_id = stream_id
        """The stream's id, the same in all attempts."""
        self.attempt = history.attempt
        """The number of this attempt, from 1 on."""
        self.text = history.text
        """The answer's text."""
        self.items = history.yielded()
        """All of it in order: texts, `{"event": name, "data": …}`, `{"delta": …}`. Texts need not be cut as they were yielded."""

    def __bool__(self) -> bool:
        return bool(self.items)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The own events in order, each `{"event": name, "data": …}`."""
        return [item for item in self.items if isinstance(item, dict) and "event" in item]


class Abilities(NamedTuple):
    """What a provider can do with a certain request."""

    continues_text: bool = True
    """Continues an answer of which plain text has come."""
    continues_all: bool = False
    """Continues an answer of which more has come: deltas, own events."""
    reads_on: bool = True
    """May be left running after a cancel, for its usage (`MIDSTREAM_PROVIDER_ON_CANCEL=drain`)."""


class Hearer(Protocol):
    """Takes what a provider generates."""

    @property
    def so_far(self) -> SoFar:
        """What the log has already, which the answer continues."""

    def accept(self, items: list[Item]) -> bool:
        """Takes the items that came together. False: the provider must await `wait_for_room` before it gives more."""

    @property
    def has_pace(self) -> bool:
        """Whether what comes may have to wait for the stream's pace: then `wants_at` says how long."""

    def wants_at(self) -> float:
        """Returns when what comes next can be appended (monotonic seconds)."""

    def odd(self, kind: str) -> None:
        """Takes note of what is not as documented and was tolerated: `shared.metrics.PROVIDER_ODDITIES_TOLERATED` has the kinds."""

    async def wait_for_room(self) -> None:
        """Waits until more may be given. Raises what has ended the answer meanwhile."""

    async def stored(self) -> None:
        """Waits until all that was accepted is in the log. Raises what has ended the answer meanwhile."""

    def progress(self) -> None:
        """Takes note that the provider works, although nothing has come: it does not count as silent."""


class Provider(Protocol):
    """Generates answers. One per worker process, used by all of its attempts at once."""

    name: str

    def model_of(self, request: dict[str, Any]) -> str:
        """Returns the name of the model that will answer, as readers see it."""

    async def generate(self, request: dict[str, Any], partial: str, hearer: Hearer) -> Finish:
        """Streams the answer to the hearer: one plain call per token, since a task switch would double its cost.

        With `partial` the answer continues that text, which is not repeated. Cancelling it closes the connection, so that
        the provider stops. Raises Unavailable, Refused, and what `wait_for_room` raises.
        """

    async def close(self) -> None:
        """Closes the connections to the provider."""


def abilities_of(provider: Provider, request: dict[str, Any]) -> Abilities:
    """Returns what a provider can do with a request: what its method `abilities_of` says, if it has one."""
    own = getattr(provider, "abilities_of", None)
    return Abilities() if own is None else own(request)


def base_url_of(provider: Provider, request: dict[str, Any]) -> str:
    """Returns the address at which a provider is asked this request, for the log; empty if that is not known."""
    own = getattr(provider, "base_url_of", None)
    return str(getattr(provider, "base_url", "")) if own is None else str(own(request))
