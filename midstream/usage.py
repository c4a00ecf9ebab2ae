"""`midstream usage`: prints what each principal has used, as a table, CSV or JSON. It asks a gateway."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import orjson

from midstream.gateway_answers import get

_COLUMNS = ("principal", "model", "streams", "failed", "cancelled", "cut_off", "generated", "delivered", "undelivered")
_KEYS = ("principal", "model", "day")

Row = Mapping[str, Any]


def usage(*, server: str, query: Mapping[str, str], by_day: bool, form: str) -> int:
    """Prints the usage; `form` is `table`, `csv` or `json`, the last two with a row for each day. Raises Unusable."""
    rows = _rows(server, query)
    if form == "json":
        for row in rows:
            sys.stdout.buffer.write(orjson.dumps(row) + b"\n")
    elif form == "csv":
        _print_csv(rows)
    else:
        _print_table(rows, by_day=by_day)
    return 0


def _rows(server: str, query: Mapping[str, str]) -> Iterator[Row]:
    """Yields all rows, page after page. Raises Unusable."""
    after: str | None = ""
    while after is not None:
        page = get(server, "/v1/usage", {**query, "after": after})
        yield from page["usage"]
        after = page["next"]


def _print_csv(rows: Iterable[Row]) -> None:
    writer = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(sys.stdout, [*row], extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
        writer.writerow({name: _harmless(value) for name, value in row.items()})


def _harmless(value: Any) -> Any:
    """Returns a value that no spreadsheet takes for a formula: clients choose the names of models."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def _print_table(rows: Iterable[Row], *, by_day: bool) -> None:
    """Prints the sums over all days, or the rows of each day, and the sum of all."""
    columns = ("day", *_COLUMNS) if by_day else _COLUMNS
    names = tuple(name for name in columns if name in _KEYS)
    sums: dict[tuple[str, ...], dict[str, int]] = {}
    for row in rows:
        for key in (tuple(str(row[name]) for name in names), ()):
            counts = sums.setdefault(key, {})
            for name in columns[len(names) :]:
                counts[name] = counts.get(name, 0) + row[name]
    total = sums.pop((), None)
    if total is None:
        print("nothing was used")
        return
    lines = [(*key, *map(str, counts.values())) for key, counts in sorted(sums.items())]
    lines.append(("total", *[""] * (len(names) - 1), *map(str, total.values())))
    _print_aligned([tuple(name.replace("_", " ") for name in columns), *lines], texts=len(names))


def _printable(text: str) -> str:
    """Returns a text that cannot steer a terminal: clients choose the names of models."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _print_aligned(lines: list[tuple[str, ...]], *, texts: int) -> None:
    """Prints columns: the first `texts` aligned to the left, the others to the right."""
    shown = [tuple(map(_printable, line)) for line in lines]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for line in shown:
        aligned: list[Callable[[int], str]] = [
            *(cell.ljust for cell in line[:texts]),
            *(cell.rjust for cell in line[texts:]),
        ]
        print("  ".join(align(width) for align, width in zip(aligned, widths, strict=True)).rstrip())
