"""`topwork compare A B [C...]`: revisions or DVC experiments side by side."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from topwork.compare.comparison import Comparison
    from topwork.report.run import Run

WORKSPACE = "workspace"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "revisions",
        nargs="+",
        metavar="REV",
        help=f"commits, tags, branches, DVC experiments, or `{WORKSPACE}`; the first is the base",
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="also write the comparison as one self-contained page",
    )
    parser.add_argument(
        "--pictures", type=int, default=4, help="same-image pictures on the page (default: 4)"
    )
    parser.epilog = "Example: topwork compare HEAD~1 HEAD workspace --html comparison.html"


def run(args: argparse.Namespace) -> int:
    """Print the comparison, and write the page."""
    from rich.console import Console

    from topwork.compare.comparison import compare_runs
    from topwork.compare.page import render_comparison
    from topwork.errors import TopworkError
    from topwork.files import write_text

    if args.pictures < 0:
        raise TopworkError(f"compare: --pictures {args.pictures}, expected 0 or more.")
    opened = [open_run(rev) for rev in args.revisions]
    comparison = compare_runs([run for run, _ in opened], [document for _, document in opened])
    print_comparison(comparison, Console())
    if args.html:
        write_text(args.html, render_comparison(comparison, args.pictures))
        print(f"page: {args.html}")
    return 0


def open_run(rev: str) -> "tuple[Run, dict[str, Any]]":
    """A revision as a run, and its params.yaml."""
    from topwork.audit.repository import project_root
    from topwork.audit.revision import RevisionFiles, open_revision
    from topwork.errors import ParamsError
    from topwork.params.document import load_params, parse_params
    from topwork.params.section import read_document
    from topwork.report.run import Run, WorkingFiles

    if rev == WORKSPACE:
        return Run(WorkingFiles(Path()), load_params(), rev), read_document()
    revision = open_revision(project_root(Path()), rev)
    document = revision.params_document()
    try:
        params = parse_params(document, Path(f"params.yaml at {rev}"))
    except ParamsError as error:
        print(f"note: {error} Differences get no paired intervals.")
        return Run(RevisionFiles(revision), None, rev), document
    return Run(RevisionFiles(revision), params, rev), document


def print_comparison(comparison: "Comparison", console: "Console") -> None:
    """Print the comparison."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from topwork.compare.page import (
        class_table,
        data_table,
        metric_table,
        param_table,
        sentence,
        weight_table,
    )
    from topwork.report.sections import Table as Plain

    def show(item: Plain | None) -> None:
        if item is None:
            return
        table = Table(
            title=escape(item.caption),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        for place, head in enumerate(item.heads):
            table.add_column(
                escape(head), justify="right" if place in item.numeric else "left", overflow="fold"
            )
        for row in item.rows:
            table.add_row(*(escape(_plain(cell)) for cell in row))
        console.print(table)

    console.print(sentence(comparison), markup=False, highlight=False)
    for on in dict.fromkeys(row.on for row in comparison.metrics):
        show(metric_table(comparison, on))
    show(param_table(comparison))
    for name, changes, moved in zip(
        comparison.names[1:], comparison.data, comparison.weights, strict=True
    ):
        console.print(
            f"{name} against {comparison.names[0]}: data {'changed' if changes else 'the same'}",
            markup=False,
            highlight=False,
        )
        show(data_table(name, changes))
        show(class_table(name, changes))
        if isinstance(moved, str):
            console.print(f"weights: {moved}", markup=False, highlight=False)
        else:
            show(weight_table(name, moved))


def _plain(cell: Any) -> str:
    """A cell without its markup."""
    from markupsafe import Markup

    return (
        Markup(str(cell).replace('<span class="range">', " ")).striptags()
        if isinstance(cell, Markup)
        else str(cell)
    )
