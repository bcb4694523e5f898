"""`topwork summary`: the last run's table, its contracts and where its report lies."""

import argparse
from pathlib import Path

REPORT = Path("out/report/report.html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = "Example: topwork summary"


def run(arguments: argparse.Namespace) -> int:
    """Print what was kept and learned; exit code 1 where a contract is breached."""
    from rich.console import Console

    from topwork.evaluation.tell import print_classes
    from topwork.files import read_json

    classes = read_json(Path("out/evaluate/classes.json"))
    verdict = read_json(Path("out/evaluate/verdict.json"))
    print_classes(Console(), classes, [])
    for contract in verdict["contracts"]:
        print(f"contract {'holds' if contract['holds'] else 'BREACHED'}: {contract['sentence']}")
    if REPORT.exists():
        print(f"report: {REPORT}")
    return 0 if verdict["holds"] else 1
