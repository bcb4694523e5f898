"""The figures on the terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from topwork.project.evaluate import ClassesRecord, VerdictRecord
from topwork.project.names import MODEL_TITLES, MODELS

WIDE = 120
"""Columns of a terminal from which intervals are shown."""


def print_classes(console: Console, classes: ClassesRecord, verdict: VerdictRecord) -> None:
    """Print class, AP pretrained, grafted, fine-tuned, and retention, with intervals where there's
    room; then each contract's sentence.

    Nothing is cut: in a narrow terminal long names fold.
    """
    wide = console.width >= WIDE
    table = Table(
        title="Average precision (IoU 0.50 to 0.95)",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for heading in ("set", "class", "rows"):
        table.add_column(heading, overflow="fold")
    for heading in ("objects", *MODEL_TITLES.values(), "retention"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in classes.classes:
        figures = [row.models[model] for model in MODELS]
        table.add_row(
            row.split,
            escape(row.name),
            row.origin,
            str(row.objects),
            *(_figure(found.ap, found.interval if wide else None) for found in figures),
            _figure(row.retention, row.interval_retention if wide else None),
        )
    console.print(table)
    for row in classes.classes:
        if not row.objects:
            console.print(f"note: {row.note}", highlight=False, markup=False)
    for line in verdict.lines():
        console.print(line, highlight=False, markup=False)


def _figure(value: float | None, between: Sequence[float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if between is None else f"{value:.3f} ({between[0]:.3f}-{between[1]:.3f})"
