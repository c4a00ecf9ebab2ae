"""A collector of traces: an OTLP/HTTP receiver in this process that keeps the spans it gets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.http_server import HttpServer, Request, response

_KINDS = {1: "internal", 2: "server", 3: "client"}


@dataclass(frozen=True)
class Received:
    """One span, as received. Times are Unix nanoseconds."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    links: list[str]
    """The ids of the linked spans."""
    failed: bool
    began_at: int
    ended_at: int
    service: str
    instance: str

    def __getitem__(self, name: str) -> Any:
        return self.attributes.get(name)

    @property
    def event_names(self) -> list[str]:
        return [name for name, _ in self.events]


class Collector(HttpServer):
    """Answers every export, or none if it is to hang."""

    def __init__(self, *, hangs: bool = False) -> None:
        super().__init__()
        self._hangs = hangs
        self.spans: list[Received] = []
        self.bodies: list[bytes] = []
        self.requests = 0

    def environment(self, **more: str) -> dict[str, str]:
        """The environment with which a process sends its spans here, soon after they have ended."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.origin, "OTEL_BSP_SCHEDULE_DELAY": "50", **more}

    def of(self, stream_id: str) -> list[Received]:
        """Returns the spans of a stream, by their beginning."""
        return sorted(
            (one for one in self.spans if one["midstream.stream.id"] == stream_id), key=lambda one: one.began_at
        )

    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests += 1
        if self._hangs:
            await asyncio.Event().wait()
        assert (request.method, request.path) == ("POST", "/v1/traces")
        assert request.headers["content-type"] == "application/x-protobuf"
        self.bodies.append(request.body)
        self.spans.extend(_spans_of(request.body))
        writer.write(response(200, "application/x-protobuf", b""))


def _spans_of(body: bytes) -> Iterator[Received]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        about = _attributes(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Received(
                    span.name,
                    _KINDS[span.kind],
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    _attributes(span.attributes),
                    [(event.name, _attributes(event.attributes)) for event in span.events],
                    [link.span_id.hex() for link in span.links],
                    span.status.code == span.status.STATUS_CODE_ERROR,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    about["service.name"],
                    about["service.instance.id"],
                )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)
