"""Charts as inline SVG: drawn in CSS variables, so that dark, light and print need no second
drawing.

Every chart is `role="img"` with a title and a description with its figures in words. Numbers
are rounded to two decimals, so that the same data give the same bytes.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from markupsafe import Markup

LARGEST = 1e300  # sums and differences of two such numbers are finite
SMALLEST = 1e-290  # a span below can't be divided into steps
NARROW = 1e-9  # of the numbers themselves: below, neighbouring ticks would be one number
Points = Sequence[tuple[float, float]]
Placer = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One line of a chart: its name, its points, and the CSS class that draws it (`tuned`,
    `grafted`, `before`, `guide`).
    """

    name: str
    points: Points
    style: str = "tuned"
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """One dot of an interval chart; `low` and `high` are None where there's no interval."""

    name: str
    value: float
    low: float | None
    high: float | None
    style: str


@dataclass(frozen=True)
class Row:
    """One line of an interval chart: a class, and its marks."""

    name: str
    marks: Sequence[Mark] = field(default_factory=tuple)


def number(value: float) -> str:
    """A coordinate: at most two decimals, no trailing zeros, no negative zero."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that span [low, high], at least two: steps of 1, 2 or 5 times a power of ten.

    Example:
        >>> ticks(0, 1)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        >>> ticks(3, 3)
        [3.0, 3.2, 3.4, 3.6, 3.8, 4.0]
    """
    low, high = axis(low, high)
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(12, 2 - math.floor(math.log10(step)))
    return [round(index * step, digits) for index in range(first, max(last, first + 1) + 1)]


def axis(low: float, high: float) -> tuple[float, float]:
    """A range that has a length and can be divided, whatever the numbers: constant and very narrow
    ones are widened upwards, huge ones cut.

    Example:
        >>> axis(3, 3), axis(0, 5e-324), axis(2, 4)
        ((3, 4), (0, 1), (2, 4))
    """
    low, high = max(low, -LARGEST), min(high, LARGEST)
    low = min(low, LARGEST)
    wide = NARROW * max(abs(low), abs(high))
    if not high - low > max(wide, SMALLEST):
        high = low + max(1, abs(low) / 10)
    return low, high


def tick_label(value: float) -> str:
    """A tick in as few digits as needed."""
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-4):
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.6f}".rstrip("0").rstrip(".")


def line_chart(
    key: str,
    title: str,
    description: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    size: tuple[int, int] = (360, 230),
    heading: bool = True,
) -> Markup:
    """Lines over two axes; a point that isn't finite breaks its line.

    `key` is unique on the page: title and description are named after it for screen readers.
    """
    width, height = size
    left, right, top, bottom = 46, 12, 26 if heading else 10, 40
    finite = [
        (x, y) for line in lines for x, y in line.points if math.isfinite(x) and math.isfinite(y)
    ]
    x_ticks = ticks(*(x_range or _span(x for x, _ in finite)))
    y_ticks = ticks(*(y_range or _span((y for _, y in finite), from_zero=True)), count=4)
    x_low, x_high = axis(*(x_range or _span(x for x, _ in finite)))
    y_low, y_high = min(y_ticks), max(y_ticks)
    slack = 1e-9 * (x_high - x_low)

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = _share(x, x_low, x_high), _share(y, y_low, y_high)
        return (
            left + across * (width - left - right),
            height - bottom - up * (height - top - bottom),
        )

    body = []
    for tick in y_ticks:
        _, y = place(x_low, tick)
        body.append(f'<path class="grid" d="M{left} {number(y)}H{width - right}"/>')
        body.append(
            f'<text class="tick" x="{left - 6}" y="{number(y + 3.5)}"'
            f' text-anchor="end">{tick_label(tick)}</text>'
        )
    body += [
        f'<text class="tick" x="{number(place(tick, y_low)[0])}" y="{height - bottom + 15}"'
        f' text-anchor="middle">{tick_label(tick)}</text>'
        for tick in x_ticks
        if x_low - slack <= tick <= x_high + slack
    ]
    body.append(f'<path class="axis" d="M{left} {height - bottom}H{width - right}"/>')
    body.append(_axis_label((left + width - right) / 2, height - 6, x_label))
    body.append(_axis_label(12, (top + height - bottom) / 2, y_label, turn=True))
    body += [_path(line, place) for line in lines]
    if heading:
        body.append(f'<text class="chart-title" x="{left}" y="15">{escape(title)}</text>')
    return svg(key, title, description, "".join(body), size, "chart")


def interval_chart(
    key: str, title: str, description: str, rows: Sequence[Row], x_label: str, width: int = 400
) -> Markup:
    """A dot and an interval a mark, one line a class, from 0 to 1; a mark without a value is left
    out.
    """
    left, right, top, step = 104, 14, 8, 40
    height = top + step * len(rows) + 40
    body = []

    def place(value: float) -> float:
        return left + min(max(value, 0.0), 1.0) * (width - left - right)

    for tick in ticks(0, 1):
        x = number(place(tick))
        body.append(f'<path class="grid" d="M{x} {top}V{height - 38}"/>')
        body.append(
            f'<text class="tick" x="{x}" y="{height - 22}"'
            f' text-anchor="middle">{tick_label(tick)}</text>'
        )
    for index, row in enumerate(rows):
        middle = top + step * (index + 0.5)
        body.append(
            f'<text class="row-name" x="{left - 12}" y="{number(middle + 4)}"'
            f' text-anchor="end">{escape(_short(row.name, 14))}</text>'
        )
        offset = -(len(row.marks) - 1) / 2 * 9
        for place_of, mark in enumerate(row.marks):
            if not math.isfinite(mark.value):
                continue
            y = number(middle + offset + place_of * 9)
            whisker = ""
            ends = [end for end in (mark.low, mark.high) if end is not None and math.isfinite(end)]
            if mark.low is not None and mark.high is not None and len(ends) == 2:
                whisker = (
                    f'<path class="whisker {mark.style}" d="M{number(place(mark.low))}'
                    f' {y}H{number(place(mark.high))}"/>'
                )
            x = number(place(mark.value))
            hint = f"{row.name}, {mark.name}: {mark.value:.3f}"
            body.append(
                f'<g><title>{escape(hint)}</title>{whisker}<circle class="mark {mark.style}"'
                f' cx="{x}" cy="{y}" r="4"/></g>'
            )
    body.append(_axis_label((left + width - right) / 2, height - 5, x_label))
    return svg(key, title, description, "".join(body), (width, height), "chart wide")


def bar_chart(
    key: str,
    title: str,
    description: str,
    bars: Sequence[tuple[str, float, str]],
    x_label: str,
    *,
    width: int = 480,
    style: str = "tuned",
) -> Markup:
    """Horizontal bars: (name, value, the text next to the bar)."""
    left, right, top, step = 118, 64, 6, 26
    height = top + step * len(bars) + 24
    highest = max([value for _, value, _ in bars if math.isfinite(value)] + [SMALLEST])
    body = []
    for index, (name, value, text) in enumerate(bars):
        y = top + step * index
        share = min(max(value, 0.0) / highest, 1.0) if not math.isnan(value) else 0.0
        length = share * (width - left - right)
        body.append(
            f'<text class="row-name" x="{left - 10}" y="{y + 15}"'
            f' text-anchor="end">{escape(_short(name, 18))}</text>'
        )
        body.append(
            f'<rect class="bar {style}" x="{left}" y="{y + 3}" width="{number(max(length, 1))}"'
            ' height="16" rx="2"/>'
        )
        body.append(
            f'<text class="tick" x="{number(left + length + 6)}" y="{y + 15}">{escape(text)}</text>'
        )
    body.append(_axis_label(left, height - 4, x_label, anchor="start"))
    return svg(key, title, description, "".join(body), (width, height), "chart")


def svg(
    key: str, title: str, description: str, body: str, size: tuple[int, int], css: str
) -> Markup:
    """The frame that every drawing shares; `body` is trusted markup."""
    width, height = size
    return Markup(
        f'<svg class="{css}" role="img" aria-labelledby="{key}-t {key}-d" viewBox="0 0 {width}'
        f' {height}" xmlns="http://www.w3.org/2000/svg"><title'
        f' id="{key}-t">{escape(title)}</title><desc'
        f' id="{key}-d">{escape(description)}</desc>{body}</svg>'
    )


def text_width(text: str, font_size: float) -> float:
    """Approximate width of a semibold text, by three kinds of letters."""
    return font_size * sum(
        0.36 if letter in "fijlrtI.,:;'|! 1" else 0.9 if letter in "mwMW@%" else 0.62
        for letter in text
    )


def _path(line: Line, place: Placer) -> str:
    points = [
        place(x, y) if math.isfinite(x) and math.isfinite(y) else None for x, y in line.points
    ]
    steps = []
    for before, point in pairwise([None, *points]):
        if point is not None:
            steps.append(
                f"{'L' if before is not None else 'M'}{number(point[0])} {number(point[1])}"
            )
    drawn = f'<path class="line {line.style}" d="{"".join(steps)}"/>' if steps else ""
    dots = "".join(
        f'<circle class="mark {line.style}" cx="{number(point[0])}" cy="{number(point[1])}" r="3"/>'
        for point in points
        if point is not None and (line.dots or len(points) == 1)
    )
    return f"<g><title>{escape(line.name)}</title>{drawn}{dots}</g>"


def _axis_label(x: float, y: float, text: str, turn: bool = False, anchor: str = "middle") -> str:
    where = (
        f'transform="translate({number(x)} {number(y)}) rotate(-90)"'
        if turn
        else f'x="{number(x)}" y="{number(y)}"'
    )
    return f'<text class="axis-label" {where} text-anchor="{anchor}">{escape(text)}</text>'


def _span(values: Iterable[float], from_zero: bool = False) -> tuple[float, float]:
    found = list(values)
    if not found:
        return (0.0, 1.0)
    low = min(found)
    return (min(0.0, low) if from_zero else low, max(found))


def _share(value: float, low: float, high: float) -> float:
    """Where a value is between two, 0 to 1; what lies far outside stays near the chart."""
    return min(max((min(max(value, -LARGEST), LARGEST) - low) / (high - low), -1.0), 2.0)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
