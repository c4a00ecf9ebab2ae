"""`python -m gateway`: one gateway, of one process or several. SIGTERM drains it: its readers resume elsewhere."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import socket
import sys
from collections.abc import Sequence

from gateway.access.mode import is_authentication_on
from gateway.listening import listen, reserve
from gateway.supervisor import Membership, Supervisor, processes_wanted
from shared.errors import Unusable
from shared.logs import set_up_logging
from shared.settings import Settings, unknown
from shared.tracing import set_up_tracing
from shared.version import VERSION

logger = logging.getLogger("gateway")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gateway",
        description="One Midstream gateway: serves streams to readers over HTTP. "
        "Its settings are environment variables: `midstream settings` lists them.",
    )
    parser.add_argument("--fd", type=int, metavar="N", help="serve on this inherited socket")
    parser.add_argument("--log-format", choices=("json", "text"), help="how lines look on standard error")
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)  # this and the next: for a supervisor's children
    parser.add_argument("--lifeline", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"midstream {VERSION}")
    options = parser.parse_args(arguments)
    try:
        settings = Settings.from_environment(os.environ)
        set_up_logging(settings.log_level, options.log_format or settings.log_format)
        if options.number is None:  # else the supervisor has said it
            for warning in unknown(os.environ).values():
                logger.warning(warning)
        inherited = None if options.fd is None else socket.socket(fileno=options.fd)
        # Before anything is started: a gateway that nothing guards must not be reachable for a moment.
        is_authentication_on(settings, settings.host if inherited is None else inherited.getsockname()[0])
        if options.number is not None and inherited is not None:
            member = Membership(options.number, options.lifeline)
            try:
                _serve(settings, inherited)
            finally:
                member.leave()
        elif (count := processes_wanted(settings)) > 1:
            command = [sys.executable, "-m", "gateway"] + (
                ["--log-format", options.log_format] if options.log_format else []
            )
            return Supervisor(settings, count, inherited or reserve(settings), command).run()
        else:
            _serve(settings, inherited or listen(settings))
    except Unusable as error:
        print(f"gateway: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _serve(settings: Settings, listening: socket.socket) -> None:
    # Imported here: a supervisor needs none of it, and in a child `Membership` must come before the first metric is made.
    import uvloop

    from gateway import metrics
    from gateway.server import serve

    metrics.STARTS.inc()
    metrics.BUILD_INFO.labels(VERSION, platform.python_version()).set(1)
    metrics.PROCESSES.set(1)
    uvloop.run(serve(settings, listening, set_up_tracing("midstream-gateway", os.environ)))


if __name__ == "__main__":
    sys.exit(main())
