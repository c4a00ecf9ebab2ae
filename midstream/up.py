"""`midstream up`: runs a gateway, workers and a Valkey on this machine."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from midstream.processes import LocalMidstream, settings_for

_LOOK_SECONDS = 0.2


class _Stop(BaseException):
    """Raised by the handlers of SIGINT and SIGTERM."""


def up(
    *,
    host: str | None,
    port: int | None,
    redis_url: str | None,
    provider: str | None,
    workers: int,
    gateways: int | None,
    data_dir: Path | None,
    log_format: str | None = None,
    metrics_port: int | None = None,
    reload: bool = False,
) -> int:
    """Runs until Ctrl-C or SIGTERM. Raises Unusable."""
    options = {
        "MIDSTREAM_HOST": host,
        "MIDSTREAM_PORT": None if port is None else str(port),
        "MIDSTREAM_REDIS_URL": redis_url,
        "MIDSTREAM_PROVIDER": provider,
        "MIDSTREAM_LOG_FORMAT": log_format,
        "MIDSTREAM_METRICS_PORT": None if metrics_port is None else str(metrics_port),
        "MIDSTREAM_GATEWAY_PROCESSES": None if gateways is None else str(gateways),
    }
    settings, environment = settings_for(options, os.environ)

    def stop(number: int, frame: FrameType | None) -> None:
        for stopping in (signal.SIGINT, signal.SIGTERM):
            signal.signal(stopping, lambda *_: midstream.stop(at_once=True))  # a second signal hurries
        raise _Stop

    midstream = LocalMidstream(
        settings,
        redis_url=environment.get("MIDSTREAM_REDIS_URL") or None,
        data_dir=data_dir,
        workers=workers,
        environment=environment,
        reload=reload,
    )
    for stopping in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stopping, stop)
    try:
        with midstream:
            print(f"midstream is up: {midstream.url}", flush=True)
            while True:
                time.sleep(_LOOK_SECONDS)
                midstream.look_after_children()
    except _Stop:
        print("midstream is down", file=sys.stderr)
        return 0
