"""The part of tracing that uses OpenTelemetry: imported only if tracing is on.

The SDK's thread sends ended spans in batches, from a queue that drops spans when it is full (OTEL_BSP_MAX_QUEUE_SIZE, 2048
spans): with a slow or unreachable collector spans are lost, but no time and no memory. No global tracer provider is set, so that
no library adds spans of its own, which might have whole queries in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanKind, StatusCode, get_current_span
from opentelemetry.trace import Span as OpenTelemetrySpan
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared.version import VERSION

logger = logging.getLogger(__name__)

Attributes = Mapping[str, str | bool | int | float | Sequence[str]]

_KINDS = {"internal": SpanKind.INTERNAL, "server": SpanKind.SERVER, "client": SpanKind.CLIENT}
_VALUE_CHARACTERS_MAX = 256
"""The most characters of an attribute and of a span's name: nothing else limits the model name that a client sends."""
_COMPLAINT_SECONDS = 300.0
"""The least time between two log lines that say that spans cannot be sent: the SDK logs one at every try."""
_propagator = TraceContextTextMapPropagator()


class Tracing:
    """Begins spans and has them sent. One per process; the SDK starts a thread for it."""

    def __init__(self, service: str) -> None:
        """Raises ValueError if the SDK's environment variables have wrong values."""
        _quieten()
        own = {
            "service.name": service,
            "service.version": VERSION,
            "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
        }
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence.
        from_environment = OTELResourceDetector().detect().attributes
        self._provider = TracerProvider(resource=Resource.create({**own, **from_environment}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("midstream", VERSION)

    def span(
        self,
        name: str,
        kind: str,
        *,
        parent: str,
        attributes: Attributes,
        began_at: float | None = None,
        link: str = "",
    ) -> Span:
        """Begins a span, now or at `began_at` (Unix seconds). About 30 µs.

        `parent` and `link` are values of `traceparent`. Without a valid parent the span begins a new trace; without a valid link
        it has none.
        """
        linked = get_current_span(_propagator.extract({"traceparent": link})).get_span_context() if link else None
        return Span(
            self._tracer.start_span(
                name[:_VALUE_CHARACTERS_MAX],
                _propagator.extract({"traceparent": parent}),
                _KINDS[kind],
                _bounded(attributes),
                [Link(linked)] if linked is not None and linked.is_valid else None,
                None if began_at is None else _nanoseconds(began_at),
            )
        )

    async def close(self, within_seconds: float) -> None:
        """Sends the remaining spans, if the collector takes them in time."""
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def send() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop is closed: `close` no longer waits
                loop.call_soon_threadsafe(sent.set)

        # The SDK may take 30 s. A daemon thread does not delay the end of the process, as one of the loop's executor would.
        threading.Thread(target=send, daemon=True).start()
        try:
            async with asyncio.timeout(within_seconds):
                await sent.wait()
        except TimeoutError:
            logger.warning("the last spans were not sent within %g s", within_seconds)


class Span:
    """A span that has begun. Attributes are ids, numbers and names, never a prompt or an answer."""

    __slots__ = ("_span",)

    def __init__(self, span: OpenTelemetrySpan) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        """The value that makes other spans children of this one (W3C Trace Context, section 3.2): 55 characters."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def set_attributes(self, attributes: Attributes) -> None:
        self._span.set_attributes(_bounded(attributes))

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        self._span.add_event(name, _bounded(attributes or {}))

    def end(self, error: str = "", at: float | None = None) -> None:
        """Ends the span, now or at the time `at` (Unix seconds). A span with an `error` counts as failed.

        `error` is a code, never a message: a provider's message may repeat the prompt.
        """
        if error:
            self.set_attributes({"error.type": error})
            self._span.set_status(StatusCode.ERROR)
        self._span.end(None if at is None else _nanoseconds(at))


def _bounded(attributes: Attributes) -> Attributes:
    return {
        name: value[:_VALUE_CHARACTERS_MAX] if isinstance(value, str) else value for name, value in attributes.items()
    }


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


class _Seldom(logging.Handler):
    """Logs the SDK's warnings as one line each, one in 5 minutes at most."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._next_at = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now >= self._next_at:
            self._next_at = now + _COMPLAINT_SECONDS
            logger.warning("traces: %s (logged once in %g s at most)", record.getMessage(), _COMPLAINT_SECONDS)


def _quieten() -> None:
    theirs = logging.getLogger("opentelemetry")
    theirs.propagate = False
    theirs.handlers = [_Seldom()]
    logging.getLogger("urllib3").setLevel(logging.ERROR)
