"""`topwork diff BEFORE AFTER`: what moved, tensor by tensor and class row by class row."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the two files."""
    parser.epilog = (
        "Example: topwork diff out/surgery/grafted.safetensors out/finetune/weights.safetensors"
    )
    parser.add_argument("before", type=Path, help="weights before")
    parser.add_argument("after", type=Path, help="weights after")
    parser.add_argument(
        "--builder",
        help="in place of the builder that the weights name, and to say that you trust it",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="every tensor, and row by row; else a line a class and one for everything else",
    )
    parser.add_argument("--moved", action="store_true", help="only what isn't the same")
    parser.add_argument("--format", choices=["table", "csv", "json"], default="table")


def run(arguments: argparse.Namespace) -> int:
    """Print the table and a summary."""
    from collections import Counter

    from topwork.commands.inspect import show
    from topwork.commands.reading import read
    from topwork.surgery.inspection import by_class, diff

    before, after = (read(path, arguments.builder) for path in (arguments.before, arguments.after))
    table = diff(before, after, builder=arguments.builder)
    if arguments.format == "table":
        counts = Counter(row["status"].partition(" [")[0] for row in table)
        print(", ".join(f"{count} {status}" for status, count in counts.most_common()))
    if arguments.all:
        moved = [row for row in table if row["status"] != "same"]
        show(table.only(moved) if arguments.moved else table, arguments.format)
        return 0
    summed = by_class(table)
    changed = [row for row in summed if row["same"] < row["tensors"]]
    show(summed.only(changed) if arguments.moved else summed, arguments.format)
    return 0
