"""The figures on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from topwork.evaluation.retention import Verdict

WIDE = 120
"""Columns of a terminal from which intervals are shown."""


def print_classes(console: Console, rows: Sequence[Mapping[str, Any]], verdicts: Sequence[Verdict]) -> None:
    """Print class, AP pretrained, grafted, fine-tuned, and retention, with intervals where there's room; then each contract's sentence.

    Nothing is cut: in a narrow terminal long names fold.
    """
    wide = console.width >= WIDE
    table = Table(title="Average precision (IoU 0.50 to 0.95)", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("set", "class", "rows"):
        table.add_column(heading, overflow="fold")
    for heading in ("objects", "pretrained", "grafted", "fine-tuned", "retention"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        figures = [(row[f"ap_{model}"], row[f"interval_{model}"]) for model in ("pretrained", "grafted", "finetuned")]
        table.add_row(
            row["set"], escape(row["class"]), row["origin"], str(row["objects"]),
            *(_figure(value, between if wide else None) for value, between in figures),
            _figure(row["retention"], row["interval_retention"] if wide else None),
        )  # fmt: skip
    console.print(table)
    for row in rows:
        if not row["objects"]:
            console.print(f"note: {row['note']}", highlight=False, markup=False)
    for verdict in verdicts:
        console.print(f"contract {'holds' if verdict.holds else 'BREACHED'}: {verdict.sentence()}", highlight=False, markup=False)


def _figure(value: float | None, between: Sequence[float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if between is None else f"{value:.3f} ({between[0]:.3f}-{between[1]:.3f})"
