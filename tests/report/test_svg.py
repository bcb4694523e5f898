"""Charts: where points land, and that a chart says its figures to those who can't see it."""

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from topwork.report.svg import (
    Line,
    Mark,
    Row,
    axis,
    bar_chart,
    interval_chart,
    line_chart,
    number,
    ticks,
)


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ((0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ((0, 12), [0, 5, 10, 15]),
        ((3, 3), [3, 3.2, 3.4, 3.6, 3.8, 4]),
        ((-0.1, 0.1), [-0.1, -0.05, 0, 0.05, 0.1]),
    ],
    ids=str,
)
def test_ticks_are_round_and_span(span: tuple[float, float], expected: list[float]) -> None:
    assert ticks(*span) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1"), (1.005, "1"), (0.126, "0.13"), (-0.001, "0"), (120.5, "120.5")],
    ids=str,
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def test_line_lands_where_axes_say() -> None:
    chart = line_chart(
        "k",
        "PR",
        "d",
        [Line("one", [(0, 0), (1, 1)])],
        "recall",
        "precision",
        x_range=(0, 1),
        y_range=(0, 1),
        size=(158, 166),
    )
    # 46 left, 12 right, 26 above, 40 below: a field of 100 x 100
    assert re.search(r'class="line tuned" d="M46 126L146 26"', chart)


def test_gap_breaks_the_line_and_nothing_draws_nothing() -> None:
    chart = line_chart(
        "k", "t", "d", [Line("one", [(0, 1), (1, float("nan")), (2, 1), (3, 1)])], "x", "y"
    )
    path = re.search(r'class="line tuned" d="([^"]*)"', chart)
    assert path is not None
    assert re.sub(r"[-\d. ]", "", path[1]) == "MML"
    assert 'class="line' not in line_chart("k", "t", "d", [Line("one", [])], "x", "y")


def test_charts_are_well_formed_named_and_escaped() -> None:
    rows = [
        Row(
            "<b>&",
            [
                Mark("fine-tuned", 0.5, 0.4, 0.6, "tuned"),
                Mark("pretrained", 1.4, None, None, "before"),
            ],
        )
    ]
    for chart in (
        interval_chart("k", "AP <&>", 'text "so"', rows, "AP"),
        bar_chart("k", "Errors <&>", "text", [("<b>", 0.2, "0.2"), ("none", 0.0, "0")], "AP"),
        line_chart("k", "Lines <&>", "text", [Line("<x>", [(0, 1)])], "x", "y"),
    ):
        tree = ElementTree.fromstring(str(chart))
        assert tree.get("role") == "img"
        assert tree.get("aria-labelledby") == "k-t k-d"
        assert "<&>" in (tree[0].text or "")
        assert (tree[1].text or "").startswith("text")


def test_marks_stay_inside_and_whiskers_only_with_interval() -> None:
    chart = interval_chart(
        "k",
        "t",
        "d",
        [
            Row("a", [Mark("m", 1.4, None, None, "before")]),
            Row("b", [Mark("m", 0.5, 0.25, 0.75, "tuned")]),
        ],
        "AP",
    )
    field = 400 - 104 - 14
    assert f'cx="{400 - 14}"' in chart
    assert chart.count('class="whisker') == 1
    assert f'd="M{number(104 + field / 4)} ' in chart
    assert f'H{number(104 + field * 3 / 4)}"' in chart


ANY = settings(deadline=None, database=None)
EXTREME = st.one_of(
    st.floats(),
    st.sampled_from(
        [0.0, -0.0, 2.05e-13, 5e-324, -5e-324, 1e308, -1e308, 1.0, math.nan, math.inf, -math.inf]
    ),
)


def checked(drawing: str) -> None:
    """A drawing is XML without a number that isn't one, and nothing lies far from it."""
    frame = ElementTree.fromstring(drawing)
    _, _, width, height = map(float, frame.attrib["viewBox"].split())
    for element in frame.iter():
        numbers = " ".join(
            value
            for key, value in element.attrib.items()
            if key in ("x", "y", "cx", "cy", "width", "height", "d", "transform")
        )
        assert "nan" not in numbers
        assert "inf" not in numbers
        for number_ in re.findall(r"-?\d+\.?\d*", numbers):
            assert -2 * max(width, height) <= float(number_) <= 3 * max(width, height)


@ANY
@given(st.lists(st.tuples(EXTREME, EXTREME), max_size=5), st.booleans(), st.booleans())
@example([(1.0, 2.05e-13)], False, True)
@example([(1.0, 5e-324)], False, True)
@example([], False, False)
def test_line_charts_of_any_values(
    points: list[tuple[float, float]], ranged: bool, dots: bool
) -> None:
    line = Line("loss", points, dots=dots)
    unit = (0.0, 1.0) if ranged else None
    checked(line_chart("k", "t", "d", [line], "x", "y", x_range=unit, y_range=unit))


@ANY
@given(st.lists(EXTREME, max_size=5))
def test_bar_charts_of_any_values(values: list[float]) -> None:
    bars = [(f"class {index}", value, "text") for index, value in enumerate(values)]
    checked(bar_chart("k", "t", "d", bars, "x"))


@ANY
@given(
    st.lists(
        st.tuples(EXTREME, st.one_of(st.none(), EXTREME), st.one_of(st.none(), EXTREME)), max_size=5
    )
)
def test_interval_charts_of_any_values(
    values: list[tuple[float, float | None, float | None]],
) -> None:
    marks = [Mark("AP", *entry, "tuned") for entry in values]
    checked(interval_chart("k", "t", "d", [Row("class", marks)], "x"))


@ANY
@given(EXTREME.filter(math.isfinite), EXTREME.filter(math.isfinite), st.integers(1, 8))
def test_ticks_are_distinct_and_span(low: float, high: float, count: int) -> None:
    low, high = min(low, high), max(low, high)
    found = ticks(low, high, count)
    assert found == sorted(set(found))
    assert 2 <= len(found) <= 3 * count + 3
    first, last = axis(low, high)
    slack = 1e-8 * (last - first)
    assert found[0] <= first + slack
    assert found[-1] >= last - slack
