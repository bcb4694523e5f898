"""The page's sections on what evaluate and finetune measured: class table, curves, confusion,
calibration, error kinds.

Each function turns files of the run into what the template needs, and gives None or nothing where
the run lacks them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from topwork.project.evaluate import CALIBRATION, CONFUSION, PR
from topwork.project.names import HELD_OUT, MODEL_TITLES, MODELS
from topwork.report.figures import ClassFigures, Clause, Estimate, percent
from topwork.report.run import Run
from topwork.report.svg import Line, Mark, Row, bar_chart, interval_chart, line_chart

STYLES = dict(zip(MODELS, ("before", "grafted", "tuned"), strict=True))
"""Model -> CSS class of its lines and marks."""
ORIGINS = {"keep": "kept", "like": "seeded", "new": "new"}
SET_TITLES = dict(
    zip(HELD_OUT, ("Test set", "Source set (the pretrained detector's own domain)"), strict=True)
)
MOST_PANELS = 12
MOST_CLASSES = 20


@dataclass(frozen=True)
class Table:
    """A table for the template: rows of cells, the first a row heading."""

    label: str
    caption: str
    heads: tuple[str, ...]
    rows: list[list[Any]]
    numeric: tuple[int, ...] = ()


def class_tables(figures: Sequence[ClassFigures], contract: Sequence[Clause]) -> list[Table]:
    """One table a set: class, origin, AP of the three models, retention with interval."""
    asked = {(clause.name, clause.on): clause for clause in contract}
    tables = []
    for on in dict.fromkeys(figure.on for figure in figures):
        rows = [
            _class_row(figure, asked.get((figure.name, on)))
            for figure in figures
            if figure.on == on
        ]
        heads = (
            "Class",
            "Rows",
            "Objects",
            *(f"{MODEL_TITLES[model].capitalize()} AP" for model in MODELS),
            "Retention",
            "Contract",
        )
        title = SET_TITLES.get(on, on)
        caption = (
            f"{title}: average precision (IoU 0.50 to 0.95) by class, with confidence intervals"
            " where they were estimated."
        )
        tables.append(Table(f"Classes: {title}", caption, heads, rows, (2, 3, 4, 5, 6)))
    return tables


def _class_row(figure: ClassFigures, clause: Clause | None) -> list[Any]:
    cells: list[Any] = [
        figure.name,
        Markup('<span class="pill">{}</span>').format(
            ORIGINS.get(figure.origin, figure.origin or "?")
        ),
    ]
    cells.append(with_range(f"{figure.objects:,}", f"in {figure.images:,} images"))
    cells += [_cell(figure.ap[model], figure.objects) for model in MODELS]
    if figure.retention is None:
        cells.append("undefined" if figure.kept else "–")
    else:
        low, high = figure.retention.low, figure.retention.high
        cells.append(
            with_range(
                percent(figure.retention.value),
                (
                    f"{percent(low)} to {percent(high)}"
                    if low is not None and high is not None
                    else ""
                ),
            )
        )
    cells.append(contract_cell(clause))
    return cells


def contract_cell(clause: Clause | None) -> Any:
    """What was asked of a class, and whether it holds; a dash where nothing was."""
    if clause is None:
        return "–"
    css, word = ("good", "holds") if clause.holds else ("bad", "breached")
    asked = "exact, proved" if clause.by == "exact" else f"≥ {clause.asked}"
    if clause.by == "exact" and not clause.holds:
        asked = "exact"
    return Markup('<span class="pill {}">{}: {}</span>').format(css, word, asked)


def _cell(value: Estimate | None, objects: int) -> Any:
    if value is None:
        return "not its class" if objects else "undefined"
    return with_range(f"{value.value:.3f}", value.interval)


def with_range(text: str, between: str) -> Any:
    """A figure with its interval in small type under it; the figure alone where there's none."""
    return Markup('{}<span class="range">{}</span>').format(text, between) if between else text


def class_charts(figures: Sequence[ClassFigures]) -> list[tuple[str, Markup]]:
    """One interval chart a set, of its first classes."""
    charts = []
    for on in dict.fromkeys(figure.on for figure in figures):
        here = [figure for figure in figures if figure.on == on and any(figure.ap.values())][
            :MOST_CLASSES
        ]
        if not here:
            continue
        rows = [
            Row(
                figure.name,
                [
                    Mark(MODEL_TITLES[model], found.value, found.low, found.high, STYLES[model])
                    for model in MODELS
                    if (found := figure.ap[model])
                ],
            )
            for figure in here
        ]
        description = "; ".join(
            f"{row.name}: " + ", ".join(f"{mark.name} {mark.value:.2f}" for mark in row.marks)
            for row in rows
        )
        title = SET_TITLES.get(on, on)
        charts.append(
            (
                title,
                interval_chart(
                    f"classes-{on}",
                    f"AP by class, {title.lower()}",
                    description,
                    rows,
                    "average precision",
                ),
            )
        )
    return charts


def training_charts(run: Run) -> list[Markup]:
    """One small chart a DVCLive curve: losses first, then validation metrics, then the rest."""

    def rank(name: str) -> tuple[int, str]:
        first = (
            0
            if "loss" in name.rsplit("/", 1)[-1]
            else 1
            if name.startswith("val")
            else 2
            if name.startswith("train")
            else 3
        )
        return first, "" if name == "val/map" else name

    charts = []
    for index, curve in enumerate(
        sorted(run.curves, key=lambda curve: rank(curve.name))[:MOST_PANELS]
    ):
        finite = [value for value in curve.values if value == value]
        if not finite:
            continue
        description = (
            f"From {finite[0]:.4g} at the start to {finite[-1]:.4g} at the end; lowest"
            f" {min(finite):.4g}, highest {max(finite):.4g}."
        )
        title = curve.name.replace("_", " ").replace("/", " / ")
        few = len(finite) <= 12
        charts.append(
            line_chart(
                f"curve-{index}",
                title,
                description,
                [Line(title, curve.points, "tuned", dots=few)],
                "epoch",
                "",
            )
        )
    return charts


def pr_charts(run: Run, figures: Sequence[ClassFigures]) -> list[Markup]:
    """Precision over recall: one panel a target class, one line a model, on the test set."""
    frame = run.frame(PR)
    if frame is None:
        return []
    frame = frame[frame["set"] == "test"]
    charts: list[Markup] = []
    for name in [
        figure.name
        for figure in figures
        if figure.on == "test" and (frame["class"] == figure.name).any()
    ][:MOST_PANELS]:
        lines, notes = [], []
        for model in MODELS:
            rows = frame[(frame["class"] == name) & (frame["model"] == model)]
            if rows.empty:
                continue
            points = list(
                zip(rows["recall"].astype(float), rows["precision_50"].astype(float), strict=True)
            )
            lines.append(Line(MODEL_TITLES[model], points, STYLES[model]))
            notes.append(
                f"{MODEL_TITLES[model]}: recall"
                f" {max((recall for recall, precision in points if precision > 0), default=0):.2f}"
                " is reached"
            )
        charts.append(
            line_chart(
                f"pr-{len(charts)}",
                str(name),
                "; ".join(notes) + ".",
                lines,
                "recall",
                "precision",
                x_range=(0, 1),
                y_range=(0, 1),
            )
        )
    return charts


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix for the template: heads, and rows of (name, [(text, share, on the
    diagonal)]).
    """

    heads: list[str]
    rows: list[tuple[str, list[tuple[str, str, bool]]]]
    left_out: int


def confusion(run: Run, figures: Sequence[ClassFigures]) -> Confusion | None:
    """The fine-tuned detector's confusion on the test set; a large one is cut to the classes with
    most counts, background stays.
    """
    frame = run.frame(CONFUSION)
    if frame is None:
        return None
    frame = frame[(frame["set"] == "test") & (frame["model"] == "finetuned")]
    if frame.empty:
        return None
    matrix = frame.pivot_table(
        index="actual", columns="predicted", values="count", aggfunc="sum", fill_value=0
    )
    total = matrix.sum(axis=1).add(matrix.sum(axis=0), fill_value=0)
    names = sorted(total.index, key=lambda name: (name == "background", -total[name], name))
    chosen = names if len(names) <= MOST_CLASSES else [*names[: MOST_CLASSES - 1], names[-1]]
    place = {figure.name: index for index, figure in enumerate(figures) if figure.on == "test"}
    chosen = sorted(
        chosen, key=lambda name: (name == "background", place.get(name, len(place)), name)
    )
    matrix = matrix.reindex(index=chosen, columns=chosen, fill_value=0)
    rows = []
    for name in chosen:
        whole = float(matrix.loc[name].sum()) or 1.0
        cells = [
            (f"{int(value):,}", f"{value / whole:.3f}", other == name)
            for other, value in matrix.loc[name].items()
        ]
        # nothing found where nothing is
        rows.append(
            (str(name), [*cells[:-1], ("–", "0", False)] if name == "background" else cells)
        )
    return Confusion([str(name) for name in chosen], rows, len(names) - len(chosen))


def calibration_chart(run: Run) -> Markup | None:
    """Precision among the detections of a bin of scores, against their mean score: all three models
    on the test set.
    """
    frame = run.frame(CALIBRATION)
    if frame is None:
        return None
    frame = (
        frame[(frame["set"] == "test") & (frame["class"] == "all")]
        .dropna(subset=["confidence", "precision"])
        .sort_values("confidence")
    )
    lines, notes = [Line("perfectly calibrated", [(0, 0), (1, 1)], "guide")], []
    for model in MODELS:
        rows = frame[frame["model"] == model]
        if rows.empty:
            continue
        points = list(
            zip(rows["confidence"].astype(float), rows["precision"].astype(float), strict=True)
        )
        lines.append(Line(MODEL_TITLES[model], points, STYLES[model], dots=model == "finetuned"))
        found = run.model_errors(model, "test")
        if found and found.ece is not None:
            notes.append(f"{MODEL_TITLES[model]}: {found.ece:.2f} off the diagonal on average")
    if len(lines) == 1:
        return None
    return line_chart(
        "calibration",
        "Calibration",
        "; ".join(notes) + ".",
        lines,
        "score",
        "share that is right",
        x_range=(0, 1),
        y_range=(0, 1),
        size=(480, 270),
        heading=False,
    )


KIND_WORDS = {
    "localisation": "right class, box too far off",
    "class": "right place, wrong class",
    "both": "near an object of another class",
    "duplicate": "found a second time",
    "background": "nothing is there",
    "missed": "not found at all",
}


@dataclass(frozen=True)
class Errors:
    """Error kinds of the fine-tuned detector on the test set.

    Attributes:
        chart: what each kind takes from AP.
        table: counts and costs by kind.
        summary: AP at IoU 0.5 in words.
        worst: kind -> id of the image with most of it, costliest kind first.
    """

    chart: Markup
    table: Table
    summary: str
    worst: dict[str, int]


def errors(run: Run) -> Errors | None:
    """What each kind of error takes from AP at IoU 0.5, costliest first."""
    found = run.model_errors("finetuned", "test")
    if found is None or found.ap_50 is None:
        return None
    kinds = sorted(found.kinds.items(), key=lambda item: (-(item[1].share or 0.0), item[0]))
    bars = [(kind, row.share or 0.0, f"{row.share or 0.0:.3f}") for kind, row in kinds]
    chart = bar_chart(
        "errors-chart",
        "What each kind of error takes from AP",
        "; ".join(f"{kind} {text}" for kind, _, text in bars),
        bars,
        "AP at IoU 0.5 that is lost",
    )
    rows: list[list[Any]] = [
        [
            kind,
            KIND_WORDS.get(kind, ""),
            f"{row.count:,}",
            f"{row.confident:,}",
            f"{row.cost or 0.0:.3f}",
            f"{row.share or 0.0:.3f}",
        ]
        for kind, row in kinds
    ]
    table = Table(
        "Error kinds",
        "Error kinds, counted at any score (all detections, however unsure) and at the score where"
        " the class's F1 is highest. Gain: how much AP at IoU 0.5 rises when this kind alone is"
        " fixed. Share: the kind's part of what is missing from 1; shares add up to it.",
        ("Kind", "What it is", "At any score", "At the best score", "Gain", "Share"),
        rows,
        (2, 3, 4, 5),
    )
    summary = (
        f"AP at IoU 0.5 is {found.ap_50:.3f}. The kinds of error share among them the"
        f" {1 - found.ap_50:.3f} that is missing from 1."
    )
    return Errors(
        chart, table, summary, {kind: row.worst[0].image_id for kind, row in kinds if row.worst}
    )
