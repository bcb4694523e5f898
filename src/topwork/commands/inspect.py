"""`topwork inspect WEIGHTS`: tensors, class axes, rows by class name."""

import argparse
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from topwork.surgery.table import Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to look at."""
    parser.epilog = (
        "Example: topwork inspect out/fetch/pretrained.safetensors\n         topwork inspect"
        " WEIGHTS --classes person truck"
    )
    parser.add_argument("weights", type=Path, help="weights that topwork wrote (.safetensors)")
    parser.add_argument(
        "--all",
        action="store_true",
        help="every tensor, not just those that depend on the classes",
    )
    parser.add_argument(
        "--classes",
        nargs="*",
        default=None,
        metavar="NAME",
        help="rows by class: norms and nearest classes (all classes, or these)",
    )
    parser.add_argument(
        "--builder",
        help="in place of the builder that the weights name, and to say that you trust it",
    )
    parser.add_argument("--format", choices=["table", "csv", "json"], default="table")


def run(arguments: argparse.Namespace) -> int:
    """Print the tables."""
    from topwork.commands.reading import read
    from topwork.surgery.inspection import inspect, inspect_classes

    weights = read(arguments.weights, arguments.builder)
    if arguments.classes is not None:
        classes = inspect_classes(weights, builder=arguments.builder)
        names = _known(arguments.classes, [row["class"] for row in classes])
        show(
            classes.only([row for row in classes if not names or row["class"] in names]),
            arguments.format,
        )
        return 0
    table = inspect(weights, builder=arguments.builder)
    summary = table.attrs
    if arguments.format == "table":
        megabytes = sum(row["bytes"] for row in table) / 1e6
        names, absorbed = summary["columns"][1:], summary["absorbed"]
        print(
            f"{arguments.weights}: {summary['builder']}, {summary['activation']} head, {len(table)}"
            f" tensors, {megabytes:.1f} MB"
        )
        print(_filled(f"classes ({len(names)}): {', '.join(names)}"))
        if absorbed:
            print(_filled(f"absorbed into background ({len(absorbed)}): {', '.join(absorbed)}"))
    heads = [row for row in table if row["role"]]
    show(table if arguments.all else table.only(heads), arguments.format)
    if arguments.format == "table" and not arguments.all:
        print(f"{len(table) - len(heads)} tensors don't depend on the classes; --all shows them")
    return 0


def _filled(text: str) -> str:
    """A long line, folded to the screen."""
    wide = shutil.get_terminal_size((80, 24)).columns
    return textwrap.fill(text, wide, subsequent_indent="  ", break_long_words=False)


def _known(names: list[str], known: list[str]) -> list[str]:
    import difflib

    from topwork.errors import ClassPlanError

    faults = []
    for name in names:
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name, known, n=3))
            faults.append(
                f"{name!r} isn't among the weights' {len(known)}"
                f" columns{f' (near: {near})' if near else ''}"
            )
    if faults:
        raise ClassPlanError(
            f"inspect: {'; '.join(faults)}. `topwork inspect WEIGHTS --classes` lists them."
        )
    return names


def show(table: "Table", style: str) -> None:
    """Print a table: aligned for reading, or as CSV or JSON for another program."""
    if style == "csv":
        print(table.csv(), end="")
    else:
        print(table.json() if style == "json" else table.text())
