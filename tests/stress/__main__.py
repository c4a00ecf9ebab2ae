"""`python -m tests.stress --seed N --minutes M`: exit code 0 when every invariant held, 1 when one did not."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import uvloop

from tests.stress.fleet import ARCHIVES, KINDS
from tests.stress.run import Stress


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.stress", description="Everything at once, under seeded faults."
    )
    parser.add_argument("--seed", type=int, default=1, help="what is asked, read and broken, and when (default 1)")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long faults strike (default 1)")
    parser.add_argument("--streams", type=int, default=24, metavar="N", help="how many run at once (default 24)")
    parser.add_argument(
        "--previous",
        type=Path,
        metavar="CHECKOUT",
        help="one of the gateways is of an earlier release",
    )
    parser.add_argument("--total", type=int, metavar="N", help="ends when N streams were created, if that is sooner")
    parser.add_argument("--short", action="store_true", help="no long answers, so that more streams end")
    parser.add_argument("--archive", choices=ARCHIVES, default="sqlite", help="where ended streams are kept")
    parser.add_argument(
        "--redis", choices=KINDS, default="one", help="one server, a cluster, or a primary with Sentinels"
    )
    arguments = parser.parse_args()
    stress = Stress(
        arguments.seed,
        arguments.minutes * 60,
        at_once=arguments.streams,
        redis=arguments.redis,
        archive=arguments.archive,
        streams_max=arguments.total,
        short=arguments.short,
        previous=arguments.previous and arguments.previous.resolve(),
        say=lambda line: print(line, flush=True),
    )
    return 0 if uvloop.run(stress.run()) else 1


if __name__ == "__main__":
    sys.exit(main())
