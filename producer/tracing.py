"""The spans of a worker: one for each attempt, and one for an end that is written without an attempt. Used only where traces
are on.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from producer.metrics import Meter
from shared.events import Accepted
from shared.outcomes import AttemptOutcome, FailureCode
from shared.tracing import traceparent

if TYPE_CHECKING:
    from shared.spans import Span, Tracing

_TERMINAL_EVENTS = {
    AttemptOutcome.COMPLETED: "done",
    AttemptOutcome.FAILED: "failed",
    AttemptOutcome.CANCELLED: "cancelled",
}
_USAGE = (
    ("gen_ai.usage.input_tokens", "prompt_tokens"),
    ("gen_ai.usage.output_tokens", "completion_tokens"),
)


class TracedMeter(Meter):
    """A meter whose attempts have spans, under the names of OpenTelemetry's GenAI conventions where these have one.

    The span of an attempt whose worker is killed is lost with it: the next attempt's says `worker_lost`.
    """

    def __init__(self, provider: str, stream_id: str, tracing: Tracing) -> None:
        super().__init__(provider)
        self._stream_id = stream_id
        self._tracing = tracing
        self._parent = self._error = ""
        self._span: Span | None = None

    def accepted(self, accepted: Accepted, has_tokens: bool) -> None:
        super().accepted(accepted, has_tokens)
        self._parent = accepted.traceparent

    def begun(self, attempt: int, kept_tokens: int, model: str, reason: str) -> None:
        super().begun(attempt, kept_tokens, model, reason)
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": self._provider,
            "gen_ai.request.model": model,
            "midstream.stream.id": self._stream_id,
            "midstream.attempt": attempt,
            "midstream.base": kept_tokens,
        }
        if reason:
            attributes["midstream.reason"] = reason
        else:
            attributes["midstream.queue_wait_seconds"] = max(0.0, time.time() - self._accepted_at)
        self._error = ""
        self._span = self._tracing.span(f"chat {model}", "client", parent=self._parent, attributes=attributes)
        traceparent.set(self._span.traceparent)  # sent to the provider

    def first_token(self) -> None:
        super().first_token()
        if self._span is not None:
            self._span.event("midstream.first_token")

    def call_answered(self, tokens: int, last_at: float, usage: dict[str, Any] | None) -> None:
        super().call_answered(tokens, last_at, usage)
        if self._span is not None:
            counts = {name: (usage or {}).get(theirs) for name, theirs in _USAGE}
            self._span.set_attributes({name: count for name, count in counts.items() if isinstance(count, int)})

    def provider_failed(self, code: FailureCode) -> None:
        super().provider_failed(code)
        self._error = code
        if self._span is not None:
            self._span.event("midstream.provider_failed", {"error.type": code})

    def ended(self, outcome: AttemptOutcome, **details: str) -> None:
        super().ended(outcome, **details)
        span, self._span = self._span, None
        if span is None:
            return
        span.set_attributes({"midstream.outcome": outcome, "midstream.offset": self._counted})
        if "finish_reason" in details:
            span.set_attributes({"gen_ai.response.finish_reasons": [details["finish_reason"]]})
        for name in ("by", "fenced_by"):
            if name in details:
                span.set_attributes({f"midstream.{name}": details[name]})
        if outcome in _TERMINAL_EVENTS:
            span.event(f"midstream.{_TERMINAL_EVENTS[outcome]}")
        errors = {
            AttemptOutcome.FAILED: details.get("code", ""),
            AttemptOutcome.RESTARTED: self._error,
            AttemptOutcome.ERROR: "error",
        }
        span.end(errors.get(outcome, ""))

    def failed_before(self, code: FailureCode) -> None:
        super().failed_before(code)
        attributes = {"midstream.stream.id": self._stream_id, "midstream.outcome": AttemptOutcome.FAILED}
        span = self._tracing.span("end", "internal", parent=self._parent, attributes=attributes)
        span.event("midstream.failed", {"error.type": code})
        span.end(code)
