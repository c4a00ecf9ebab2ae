"""Draws `midstream top`: a snapshot as lines of text, for terminals of 60 columns or more."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Self

_BARS = "▁▂▃▄▅▆▇█"
_BOLD, _DIM, _RED, _GREEN, _YELLOW = "1", "2", "31", "32", "33"
_STATUS_COLOURS = {"running": _GREEN, "waiting": _YELLOW, "failed": _RED}
_PROCESS_LINES_SHARE = 3
"""Processes get at most one in three lines."""
_ID_CHARACTERS = 12
"""Of a stream's id: the time, and enough of the rest to tell two streams apart."""

Row = dict[str, Any]
Line = list[tuple[str, str]]
"""Pieces of text, each with its colour."""


class Screen:
    """The terminal's alternate screen with a hidden cursor, while the context is open."""

    def __enter__(self) -> Self:
        self._write("\x1b[?1049h\x1b[?25l")
        return self

    def __exit__(self, *_: object) -> None:
        self._write("\x1b[?25h\x1b[?1049l")

    def show(self, lines: Sequence[str]) -> None:
        """Draws the lines in one write, each over the old one, so that nothing flickers or scrolls."""
        self._write("\x1b[H" + "\n".join(f"\x1b[2K{line}" for line in lines) + "\x1b[J")

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def frame(
    snapshot: Row, server: str, rates: Sequence[float], columns: int, lines: int, *, colours: bool, trouble: str = ""
) -> list[str]:
    """Returns a snapshot drawn as at most `lines` lines of at most `columns` columns."""
    head = _head(snapshot, server, rates, columns, trouble)
    room = lines - len(head) - 4  # two headings, each after a blank line
    for_processes = max(1, min(len(snapshot["processes"]), room // _PROCESS_LINES_SHARE))
    streams = _streams(snapshot["streams"], max(1, room - for_processes))
    drawn: list[Line] = [*head, [], *streams, [], *_processes(snapshot["processes"], for_processes)]
    return [_painted(line, columns, colours) for line in drawn[:lines]]


def _head(snapshot: Row, server: str, rates: Sequence[float], columns: int, trouble: str) -> list[Line]:
    streams, per_second, lag, redis = snapshot["streams"], snapshot["per_second"], snapshot["lag"], snapshot["redis"]
    waiting = f"{streams['waiting']} waiting"
    if streams["waiting"]:
        waiting += f" (oldest {_age(streams['oldest_waiting_seconds'])})"
    memory = (
        f"{_bytes(redis['memory_bytes'])} used, {_bytes(redis['headroom_bytes'])} left"
        if redis["up"]
        else redis.get("refusal") or "unreachable"
    )
    p99 = {name: f"{quantiles['p99_ms']:.3g} ms" for name, quantiles in lag.items()}
    head: list[Line] = [
        [("midstream top", _BOLD), (f"  {server}  version {snapshot['version']}  from {snapshot['gateway']}", _DIM)],
        [
            (f"streams  {streams['running']} running", _BOLD),
            (f", {waiting}", _YELLOW if streams["waiting"] else ""),
            (f"   readers {snapshot['readers']}   resumes {snapshot['totals'].get('resumes', 0):.0f}", ""),
        ],
        [
            (f"tokens/s {_number(per_second.get('tokens_generated', 0))} generated", _BOLD),
            (f", {_number(per_second.get('tokens_delivered', 0))} delivered   ", ""),
        ],
        [
            ("lag p99  ", ""),
            (f"append to socket {p99.get('append_to_socket', '–')}, event loop {p99.get('event_loop', '–')}, ", ""),
            (f"Redis {p99.get('redis', '–')}   ", ""),
        ],
        [("redis    ", ""), (memory, "" if redis["up"] else _RED)],
    ]
    chart = columns - sum(len(text) for text, _ in head[2])
    if rates and chart > 8:
        head[2].append((sparkline(rates[-chart:]), _GREEN))
    if trouble:
        head.append([(f"no news: {trouble}; trying again", _RED)])
    return head


def _streams(streams: Row, room: int) -> list[Line]:
    rows = [*streams["newest"], *streams["ended"]]
    drawn: list[Line] = [
        [(f"{'STREAM':<14}{'STATUS':<10}{'AGE':>8}{'TOKENS':>9}{'TOK/S':>7}{'TRY':>5}  WORKER", _BOLD)]
    ]
    shown = rows if len(rows) <= room else rows[: room - 1]
    for row in shown:
        over = row["status"] not in ("running", "waiting")
        drawn.append(
            [
                (f"{row['id'][:_ID_CHARACTERS]:<14}", _DIM if over else ""),
                (f"{row['status']:<10}", _STATUS_COLOURS.get(row["status"], _DIM)),
                (
                    f"{_age(row['age_seconds']):>8}{_number(row['tokens']):>9}"
                    f"{'' if over else _number(row['tokens_per_second']):>7}{row['attempt']:>5}  {row.get('worker') or ''}",
                    _DIM if over else "",
                ),
            ]
        )
    if not rows:
        drawn.append([("nothing runs now", _DIM)])
    elif len(shown) < len(rows):
        live = streams["running"] + streams["waiting"] - min(len(shown), len(streams["newest"]))
        drawn.append([(f"… and {live} more" if live > 0 else "…", _DIM)])
    return drawn


def _processes(processes: list[Row], room: int) -> list[Line]:
    drawn: list[Line] = [[(f"{'PROCESS':<30}{'LOAD':>14}{'TOK/S':>8}{'CPU':>6}{'MEM':>9}{'LAG':>9}", _BOLD)]]
    for row in processes[: room if len(processes) <= room else room - 1]:
        name = f"{row['kind']} {row['name']}"
        load = f"{row['running']}/{row['capacity']}" if row["kind"] == "worker" else f"{row['readers']} readers"
        if row["silent"]:
            drawn.append([(f"{name[:29]:<30}silent for {_age(row['heard_seconds'])}", _RED)])
            continue
        per_second = row["per_second"]
        rate = per_second.get("tokens_generated", per_second.get("tokens_delivered", 0))
        lag = f"{row['lag']['event_loop']['p99_ms']:.3g} ms" if "event_loop" in row["lag"] else "–"
        facts = f"{load:>14}{_number(rate):>8}{row['cpu']:>6.0%}{_bytes(row['memory_bytes']):>9}{lag:>9}"
        drawn.append([(f"{name[:29]:<30}{facts}", ""), ("  draining" if row["draining"] else "", _YELLOW)])
    if len(processes) > room:
        drawn.append([(f"… and {len(processes) - room + 1} more", _DIM)])
    return drawn


def _painted(line: Line, columns: int, colours: bool) -> str:
    """Returns a line cut to `columns`. Control characters are replaced: what comes over the network must not steer the terminal."""
    left, painted = columns, []
    for text, colour in line:
        text = "".join(character if character.isprintable() else "�" for character in text)[:left]
        left -= len(text)
        painted.append(f"\x1b[{colour}m{text}\x1b[0m" if colours and colour and text else text)
    return "".join(painted).rstrip()


def sparkline(values: Sequence[float]) -> str:
    """Returns one bar per value; the highest value has the full height of a line."""
    highest = max(values, default=0.0)
    return "".join(_BARS[min(7, int(value / highest * 7.99))] if highest else _BARS[0] for value in values)


def _number(value: float) -> str:
    if 0 < value < 10 and value != int(value):
        return f"{value:.1f}"
    return f"{value:,.0f}" if value < 1e6 else f"{value / 1e6:.1f}M"


def _age(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


def _bytes(value: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
