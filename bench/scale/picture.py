"""A line chart as SVG: readable in light and dark, and small."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 720, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 20, 24, 64
_COLOURS = ("#0b6bcb", "#c2410c", "#15803d", "#7c3aed")
_STEPS_MAX = 200

Line = tuple[str, Sequence[tuple[float, float]]]


def chart(title: str, x_title: str, y_title: str, lines: Sequence[Line]) -> str:
    """Returns the chart. Each line is a name and its points; both axes begin at 0."""
    x_max = max(x for _, points in lines for x, _ in points) or 1.0
    y_max = max(y for _, points in lines for _, y in points) or 1.0

    def across(x: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * x / x_max, 1)

    def down(y: float) -> float:
        return round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * y / y_max, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="15" font-weight="bold">{escape(title)}</text>',
    ]
    for tenth in range(0, 11, 2):
        x, y = x_max * tenth / 10, y_max * tenth / 10
        parts += [
            f'<line x1="{_LEFT}" y1="{down(y)}" x2="{_WIDTH - _RIGHT}" y2="{down(y)}" stroke="#dddddd"/>',
            f'<text x="{_LEFT - 6}" y="{down(y) + 4:.0f}" text-anchor="end">{_number(y)}</text>',
            f'<text x="{across(x)}" y="{down(0) + 16:.0f}" text-anchor="middle">{_number(x)}</text>',
        ]
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 30}" text-anchor="end">{escape(x_title)}</text>')
    parts.append(f'<text x="{_LEFT}" y="{_TOP + 12}" dx="4">{escape(y_title)}</text>')
    for number, (name, points) in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{across(x)},{down(y)}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        left = _LEFT + number * (_WIDTH - _LEFT) / len(lines)
        parts.append(f'<rect x="{left:.0f}" y="{_HEIGHT - 18}" width="12" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{left + 18:.0f}" y="{_HEIGHT - 12}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def shares(values: Sequence[float]) -> list[tuple[float, float]]:
    """Returns for rising values the per cent of all that are at most as large."""
    ordered = sorted(values)
    step = max(1, len(ordered) // _STEPS_MAX)
    chosen = [*range(0, len(ordered), step), len(ordered) - 1]
    return [(0.0, 0.0), *((ordered[index], 100 * (index + 1) / len(ordered)) for index in chosen)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 20 or value == int(value) else f"{value:.1f}"
