"""The part of tracing that knows OpenTelemetry: imported only where traces are wanted.

The SDK's own thread sends what has ended, in batches, from a queue that drops when it is full (OTEL_BSP_MAX_QUEUE_SIZE,
2048 spans): a collector that is slow or away costs spans, and neither time nor memory. No global provider is set: FastAPI
looks for one, and would add spans of its own, with whole queries in them.
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
"""Of an attribute, and of what clients give a name: a model's is not bounded by anything else."""
_COMPLAINT_SECONDS = 300.0
"""How often, at most, the log says that spans cannot be sent: the SDK would say so at every try."""
_propagator = TraceContextTextMapPropagator()


class Tracing:
    """Begins spans, and sees that they are sent. One per process; it has a thread of its own."""

    def __init__(self, service: str) -> None:
        """Raises ValueError for what the environment tells the SDK wrongly."""
        _quieten()
        own = {
            "service.name": service,
            "service.version": VERSION,
            "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
        }
        told = OTELResourceDetector().detect().attributes  # OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES: they win
        self._provider = TracerProvider(resource=Resource.create({**own, **told}), shutdown_on_exit=False)
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
        """Begin a span, now or at that time (Unix seconds). About 30 µs.

        `parent` and `link` are values of `traceparent`; without a good one the span begins a trace of its own, or has no link.
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
        """Send what is left, if the collector takes it in time."""
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def send() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(sent.set)

        # The SDK waits for 30 s. A thread of the loop's executor would be waited for at the process's end, this one is not.
        threading.Thread(target=send, daemon=True).start()
        try:
            async with asyncio.timeout(within_seconds):
                await sent.wait()
        except TimeoutError:
            logger.warning("the last spans were not sent within %g s", within_seconds)


class Span:
    """A span that has begun. Attributes are ids, numbers and names, never what was asked or answered."""

    __slots__ = ("_span",)

    def __init__(self, span: OpenTelemetrySpan) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        """What makes others its children (W3C Trace Context, section 3.2): 55 characters."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def tell(self, attributes: Attributes) -> None:
        self._span.set_attributes(_bounded(attributes))

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        self._span.add_event(name, _bounded(attributes or {}))

    def end(self, error: str = "", at: float | None = None) -> None:
        """End it, now or at that time (Unix seconds). `error` is a code, and makes it one that failed.

        Never a message: a provider's may repeat the prompt.
        """
        if error:
            self.tell({"error.type": error})
            self._span.set_status(StatusCode.ERROR)
        self._span.end(None if at is None else _nanoseconds(at))


def _bounded(attributes: Attributes) -> Attributes:
    return {
        name: value[:_VALUE_CHARACTERS_MAX] if isinstance(value, str) else value for name, value in attributes.items()
    }


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


class _Seldom(logging.Handler):
    """What the SDK complains of, in one line and now and then."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._next_at = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now >= self._next_at:
            self._next_at = now + _COMPLAINT_SECONDS
            logger.warning("traces: %s (said once in %g s at most)", record.getMessage(), _COMPLAINT_SECONDS)


def _quieten() -> None:
    theirs = logging.getLogger("opentelemetry")
    theirs.propagate = False
    theirs.handlers = [_Seldom()]
    logging.getLogger("urllib3").setLevel(logging.ERROR)
