"""When tracing is on, and the `traceparent` that a log keeps."""

from __future__ import annotations

import dataclasses
import logging

import orjson
import pytest

from shared.events import Accepted, Policies
from shared.tracing import is_wanted, set_up_tracing

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({ENDPOINT: ""}, False),
        ({ENDPOINT: "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://collector:4318/v1/metrics"}, False),
        ({ENDPOINT: "http://collector:4318", "OTEL_SDK_DISABLED": "True"}, False),
        ({ENDPOINT: "http://collector:4318", "OTEL_SDK_DISABLED": "false"}, True),
        ({ENDPOINT: "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({ENDPOINT: "http://collector:4318", "OTEL_TRACES_EXPORTER": "otlp,console"}, True),
    ],
)
def test_the_standard_variables_decide(
    environment: dict[str, str], wanted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert is_wanted(environment) is wanted
    assert not caplog.records


@pytest.mark.parametrize("name", ["OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_PROTOCOL"])
def test_an_unsupported_otlp_protocol_is_logged(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert set_up_tracing("a-service", {ENDPOINT: "http://collector:4317", name: "grpc"}) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "otlp over http/protobuf" in record.getMessage()


def test_a_traceparent_is_stored_with_its_request() -> None:
    accepted = Accepted({"model": "m"}, Policies(), 12.5, "someone", {}, traceparent=TRACEPARENT)
    assert Accepted.load(accepted.stored()) == accepted
    without = dataclasses.replace(accepted, traceparent="")
    assert b"traceparent" not in without.stored()
    assert Accepted.load(without.stored()) == without


@pytest.mark.parametrize("stored", [None, 7, "", "nonsense", TRACEPARENT.upper(), TRACEPARENT + "-more", [TRACEPARENT]])
def test_a_malformed_stored_traceparent_is_ignored(stored: object) -> None:
    log = orjson.loads(Accepted({}, Policies(), 12.5, "someone", {}).stored())
    assert Accepted.load(orjson.dumps({**log, "traceparent": stored})).traceparent == ""
