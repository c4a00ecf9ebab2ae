"""`python -m gateway`: one gateway process. SIGTERM drains it: its readers resume elsewhere."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence

import uvloop

from gateway.server import listen, serve
from shared.errors import Unusable
from shared.settings import Settings
from shared.telemetry import set_up_logging
from shared.version import VERSION


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gateway",
        description="One Midstream gateway: serves streams to readers over HTTP. "
        "Its settings are environment variables: `midstream settings` lists them.",
    )
    parser.add_argument("--fd", type=int, metavar="N", help="serve on this inherited listening socket")
    parser.add_argument("--version", action="version", version=f"midstream {VERSION}")
    told = parser.parse_args(arguments)
    try:
        settings = Settings.from_environment(os.environ)
        set_up_logging(settings.log_level)
        listening = listen(settings) if told.fd is None else socket.socket(fileno=told.fd)
        uvloop.run(serve(settings, listening))
    except Unusable as error:
        print(f"gateway: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
