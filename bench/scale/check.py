"""Compares the simulation with real runs on this machine: readers who come back at once to one gateway.

Two runs give the two costs of this machine, a request's and an event's; the others are predicted from them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.processes import procs
from bench.processes.parts import Cores, Parts
from bench.scale.simulation import reconnect_storm
from bench.scale.units import Costs
from bench.workloads.follow import Void, account_of, following
from shared.errors import Unusable

_FITTED = ((1000, 100), (1000, 1000))
_PREDICTED = ((250, 1000), (500, 500), (2000, 100), (2000, 500))
"""Readers, and events that each of them lacks."""
_RUNS = 3


@dataclass(frozen=True, slots=True)
class Comparison:
    readers: int
    events_lacked: int
    seen_seconds: float
    predicted_seconds: float

    @property
    def deviation(self) -> float:
        """The difference as a share of what was seen."""
        return self.predicted_seconds / self.seen_seconds - 1


def compared(costs: Costs) -> tuple[Costs, list[Comparison]]:
    """Returns this machine's costs, and what was predicted and seen. Raises Unusable, Void, Gone."""
    procs.raise_open_files_limit()
    cores = Cores.of(None)
    if not cores.load:
        raise Unusable("the comparison needs a core for the readers besides the gateway's")
    seen: dict[tuple[int, int], float] = {}
    for readers, lacked in (*_FITTED, *_PREDICTED):
        runs = sorted(_seen_seconds(cores, readers, lacked) for _ in range(_RUNS))
        seen[readers, lacked] = runs[_RUNS // 2]
        print(f"{readers} readers that lack {lacked} events: {', '.join(f'{run:.2f}' for run in runs)} s", flush=True)
    (many, few), (_, more) = _FITTED
    event_us = 1e6 * (seen[many, more] - seen[many, few]) / many / (more - few)
    resume_us = 1e6 * seen[many, few] / many - few * event_us
    ours = replace(costs, resume_us=max(1.0, resume_us), resume_event_us=max(0.01, event_us))
    comparisons = []
    for readers, lacked in _PREDICTED:
        outcome = reconnect_storm(readers, gateways=1, masters=1, costs=ours, events_lacked=lacked)
        comparisons.append(Comparison(readers, lacked, seen[readers, lacked], outcome.seconds))
    return ours, comparisons


def _seen_seconds(cores: Cores, readers: int, lacked: int) -> float:
    """Returns how long a fresh gateway took until all readers, who came back at once, had what they lacked."""
    with Parts(cores) as parts:
        server = parts.gateway()
        last = 2 * lacked
        with following(
            parts, server, count=readers, readers=readers, history=last, resume_at=lacked, load_processes=1
        ) as run:
            storms = run.ask_all("storm", after=f"1-{lacked}", last=last, within_seconds=60.0, wait_seconds=90.0)
    _, faults = account_of(storms)
    if any(faults.values()):
        raise Void(f"{readers} readers did not get what they lacked: {faults}")
    return max(float(storm["seconds"]) for storm in storms)
