"""`topwork audit list | verify`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from topwork.errors import AuditError

if TYPE_CHECKING:
    from topwork.audit.verification import Check

HEADLINES = ("retention.", "ap.", "map")
"""Metrics shown first: what `MetricsRecord` has."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    parser.epilog = (
        "Example: topwork audit list --columns retention finetune.lr\n         topwork audit verify"
        " HEAD~3"
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser(
        "list", help="past experiments with params and metrics, newest first"
    )
    listing.add_argument("--limit", type=int, default=None, help="at most so many commits")
    listing.add_argument(
        "--columns",
        nargs="*",
        default=None,
        help="show the metrics and params whose name holds one of these words",
    )
    listing.add_argument("--format", choices=["table", "csv", "json"], default="table")
    verifying = actions.add_parser("verify", help="compute every hash of a revision's record again")
    verifying.add_argument(
        "rev",
        nargs="?",
        default="HEAD",
        help="commit, tag, branch or DVC experiment (default HEAD)",
    )
    verifying.add_argument("--all", action="store_true", help="show what holds as well")
    verifying.add_argument("--format", choices=["table", "json"], default="table")


def run(arguments: argparse.Namespace) -> int:
    """Run `list` or `verify`; `verify` gives 1 where something is broken."""
    return _list(arguments) if arguments.action == "list" else _verify(arguments)


def _list(arguments: argparse.Namespace) -> int:
    from topwork.audit.history import experiments

    table = experiments(Path(), arguments.limit)
    if table.empty:
        raise AuditError(
            "no experiment found: no commit holds a dvc.lock. Run `dvc repro`, then commit"
            " dvc.lock."
        )
    if arguments.format != "table":
        text = (
            table.to_csv(index=False)
            if arguments.format == "csv"
            else table.to_json(orient="records", indent=2)
        )
        print(text)
        return 0
    from rich.console import Console
    from rich.table import Table

    varying = [column for column in table.columns[5:] if table[column].astype(str).nunique() > 1]
    words = arguments.columns
    chosen = (
        [column for column in table.columns[5:] if any(word in column for word in words)]
        if words
        else [column for column in table.columns[5:] if column.startswith(HEADLINES)][:4]
        + [column for column in varying if column.startswith("params.")][:4]
    )
    view = Table(
        "rev", "name", "date", "subject", *(column.removeprefix("params.") for column in chosen)
    )
    for _, row in table.iterrows():
        values = [
            "" if row[column] is None or row[column] != row[column] else _short(row[column])
            for column in chosen
        ]
        view.add_row(row["rev"], row["name"], row["date"][:16], row["subject"][:40], *values)
    Console().print(view)
    return 0


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _verify(arguments: argparse.Namespace) -> int:
    from topwork.audit.revision import open_revision
    from topwork.audit.verification import verify

    revision = open_revision(Path(), arguments.rev)
    checks = verify(revision)
    if arguments.format == "json":
        import json

        print(json.dumps([vars(check) for check in checks], indent=2))
    else:
        _print(checks, arguments.rev, revision.commit, arguments.all)
    return int(any(check.status == "broken" for check in checks))


def _print(checks: "list[Check]", rev: str, commit: str, everything: bool) -> None:
    marks = {"holds": "holds    ", "broken": "BROKEN   ", "unchecked": "unchecked"}
    for check in checks:
        if everything or check.status != "holds":
            print(
                f"{marks[check.status]}  {check.stage}:"
                f" {check.what}{': ' if check.message else ''}{check.message}"
            )
    counts = {status: sum(check.status == status for check in checks) for status in marks}
    verdict = (
        "broken"
        if counts["broken"]
        else "what could be checked holds"
        if counts["unchecked"]
        else "all of it holds"
    )
    print(
        f"{rev} ({commit[:10]}): {verdict}: {counts['holds']} statements hold, "
        f"{counts['broken']} are broken, {counts['unchecked']} can't be checked"
    )
