"""A page with a bar a variant: where each step's milliseconds go."""

from __future__ import annotations

import html
from collections.abc import Sequence

from dit_usp.bench.step import Result

COLOURS = {"attention": "#3b6fb6", "other compute": "#7aa6d8", "exposed communication": "#d9822b", "gaps": "#cccccc", "step": "#3b6fb6"}
ROW, LABEL, BAR = 26, 460, 560  # pixels


def page(results: Sequence[Result], about: str) -> str:
    """HTML with one SVG; opens without a network."""
    shown = [result for result in results if result.ms]
    widest = max((result.median for result in shown), default=1.0)
    rows = [_row(result, index, BAR / widest) for index, result in enumerate(shown)]
    legend = " ".join(f'<span style="color:{colour}">&#9632;</span> {name}' for name, colour in COLOURS.items() if name != "step")
    size = f'width="{LABEL + BAR + 110}" height="{ROW * len(shown)}"'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">{"".join(rows)}</svg>'
    title = f"<title>dit-usp bench</title><p>Milliseconds a transformer step. {html.escape(about)}</p>"
    return f'<!doctype html><meta charset="utf-8">{title}<p>{legend}</p>{svg}\n'


def _row(result: Result, index: int, scale: float) -> str:
    left, top = float(LABEL), index * ROW
    drawn = [f'<text x="0" y="{top + 17}">{html.escape(f"{result.case}: {result.variant}")}</text>']
    for name, ms in (result.parts or {"step": result.median}).items():
        drawn.append(f'<rect x="{left:.1f}" y="{top + 4}" width="{ms * scale:.1f}" height="{ROW - 8}" fill="{COLOURS[name]}"/>')
        left += ms * scale
    drawn.append(f'<text x="{left + 6:.1f}" y="{top + 17}">{result.median:.1f} ms</text>')
    return "".join(drawn)
