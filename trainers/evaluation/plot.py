"""Curves of a table as an SVG file: one line a column over one column, all on one axis from 0."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pipelines.files.disk import atomic_path

WIDTH, HEIGHT = 560, 320
LEFT, TOP, RIGHT, BOTTOM = 48, 16, 168, 44  # margins; the legend is on the right
COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea")
NUM_TICKS = 5


def write_curves(
    rows: Sequence[Mapping[str, Any]], x: str, columns: Mapping[str, str], out: Path
) -> None:
    """rows by x; columns: name in a row -> label. Atomic."""
    xs = [row[x] for row in rows]
    top = max(1.0, *(row[name] for row in rows for name in columns)) * 1.05

    def place(across: float, up: float) -> str:
        share = (across - xs[0]) / (xs[-1] - xs[0])
        inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return f"{LEFT + share * inner_width:.1f},{TOP + (1 - up / top) * inner_height:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for number in range(NUM_TICKS):
        level = top * number / (NUM_TICKS - 1)
        (left, y), right = place(xs[0], level).split(","), place(xs[-1], level)
        parts.append(f'<polyline points="{left},{y} {right}" stroke="#ddd" fill="none"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y}" text-anchor="end">{level:.2f}</text>')
    for across in xs:
        left = place(across, 0).split(",")[0]
        parts.append(f'<text x="{left}" y="{HEIGHT - 24}" text-anchor="middle">{across:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>')
    for number, ((name, label), colour) in enumerate(zip(columns.items(), COLOURS, strict=False)):
        points = " ".join(place(row[x], row[name]) for row in rows)
        parts.append(
            f'<polyline points="{points}" stroke="{colour}" fill="none" stroke-width="2"/>'
        )
        down = TOP + 14 + 18 * number
        parts.append(
            f'<text x="{WIDTH - RIGHT + 12}" y="{down}" fill="{colour}">{escape(label)}</text>'
        )
    with atomic_path(out) as temporary:
        temporary.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")
