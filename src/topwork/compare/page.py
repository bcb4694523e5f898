"""The comparison as a page and as text for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from topwork.compare.comparison import (
    MODEL,
    Comparison,
    MetricRow,
    SplitChange,
    same_images,
    truth_of_test,
)
from topwork.report.figures import Estimate, class_figures, percent
from topwork.report.page import render, thresholds
from topwork.report.pictures import ChosenImage, Picture, boxes_of, draw
from topwork.report.run import Run
from topwork.report.sections import SET_TITLES, Table, with_range
from topwork.report.story import SPLIT_NAMES, kinds_of

PILLS = {
    "better": "good",
    "worse": "bad",
    "within chance": "mild",
    "other set": "mild",
    "no interval": "mild",
    "equal": "",
}


def render_comparison(comparison: Comparison, pictures: int = 4) -> str:
    """The comparison as one self-contained page; the same runs give the same bytes."""
    return render(
        "compare.html.j2",
        "topwork.compare",
        title=f"Comparison: {', '.join(comparison.names)}",
        names=comparison.names,
        sentence=sentence(comparison),
        metrics=[
            metric_table(comparison, on)
            for on in dict.fromkeys(row.on for row in comparison.metrics)
        ],
        params=param_table(comparison),
        data=[
            (name, data_table(name, changes), class_table(name, changes))
            for name, changes in zip(comparison.names[1:], comparison.data, strict=True)
        ],
        weights=[
            (name, found if isinstance(found, str) else weight_table(name, found))
            for name, found in zip(comparison.names[1:], comparison.weights, strict=True)
        ],
        pictures=same_pictures(comparison.runs, pictures),
    )


def sentence(comparison: Comparison) -> str:
    """What changed for the better and the worse against the first run, beyond chance."""
    parts = []
    for index, name in enumerate(comparison.names[1:], start=1):
        verdicts = {row.verdict(index) for row in comparison.metrics} - {""}
        if verdicts == {"equal"}:
            parts.append(f"{name} equals {comparison.names[0]} in every figure")
            continue
        if not verdicts & {"better", "worse", "within chance", "equal"}:
            parts.append(
                f"{name} can't be compared with {comparison.names[0]}:"
                f" {' and '.join(sorted(verdicts)) or 'no class in common'}"
            )
            continue
        found: dict[str, list[str]] = {"better": [], "worse": []}
        for row in comparison.metrics:
            if (verdict := row.verdict(index)) in found:
                found[verdict].append(f"{row.name} ({row.on})")
        words = [f"{verdict} on {', '.join(rows)}" for verdict, rows in found.items() if rows]
        parts.append(
            f"{name} is {' and '.join(words)} than {comparison.names[0]}"
            if words
            else f"{name} doesn't differ from {comparison.names[0]} beyond chance"
        )
    return f"{'; '.join(parts)}."


def metric_table(comparison: Comparison, on: str) -> Table:
    """A line a class and run: AP, the difference to the first run with its paired interval, and
    retention.
    """
    names = comparison.names
    rows = [
        [
            row.name,
            name,
            _ap(row.ap[index]),
            _delta(row, index) if index else "",
            _retention(row.retention[index]),
        ]
        for row in comparison.metrics
        if row.on == on
        for index, name in enumerate(names)
    ]
    caption = (
        f"{SET_TITLES.get(on, on)}: AP of the fine-tuned detectors; differences with paired"
        " intervals over the same images."
    )
    return Table(
        f"Metrics: {on} set",
        caption,
        ("Class", "Run", "AP", f"Against {names[0]}", "Retention"),
        rows,
    )


def _ap(found: Estimate | None) -> Any:
    return "undefined" if found is None else with_range(f"{found.value:.3f}", found.interval)


def _retention(found: Estimate | None) -> Any:
    if found is None:
        return "–"
    return with_range(
        percent(found.value),
        (
            ""
            if found.low is None or found.high is None
            else f"{percent(found.low)} to {percent(found.high)}"
        ),
    )


def _delta(row: MetricRow, index: int) -> Any:
    found = row.differences.get(index)
    if found is None:
        return "–"
    verdict = row.verdict(index)
    between = (
        ""
        if found.low is None or found.high is None or verdict == "equal"
        else f"{found.low:+.3f} to {found.high:+.3f}"
    )
    return Markup('{} <span class="pill {}">{}</span><span class="range">{}</span>').format(
        f"{found.value:+.3f}" if abs(found.value) >= 5e-4 else "0.000",
        PILLS[verdict],
        verdict,
        between,
    )


def param_table(comparison: Comparison) -> Table | None:
    """Params that differ."""
    if not comparison.params:
        return None
    rows = [[key, *(value or "–" for value in values)] for key, values in comparison.params]
    return Table(
        "Parameters that differ",
        "Keys of params.yaml whose values differ.",
        ("Key", *comparison.names),
        rows,
    )


def data_table(name: str, changes: Sequence[SplitChange]) -> Table | None:
    """Images and annotations added, removed, changed."""
    if not changes:
        return None
    rows: list[list[Any]] = [
        [
            SPLIT_NAMES.get(change.split, change.split),
            *(f"{n:,}" for n in (*change.images, *change.annotations)),
        ]
        for change in changes
    ]
    heads = (
        "Split",
        "Images added",
        "removed",
        "changed",
        "Annotations added",
        "removed",
        "changed",
    )
    return Table(
        f"Data of {name}",
        "Splits in which something changed; images by file name and content, annotations by id.",
        heads,
        rows,
        tuple(range(1, 7)),
    )


def class_table(name: str, changes: Sequence[SplitChange]) -> Table | None:
    """Boxes a class, where the counts differ."""
    rows: list[list[Any]] = [
        [
            label,
            SPLIT_NAMES.get(change.split, change.split),
            f"{before:,}",
            f"{after:,}",
            f"{after - before:+,}",
        ]
        for change in changes
        for label, (before, after) in change.classes.items()
    ]
    return (
        Table(
            f"Class counts of {name}",
            "Boxes by class, where the counts differ.",
            ("Class", "Split", "Before", "After", "Difference"),
            rows,
            (2, 3, 4),
        )
        if rows
        else None
    )


def weight_table(name: str, moved: pd.DataFrame) -> Table:
    """How far each class's rows moved."""
    rows: list[list[Any]] = [
        [
            str(row["class"]),
            f"{row['tensors']:,}",
            f"{row['same']:,}",
            f"{row['moved']:.4g}",
            f"{row['relative']:.2%}",
        ]
        for row in moved.to_dict("records")
    ]
    caption = (
        "Distance of the fine-tuned weights: the head rows of each class, then all other tensors."
        " Relative to the norm in the first run."
    )
    return Table(
        f"Weights of {name}",
        caption,
        ("Rows of", "Tensors", "Bit-identical", "Moved", "Relative"),
        rows,
        (1, 2, 3, 4),
    )


def same_pictures(runs: Sequence[Run], count: int) -> list[Picture]:
    """The test images on which the runs differ most by F1: ground truth, then each run's
    detections.
    """
    ids = same_images(runs)
    if not ids or count == 0:
        return []
    truth = truth_of_test(runs[0])
    strong, scores = [], []
    for run in runs:
        found, f1 = run.predictions(MODEL, "test"), run.image_f1(MODEL, "test")
        if found is None or f1 is None:
            return []
        strong.append(thresholds(class_figures(run), None).strong(found, MODEL))
        scores.append(f1)
    spread: Mapping[int, float] = {
        key: max(score[key] for score in scores) - min(score[key] for score in scores)
        for key in ids
    }
    images = runs[0].tables.split("test").images.set_index("image_id")
    kinds = kinds_of(runs[0])
    chosen: list[ChosenImage] = []
    for image_id in sorted(ids, key=lambda key: (-spread[key], key))[:count]:
        image: Any = images.loc[image_id]
        panels = [
            (
                "Ground truth",
                boxes_of(
                    truth[truth["image_id"] == image_id], lambda name: kinds.get(name, "other")
                ),
            )
        ]
        panels += [
            (
                run.name,
                boxes_of(
                    frame[frame["image_id"] == image_id], lambda name: kinds.get(name, "other")
                ),
            )
            for run, frame in zip(runs, strong, strict=True)
        ]
        size = int(image["width"]), int(image["height"])
        chosen.append(
            ChosenImage(
                f"same-{len(chosen)}",
                str(image["file_name"]),
                str(image["image_root"]),
                str(image["file_name"]),
                *size,
                tuple(panels),
            )
        )
    return draw(runs[0], chosen)
