"""The command line of `python -m bench.scale`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.scale.check import compared
from bench.scale.picture import chart, shares
from bench.scale.plan import Plan, plan_of
from bench.scale.simulation import Outcome, failover, reconnect_storm, rolling_deployment
from bench.scale.units import INPUTS, Costs, Load, Prices, with_inputs
from bench.workloads.follow import Void
from shared.errors import MidstreamError

_SIZES = (1_000.0, 10_000.0, 100_000.0, 1_000_000.0)
_NODE_TIMEOUT_SECONDS = 5.0
_RETRY_SECONDS = 2.0
"""MIDSTREAM_RETRY_MILLISECONDS: after a loss all clients wait for so long; a gateway that leaves tells each a quarter of it to all of it."""
_DEPLOYED_MAX = 100_000
"""So many readers of a deployment are simulated, with their share of the gateways: 20 s instead of minutes."""
_MEASURED_FAILOVERS = "docs/how-to/run-on-a-cluster.md#what-was-measured"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0; 1 where a comparison cannot be made, 2 for an input that is none."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale", description="What many concurrent streams take, and how they come through faults."
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=NUMBER", help="another input; may be repeated"
    )
    parser.add_argument("--inputs", action="store_true", help="list the inputs, and end")
    parser.add_argument("--check", action="store_true", help="compare the simulation with real runs here (3 minutes)")
    parser.add_argument("--svg", type=Path, metavar="FOLDER", help="draw scale-storm.svg there")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the simulation's chance (1)")
    chosen = parser.parse_args(arguments)
    try:
        pairs = [text.partition("=") for text in chosen.set]
        load, costs, prices = with_inputs({name: float(value) for name, _, value in pairs})
    except ValueError as error:
        print(f"python -m bench.scale: {error}", file=sys.stderr)
        return 2
    if chosen.inputs:
        _print_inputs()
        return 0
    if chosen.check:
        return _check(costs)
    _print_plans(load, costs, prices)
    cases = _simulated(load, costs, plan_of(load, costs, prices), chosen.seed)
    _print_cases(cases)
    if chosen.svg:
        lines = [(name, shares(outcome.pauses_seconds)) for name, outcome in cases.items() if name in _DRAWN]
        picture = chart(
            f"{load.streams:,.0f} streams: who goes on, and when",
            "seconds since the loss",
            "% of those who lost theirs",
            lines,
        )
        (chosen.svg / "scale-storm.svg").write_text(picture)
    return 0


_ONE, _TENTH, _MASTER, _ROLLING, _FEWEST = (
    "a gateway is killed",
    "a tenth of the gateways is killed",
    "a master is killed",
    "deployment, any gateway",
    "deployment, the one with the fewest",
)
_DRAWN = (_ONE, _TENTH, _MASTER)


def _simulated(load: Load, costs: Costs, plan: Plan, seed: int) -> dict[str, Outcome]:
    """Returns the outcome of each case, by its name."""
    readers = int(load.streams * load.readers_per_stream)
    per_gateway, per_master = -(-readers // plan.gateways), -(-readers // plan.masters)
    rate, share = load.tokens_per_second, costs.core_share

    def storm(lost: int) -> Outcome:
        left = max(1, plan.gateways - lost)
        return reconnect_storm(
            min(readers, lost * per_gateway),
            gateways=left,
            masters=plan.masters,
            costs=costs,
            events_lacked=0,
            retry_seconds=(_RETRY_SECONDS, _RETRY_SECONDS),
            tokens_per_second=rate,
            gateway_share=min(0.99, share * (plan.gateways - lost) / left),
            redis_share=share,
            seed=seed,
        )

    def deployment(to_fewest: bool) -> Outcome:
        part = max(1.0, readers / _DEPLOYED_MAX)  # gateways share nothing, so a part shows the same as the whole
        gateways = max(2, round(plan.gateways / part))
        return rolling_deployment(
            round(readers / part),
            gateways=gateways,
            at_once=max(1, gateways // 10),
            costs=costs,
            tokens_per_second=rate,
            gateway_share=share,
            to_fewest=to_fewest,
            seed=seed,
        )

    more = {"node_timeout_seconds": _NODE_TIMEOUT_SECONDS, "tokens_per_second": rate, "seed": seed}
    return {
        _ONE: storm(1),
        _TENTH: storm(max(1, plan.gateways // 10)),
        _MASTER: failover(
            per_master,
            gateways=plan.gateways,
            costs=costs,
            gateway_share=share,
            redis_share=share,
            **more,  # type: ignore[arg-type]
        ),
        _ROLLING: deployment(False),
        _FEWEST: deployment(True),
    }


def _print_plans(load: Load, costs: Costs, prices: Prices) -> None:
    print(
        "| concurrent streams | gateways | workers | masters | memory: gateways, workers, masters | to readers | inside | a month |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for streams in sorted({*_SIZES, load.streams}):
        plan = plan_of(dataclasses.replace(load, streams=streams), costs, prices)
        memory = ", ".join(f"{gb:.3g}" for gb in (plan.gateway_gb, plan.worker_gb, plan.redis_gb))
        print(
            f"| {streams:,.0f} | {plan.gateways} | {plan.workers} | {plan.masters} | {memory} GB | {plan.to_readers_gbit:.2g} Gbit/s "
            f"| {plan.inside_gbit:.2g} Gbit/s | ${plan.dollars:,.0f} |"
        )
    plan = plan_of(load, costs, prices)
    print(
        f"\nOf ${plan.dollars:,.0f}: cores ${plan.cores_dollars:,.0f}, memory ${plan.memory_dollars:,.0f}, "
        f"to readers ${plan.egress_dollars:,.0f}, between zones ${plan.zone_dollars:,.0f}.\n"
    )


def _print_cases(cases: dict[str, Outcome]) -> None:
    print(
        "| case | readers | pause p50 | p99 | longest | moves: mean, most | longest queue of a gateway | over after |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, outcome in cases.items():
        moves = f"{sum(outcome.moves) / len(outcome.moves):.2f}, {max(outcome.moves)}"
        p50, p99, longest = (f"{outcome.pause(share):.2f} s" for share in (0.5, 0.99, 1.0))
        print(
            f"| {name} | {len(outcome.pauses_seconds):,} | {p50} | {p99} | {longest} | {moves} "
            f"| {outcome.gateway_queue_longest} | {outcome.seconds:.1f} s |"
        )


def _check(costs: Costs) -> int:
    try:
        ours, comparisons = compared(costs)
    except (MidstreamError, Void, OSError) as error:
        print(f"python -m bench.scale: {error}", file=sys.stderr)
        return 1
    print(
        f"A reader's return costs {ours.resume_us:.0f} µs here, an event that it lacks {ours.resume_event_us:.2f} µs.\n"
    )
    print("| readers | events that each lacks | seen | predicted | deviation |\n|---|---|---|---|---|")
    for row in comparisons:
        print(
            f"| {row.readers:,} | {row.events_lacked:,} | {row.seen_seconds:.2f} s | {row.predicted_seconds:.2f} s | {row.deviation:+.0%} |"
        )
    runs = [  # 334 readers: two of each stream of one master, which has a third of 500
        failover(334, gateways=2, costs=ours, node_timeout_seconds=1.0, tokens_per_second=5.0, seed=seed)
        for seed in range(100)
    ]
    longest = sorted(run.pause(1.0) for run in runs)
    print(
        f"\nOne of three masters of 500 streams with 5 tokens/s killed, time-out 1 s: predicted longest pause {longest[5]:.2f} to "
        f"{longest[94]:.2f} s in 90 of 100 seeds; {_MEASURED_FAILOVERS} has what was seen."
    )
    return 0


def _print_inputs() -> None:
    print("| input | default | what it is | where from |\n|---|---|---|---|")
    for kind in INPUTS:
        for field in dataclasses.fields(kind):
            print(
                f"| `{field.name}` | {field.default:,g} | {field.metadata['meaning']} | {field.metadata['source'] or 'an input'} |"
            )


if __name__ == "__main__":
    sys.exit(main())
