"""`topwork inspect WEIGHTS`: tensors, class axes, rows by class name."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to look at."""
    parser.epilog = (
        "Example: topwork inspect out/fetch/pretrained.safetensors --heads\n         topwork"
        " inspect WEIGHTS --classes person truck"
    )
    parser.add_argument("weights", type=Path, help="weights that topwork wrote (.safetensors)")
    parser.add_argument(
        "--heads", action="store_true", help="only tensors that depend on the classes"
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
        if arguments.classes:
            classes = classes[
                classes["class"].isin(_known(arguments.classes, list(classes["class"])))
            ]
        classes["nearest"] = [
            ", ".join(f"{name} {cosine:.2f}" for name, cosine in near)
            for near in classes["nearest"]
        ]
        show(classes, arguments.format)
        return 0
    table = inspect(weights, builder=arguments.builder)
    summary = table.attrs
    table["shape"] = ["x".join(map(str, shape)) for shape in table["shape"]]
    if arguments.format == "table":
        print(
            f"{arguments.weights}: {summary['builder']}, {summary['activation']} head, {len(table)}"
            f" tensors, {table['bytes'].sum() / 1e6:.1f} MB"
        )
        print(f"classes ({len(summary['columns']) - 1}): {', '.join(summary['columns'][1:])}")
        if summary["absorbed"]:
            print(
                f"absorbed into background ({len(summary['absorbed'])}):"
                f" {', '.join(summary['absorbed'])}"
            )
    show(table[table["role"] != ""] if arguments.heads else table, arguments.format)
    return 0


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


def show(table: "pd.DataFrame", style: str) -> None:
    """Print a table: aligned for reading, or as CSV or JSON for another program."""
    if style == "csv":
        print(table.to_csv(index=False), end="")
    elif style == "json":
        print(table.to_json(orient="records", indent=2))
    elif table.empty:
        print("nothing to show")
    else:
        import pandas as pd

        with pd.option_context(
            "display.max_rows",
            None,
            "display.max_colwidth",
            None,
            "display.width",
            None,
            "display.float_format",
            "{:.4g}".format,
        ):
            print(table.to_string(index=False, na_rep=""))
