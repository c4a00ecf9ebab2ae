"""Traces, where they are wanted: one for each answer, from its request to its terminal event.

They are off unless the environment names a collector. Then nothing of OpenTelemetry is imported by us, nobody has a
`Tracing`, and nothing is done. Where they are on, each request, attempt and connection has a span; no token or event has.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.spans import Tracing

logger = logging.getLogger(__name__)

traceparent: contextvars.ContextVar[str] = contextvars.ContextVar("traceparent", default="")
"""The span for which this work is done, as W3C's header of this name tells it; empty where traces are off."""


def set_up_tracing(service: str, environment: Mapping[str, str]) -> Tracing | None:
    """Returns what begins this process's spans; None where traces are not wanted, or cannot be had. Called once, from `__main__`."""
    if not is_wanted(environment):
        return None
    # An error in these variables must not stop the process: platforms put them into all containers alike. So it is logged, and
    # the answers go on without traces.
    try:
        from shared.spans import Tracing

        return Tracing(service)
    except ImportError as error:
        logger.warning("no traces, though a collector is named: pip install '.[otel]' (%s)", error)
    except (OSError, RuntimeError, ValueError) as error:
        logger.warning("no traces: one of the variables OTEL_... is wrong: %s", error)
    return None


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Returns whether the standard variables (OpenTelemetry's "Environment Variable Specification") turn on traces over OTLP."""

    def first_of(*names: str) -> str:  # the first variable that is set
        return next((value for name in names if (value := environment.get(name, "").strip())), "")

    endpoint = first_of("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    if not endpoint or first_of("OTEL_SDK_DISABLED").lower() == "true":
        return False
    exporters = {name.strip().lower() for name in (first_of("OTEL_TRACES_EXPORTER") or "otlp").split(",")}
    if "none" in exporters:
        return False
    protocol = first_of("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    if "otlp" not in exporters or protocol != "http/protobuf":
        logger.warning("no traces: only the exporter otlp over http/protobuf is supported")
        return False
    return True
