"""`topwork diff BEFORE AFTER`: what moved, tensor by tensor and class row by class row."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the two files."""
    parser.epilog = (
        "Example: topwork diff out/surgery/grafted.safetensors out/finetune/weights.safetensors"
        " --heads"
    )
    parser.add_argument("before", type=Path, help="weights before")
    parser.add_argument("after", type=Path, help="weights after")
    parser.add_argument(
        "--builder",
        help="in place of the builder that the weights name, and to say that you trust it",
    )
    parser.add_argument("--heads", action="store_true", help="only rows of classes")
    parser.add_argument("--moved", action="store_true", help="only what isn't the same")
    parser.add_argument("--format", choices=["table", "csv", "json"], default="table")


def run(arguments: argparse.Namespace) -> int:
    """Print the table and a summary."""
    from topwork.commands.inspect import show
    from topwork.commands.reading import read
    from topwork.surgery.inspection import diff

    before, after = (read(path, arguments.builder) for path in (arguments.before, arguments.after))
    table = diff(before, after, builder=arguments.builder)
    if arguments.format == "table":
        counts = table["status"].str.replace(r"^reshaped.*", "reshaped", regex=True).value_counts()
        print(", ".join(f"{count} {status}" for status, count in counts.items()))
    if arguments.heads:
        table = table[table["class"] != ""]
    if arguments.moved:
        table = table[table["status"] != "same"]
    show(table, arguments.format)
    return 0
