"""Small line charts as SVG, drawn here: lighter than a plotting library, and the same in light and dark.

A chart never has more points than a curve of the snapshot keeps, so it costs the same after 100,000 steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kohya_gui.parts.markup import esc, number

WIDTH, HEIGHT = 600.0, 160.0
"""Units of the drawing; it is stretched to the width of its place, with lines that keep their thickness."""

QUANTILE = 0.98
"""Share of the raw values that decides the upper end, so that one wild step does not flatten the rest."""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve. `style` is a class of the style sheet: "raw", "bold", "rate"."""

    steps: Sequence[float]
    values: Sequence[float]
    style: str


def chart(title: str, lines: Sequence[Line], *, last: float, floor: float | None = None, note: str = "") -> str:
    """Return a chart of curves over steps 0 to `last`. `floor` fixes the lower end; `note` stands beside the title."""
    drawn = [line for line in lines if line.steps]
    head = f'<figcaption><span>{esc(title)}</span><span class="chart-note">{esc(note)}</span></figcaption>'
    if not drawn:
        return f'<figure class="chart">{head}<div class="chart-empty">Nothing to draw yet.</div></figure>'
    low, high = _range(drawn, floor)
    last = max(last, *(line.steps[-1] for line in drawn), 1.0)
    paths = "".join(_path(line, last, low, high) for line in drawn)
    middle = (low + high) / 2
    labels = "".join(f"<span>{esc(number(value))}</span>" for value in (high, middle, low))
    grid = "".join(f'<line x1="0" x2="{WIDTH:g}" y1="{y:g}" y2="{y:g}"/>' for y in (0.5, HEIGHT / 2, HEIGHT - 0.5))
    words = f"{title}: {note}" if note else title
    return (
        f'<figure class="chart">{head}<div class="chart-body"><div class="chart-y">{labels}</div>'
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" preserveAspectRatio="none" role="img" aria-label="{esc(words)}">'
        f'<g class="grid">{grid}</g>{paths}</svg></div>'
        f'<div class="chart-x"><span>0</span><span>{esc(number(last))}</span></div></figure>'
    )


def _range(lines: Sequence[Line], floor: float | None) -> tuple[float, float]:
    values = sorted(value for line in lines for value in line.values)
    high = values[min(len(values) - 1, int(len(values) * QUANTILE))]
    high = max(high, *(line.values[-1] for line in lines))
    low = values[0] if floor is None else floor
    if high <= low:
        spread = abs(high) * 0.1 or 1.0
        return low - (spread if floor is None else 0.0), low + spread
    margin = (high - low) * 0.06
    return (low if floor is not None else low - margin), high + margin


def _path(line: Line, last: float, low: float, high: float) -> str:
    points = []
    for step, value in zip(line.steps, line.values, strict=True):
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        points.append(f"{step / last * WIDTH:.1f},{(1 - share) * HEIGHT:.1f}")
    if len(points) == 1:
        points.append(points[0].replace(points[0].split(",")[0], f"{min(WIDTH, line.steps[0] / last * WIDTH + 2):.1f}"))
    return f'<polyline class="{line.style}" points="{" ".join(points)}"/>'
