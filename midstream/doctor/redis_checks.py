"""Judges what was seen of a Redis: one finding for each check, each with a sentence that says what to change. Pure."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence

from midstream.doctor.checks import Finding, advice, fault, ok, unknown
from midstream.doctor.redis_observe import RedisSeen, Server
from shared.cluster import SLOTS
from shared.redis_server import OLDEST_VERSION
from shared.settings import Settings

_PING_SECONDS = 0.005
"""A token waits for one round trip and a half: with more than this the network takes longer than all else."""
_PING_P99_SECONDS = 0.05
"""Readers see a pause of more as a stutter."""
_MEMORY_SHARE_MAX = 0.8
"""Of maxmemory: above it a burst of answers may fill the rest before anybody has reacted."""
_SENTINELS_LEAST = 3
_DOWN_AFTER_LEAST_MILLISECONDS = 1000
"""shared.resp leaves a server that was silent for a second: a Sentinel must not replace it sooner."""
_OUTPUT_CHARACTERS_MAX = 300
"""Of what a server answers, in a sentence."""

CHECKS = {
    "topology": "what the URL names",
    "slots": "all slots are served",
    "coverage": "one lost master stops no other",
    "sentinels": "Sentinels",
    "version": "version",
    "replicas": "replicas",
    "memory": "nothing is evicted",
    "permissions": "permissions",
    "pubsub": "sharded pub/sub",
    "latency": "round trips",
    "persistence": "persistence",
}
"""Every check and the title of its row, in order."""


def judged(seen: RedisSeen, settings: Settings) -> list[Finding]:
    """Returns a finding of each check that applies, in the order of CHECKS. `problem` is a whole sentence, or empty."""
    found: list[Finding] = []
    for check in CHECKS:
        finding = _JUDGES[check](seen, settings)
        if finding is not None:
            found.append(finding)
    return found


def _reached(seen: RedisSeen) -> list[Server]:
    return [server for server in seen.servers if not server.unreachable]


def _names(servers: Sequence[Server]) -> str:
    return ", ".join(str(server.address) for server in servers)


def _topology(seen: RedisSeen, _: Settings) -> Finding:
    if seen.other_form:
        return fault("topology", "another", f"MIDSTREAM_REDIS_URL does not fit: {seen.other_form}.")
    lost = [server for server in seen.servers if server.unreachable]
    if lost:
        reasons = "; ".join(f"{server.address} {server.unreachable}" for server in lost)
        return fault("topology", f"{len(lost)} away", f"Restart or replace the masters that do not answer ({reasons}).")
    words = {
        "cluster": f"cluster, {len(seen.servers)} master{'s' * (len(seen.servers) > 1)}",
        "sentinel": f"primary {seen.servers[0].address}, behind Sentinels",
    }
    return ok("topology", words.get(seen.form, "one server"), form=seen.form, servers=len(seen.servers))


def _slots(seen: RedisSeen, _: Settings) -> Finding | None:
    if seen.form != "cluster" or seen.other_form:
        return None
    served = sum(server.slots for server in seen.servers)
    if served < SLOTS or seen.cluster_state != "ok":
        return fault(
            "slots",
            f"{served} of {SLOTS}",
            f"Streams in {SLOTS - served} slots cannot be stored (cluster_state:{seen.cluster_state}): run redis-cli --cluster fix.",
            slots=served,
        )
    return ok("slots", f"{served} of {SLOTS}", slots=served)


def _coverage(seen: RedisSeen, _: Settings) -> Finding | None:
    if seen.form != "cluster" or seen.other_form:
        return None
    values = {server.configuration.get("cluster-require-full-coverage") for server in _reached(seen)}
    if "yes" in values:
        return advice(
            "coverage",
            "full coverage is required",
            "Set cluster-require-full-coverage to no on every node: with yes all masters refuse commands until a lost one is replaced.",
        )
    return ok("coverage", "yes") if values == {"no"} else unknown("coverage", "CONFIG is not shown to this user")


def _sentinels(seen: RedisSeen, _: Settings) -> Finding | None:
    if seen.form != "sentinel":
        return None
    away = [sentinel for sentinel in seen.sentinels if sentinel.unreachable]
    known = [
        int(sentinel.about["num-other-sentinels"]) + 1
        for sentinel in seen.sentinels
        if "num-other-sentinels" in sentinel.about
    ]
    down_after = [
        int(sentinel.about.get("down-after-milliseconds", 0)) for sentinel in seen.sentinels if sentinel.about
    ]
    quorum = max((int(sentinel.about.get("quorum", 0)) for sentinel in seen.sentinels), default=0)
    figures = {"named": len(seen.sentinels), "away": len(away), "known": max(known, default=0), "quorum": quorum}
    if away:
        reasons = "; ".join(f"{sentinel.address} {sentinel.unreachable}" for sentinel in away)
        return fault(
            "sentinels", f"{len(away)} away", f"Start the Sentinels that do not answer ({reasons}).", **figures
        )
    if max(known, default=0) < _SENTINELS_LEAST:
        return fault(
            "sentinels",
            f"{max(known, default=0)}",
            "Run at least three Sentinels on different machines: with fewer nobody replaces a primary when one machine is lost.",
            **figures,
        )
    if down_after and min(down_after) < _DOWN_AFTER_LEAST_MILLISECONDS:
        return fault(
            "sentinels",
            f"down after {min(down_after)} ms",
            "Set down-after-milliseconds to 1000 or more: a process trusts a server that is silent for up to a second.",
            **figures,
        )
    return ok("sentinels", f"{max(known)}, quorum {quorum}", **figures)


def _version(seen: RedisSeen, _: Settings) -> Finding:
    versions = sorted({server.version for server in _reached(seen) if server.version})
    if not versions:
        return unknown("version", "INFO is not shown to this user")
    old = [version for version in versions if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_VERSION]
    if old:
        return fault("version", old[0], f"Use Redis 7.0 or newer, or Valkey: {old[0]} has no sharded pub/sub.")
    if len(versions) > 1:
        return advice("version", ", ".join(versions), "Upgrade all servers to one version: a fail-over changes it now.")
    return ok("version", f"{_reached(seen)[0].info.get('server_name', 'redis')} {versions[0]}", versions=versions)


def _replicas(seen: RedisSeen, settings: Settings) -> Finding:
    counts = {str(server.address): server.replicas for server in _reached(seen) if server.replicas is not None}
    if not counts:
        return unknown("replicas", "INFO is not shown to this user")
    least, wanted = min(counts.values()), settings.min_replicas
    few = ", ".join(address for address, count in counts.items() if count == least)
    figures = {"replicas": counts, "min_replicas": wanted}
    if least < wanted:
        return fault(
            "replicas",
            f"{least}, and {wanted} needed",
            f"Give {few} {wanted + 1} replicas, or lower MIDSTREAM_MIN_REPLICAS: creates get 503 until {wanted} of them are connected.",
            **figures,
        )
    if wanted and least == wanted:
        return advice(
            "replicas",
            f"{least}, all of them needed",
            f"Give {few} one more replica: when one is away, MIDSTREAM_MIN_REPLICAS={wanted} cannot be met and creates get 503.",
            **figures,
        )
    if not least and seen.form != "one server":
        return advice(
            "replicas", "none", f"Give {few} a replica on another machine: nothing can take its place.", **figures
        )
    return ok("replicas", str(least) if len(counts) == 1 else f"{least} or more each", **figures)


def _memory(seen: RedisSeen, _: Settings) -> Finding:
    servers = _reached(seen)
    policies = {server.policy for server in servers if server.policy}
    if not policies:
        return unknown("memory", "INFO is not shown to this user")
    wrong = sorted(policies - {"noeviction"})
    if wrong:
        at = _names([server for server in servers if server.policy in wrong])
        return fault(
            "memory",
            wrong[0],
            f"Set maxmemory-policy to noeviction at {at}: {wrong[0]} may evict the log of a running answer.",
            policies=sorted(policies),
        )
    unbounded = [server for server in servers if server.info.get("maxmemory") == "0"]
    if unbounded:
        return advice(
            "memory",
            "no maxmemory",
            f"Set maxmemory at {_names(unbounded)} to about half of the machine's memory: without it the kernel kills a Redis that grows too large.",
        )
    shares = [
        (int(server.info["used_memory"]) / int(server.info["maxmemory"]), server)
        for server in servers
        if {"used_memory", "maxmemory"} <= server.info.keys()
    ]
    share, fullest = max(shares, key=lambda pair: pair[0], default=(0.0, None))
    if fullest is not None and share > _MEMORY_SHARE_MAX:
        return advice(
            "memory",
            f"{share:.0%} used",
            f"Raise maxmemory at {fullest.address}, or lower MIDSTREAM_ENDED_TTL_SECONDS: when it is full, answers end as log_full.",
            used=round(share, 3),
        )
    return ok("memory", f"noeviction, {share:.0%} used", used=round(share, 3))


def _permissions(seen: RedisSeen, _: Settings) -> Finding | None:
    if not seen.refused:
        return None
    refused = {role: sentence for role, sentence in seen.refused.items() if sentence}
    if refused:
        sentences = " ".join(f"Redis {sentence}." for sentence in refused.values())
        return fault("permissions", "some are missing", sentences.replace("..", "."), roles=sorted(refused))
    return ok("permissions", f"{' and '.join(seen.refused)}: all", roles=sorted(seen.refused))


def _pubsub(seen: RedisSeen, _: Settings) -> Finding | None:
    if not seen.pubsub:
        return None
    failed = [trial for trial in seen.pubsub if trial.seconds is None]
    if failed:
        reasons = "; ".join(f"{trial.address}: {trial.error[:_OUTPUT_CHARACTERS_MAX]}" for trial in failed)
        return fault(
            "pubsub",
            "no message came",
            f"Let SSUBSCRIBE and SPUBLISH through to every master: gateways read each log again and again without them ({reasons}).",
        )
    uncounted = [trial.address for trial in seen.pubsub if not trial.counted]
    if uncounted:
        return fault(
            "pubsub",
            "subscribers are not counted",
            f"Connect to {', '.join(uncounted)} without a proxy: workers cancel answers whose readers SPUBLISH does not count.",
        )
    slowest = max(trial.seconds or 0.0 for trial in seen.pubsub)
    return ok("pubsub", f"both ways, within {_milliseconds(slowest)}", slowest_ms=round(slowest * 1000, 2))


def _latency(seen: RedisSeen, _: Settings) -> Finding:
    rows = []
    for server in _reached(seen):
        if len(server.pings_seconds) >= 20:
            hundredths = statistics.quantiles(server.pings_seconds, n=100)
            rows.append((hundredths[49], hundredths[98], server))
    if not rows:
        return unknown("latency", "not measured")
    p50, p99 = max(row[0] for row in rows), max(row[1] for row in rows)
    words = f"p50 {_milliseconds(p50)}, p99 {_milliseconds(p99)}"
    figures = {"p50_ms": round(p50 * 1000, 3), "p99_ms": round(p99 * 1000, 3)}
    if p50 > _PING_SECONDS or p99 > _PING_P99_SECONDS:
        slow = max(rows, key=lambda row: row[0] if p50 > _PING_SECONDS else row[1])[2]
        return advice(
            "latency",
            words,
            f"Run gateways and workers in the same data centre as {slow.address}, and nothing else on its cores: each token waits for a round trip.",
            **figures,
        )
    return ok("latency", words, **figures)


def _persistence(seen: RedisSeen, _: Settings) -> Finding:
    servers = [server for server in _reached(seen) if "aof_enabled" in server.info]
    if not servers:
        return unknown("persistence", "INFO is not shown to this user")
    failing = [
        server
        for server in servers
        if "err" in (server.info.get("rdb_last_bgsave_status"), server.info.get("aof_last_write_status"))
    ]
    if failing:
        return fault(
            "persistence",
            "writing to disk fails",
            f"Look at the disk of {_names(failing)}: its last snapshot or append-only write failed, and Redis may refuse writes.",
        )
    volatile = [server for server in servers if server.info["aof_enabled"] != "1"]
    if volatile:
        return advice(
            "persistence",
            "no append-only file",
            f"Set appendonly to yes at {_names(volatile)}: a restart loses the answers that have ended.",
        )
    delayed = sum(int(server.info.get("aof_delayed_fsync", 0)) for server in servers)
    if delayed:
        return advice(
            "persistence",
            f"{delayed} writes waited for the disk",
            f"Give {_names(servers)} a faster disk: {delayed} writes have waited for an fsync since its start, and all commands with them.",
            delayed=delayed,
        )
    return ok("persistence", f"append-only file, fsync {servers[0].configuration.get('appendfsync', 'not shown')}")


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2g} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"


_JUDGES: dict[str, Callable[[RedisSeen, Settings], Finding | None]] = {
    "topology": _topology,
    "slots": _slots,
    "coverage": _coverage,
    "sentinels": _sentinels,
    "version": _version,
    "replicas": _replicas,
    "memory": _memory,
    "permissions": _permissions,
    "pubsub": _pubsub,
    "latency": _latency,
    "persistence": _persistence,
}
