"""Line charts as SVG text, without scripts. All text is escaped.

matplotlib would take seconds to import and 0.4 seconds a chart (a page has about 30), write letters as paths, and show no
value at a point.
"""

import html
import math
from collections.abc import Mapping, Sequence

from zsjax.errors import printable

COLORS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#db2777", "#64748b")
WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24
MAX_POINTS = 300  # beyond it, every n-th point is drawn


def line_chart(series: Mapping[str, Sequence[tuple[float, float]]], *, low: float | None = None,
               high: float | None = None) -> str:
    """An <svg> of curves over steps.

    Args:
      series: name -> (step, value) points in order; values that are not finite leave a gap.
      low, high: the vertical axis reaches at least these.

    Returns:
      The SVG; "" without a finite value. A browser shows a point's <title> under the mouse.
    """
    points = {name: _thin(list(values)) for name, values in series.items()}
    finite = [(x, y) for values in points.values() for x, y in values if math.isfinite(y)]
    if not finite:
        return ""
    xs, ys = zip(*finite, strict=True)
    bottom = min(ys) if low is None else min(low, min(ys))
    top = max(ys) if high is None else max(high, max(ys))
    if top == bottom:
        bottom = bottom if bottom == low else bottom - 0.5 * (abs(bottom) or 1)
        top += 0.5 * (abs(top) or 1)
    y_ticks, x_ticks = ticks(bottom, top, 5), [t for t in ticks(min(xs), max(xs), 6) if t == int(t)]
    bottom, top = min(bottom, y_ticks[0]), max(top, y_ticks[-1])
    span = max(max(xs) - min(xs), 1)

    def place(x, y):
        return (round(LEFT + (x - min(xs)) / span * (WIDTH - LEFT - RIGHT), 1),
                round(TOP + (top - y) / (top - bottom) * (HEIGHT - TOP - BOTTOM), 1))

    out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg">']
    for tick in y_ticks:
        y = place(min(xs), tick)[1]
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
                   f'<text x="{LEFT - 6}" y="{y + 3.5}" text-anchor="end">{short(tick)}</text>')
    for tick in x_ticks:
        if min(xs) <= tick <= max(xs):
            x = place(tick, bottom)[0]
            out.append(f'<text x="{x}" y="{HEIGHT - 8}" text-anchor="middle">{short(tick)}</text>')
    for index, (name, values) in enumerate(points.items()):
        out += _curve(values, place, color_of(index), escape(name), single=len(points) == 1)
    return "".join(out) + "</svg>"


def color_of(index: int) -> str:
    """The colour of a chart's curve."""
    return COLORS[index % len(COLORS)]


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from low to high, in steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / max(count - 1, 1) or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    size = power * min((f for f in (1, 2, 5, 10) if f * power >= rough * 0.999), default=10)
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    return [round(i * size, 12) for i in range(first, last + 1)]


def short(value) -> str:
    """A number in few characters."""
    if value is None:
        return "–"
    if isinstance(value, str | bool) or not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value)}"
    if abs(value) >= 1000:
        return f"{value:.3g}" if abs(value) >= 1e6 else f"{value:.0f}"
    return f"{value:.3f}".rstrip("0").rstrip(".") if abs(value) >= 0.001 else f"{value:.1e}"


def escape(text) -> str:
    """Text as it may stand in HTML, between tags or in a quoted attribute."""
    return html.escape(printable(str(text)))


def _curve(values, place, color, name, *, single):
    runs, run = [], []
    for x, y in [*values, (0, math.nan)]:
        if math.isfinite(y):
            run.append((x, y))
        elif run:
            runs, run = [*runs, run], []
    raw = "".join("M" + "L".join("{},{}".format(*place(x, y)) for x, y in run) for run in runs)
    yield f'<path class="raw" stroke="{color}" d="{raw}"/>'
    # The bold line is a moving average over a twentieth of the run, the faint one the measured values.
    smooth = "".join("M" + "L".join("{},{}".format(*place(x, y)) for x, y in _smooth(run, len(values) // 20))
                     for run in runs)
    yield f'<path class="line" stroke="{color}" d="{smooth}"/>'
    for x, y in [point for run in runs for point in run]:
        cx, cy = place(x, y)
        label = f"step {short(x)}: {short(y)}" if single else f"{name}, step {short(x)}: {short(y)}"
        dot = f' class="dot" fill="{color}"' if len(values) <= 20 else ""
        yield f'<circle cx="{cx}" cy="{cy}" r="{2.5 if dot else 4}"{dot}><title>{label}</title></circle>'


def _smooth(run, reach):
    ys = [y for _, y in run]
    return [(x, sum(window) / len(window)) for i, (x, _) in enumerate(run)
            if (window := ys[max(0, i - reach):i + reach + 1])]


def _thin(values):
    every = -(-len(values) // MAX_POINTS)
    kept = values[::every] if every > 1 else values
    return [*kept, values[-1]] if values and kept[-1] != values[-1] else kept
