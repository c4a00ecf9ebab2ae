"""Draws the output of `midstream demo`: `midstream demo | python docs/images/demo_svg.py > docs/images/demo.svg`."""

from __future__ import annotations

import sys
import textwrap
from html import escape

COLUMNS, CHARACTER, LINE, MARGIN, BAR = 98, 8.0, 20, 20, 34
COLOURS = {"✂": "#ff7b72", "↻": "#7ee787", "✔": "#7ee787", "y": "#79c0ff", "(": "#8b949e", "A": "#8b949e"}


def rows(printed: str) -> list[tuple[str, str]]:
    """Returns each line of the terminal with its colour. The note of a cut gets a line of its own."""
    drawn = [("$ make demo", "#e6edf3")]
    for line in printed.rstrip().replace("  ✂", "\n  ✂").splitlines():
        colour = COLOURS.get(line.strip()[:1], "#e6edf3")
        drawn += [(piece, colour) for piece in textwrap.wrap(line, COLUMNS, drop_whitespace=False) or [""]]
    return drawn


def svg(drawn: list[tuple[str, str]]) -> str:
    width, height = int(COLUMNS * CHARACTER) + 2 * MARGIN, len(drawn) * LINE + BAR + 2 * MARGIN
    texts = "\n".join(
        f'<text x="{MARGIN}" y="{BAR + MARGIN + LINE * index}" fill="{colour}">{escape(text)}</text>'
        for index, (text, colour) in enumerate(drawn)
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">
<title>midstream demo: one answer, its connection cut twice, resumed at the exact token</title>
<rect width="100%" height="100%" rx="8" fill="#0d1117"/>
<circle cx="20" cy="18" r="6" fill="#ff5f57"/><circle cx="40" cy="18" r="6" fill="#febc2e"/><circle cx="60" cy="18" r="6" fill="#28c840"/>
<g font-family="ui-monospace, SFMono-Regular, Menlo, 'DejaVu Sans Mono', monospace" font-size="13" xml:space="preserve">
{texts}
</g>
</svg>
"""


if __name__ == "__main__":
    sys.stdout.write(svg(rows(sys.stdin.read())))
