"""Charts: where points land, and that a chart says its figures to those who can't see it."""

import re
from xml.etree import ElementTree

import pytest

from topwork.report.svg import Line, Mark, Row, bar_chart, interval_chart, line_chart, number, ticks


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
