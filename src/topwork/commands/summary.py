"""`topwork summary`: the last run's table, its contracts and where its report lies."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = "Example: topwork summary"


def run(arguments: argparse.Namespace) -> int:
    """Print what was kept and learned; exit code 1 where a contract is breached."""
    from rich.console import Console

    from topwork.evaluation.console import print_classes
    from topwork.project.evaluate import CLASSES, VERDICT, ClassesRecord, VerdictRecord
    from topwork.project.finetune import FINETUNED, USE
    from topwork.project.report import REPORT

    verdict = VerdictRecord.read(VERDICT)
    print_classes(Console(), ClassesRecord.read(CLASSES), verdict)
    if REPORT.exists():
        print(f"report: {REPORT}")
    if FINETUNED.exists():
        print(USE)
    return 0 if verdict.holds else 1
