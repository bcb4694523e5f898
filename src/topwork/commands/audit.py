"""`topwork audit list | verify`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from topwork.errors import AuditError

if TYPE_CHECKING:
    from topwork.audit.check import Check

HEADLINES = ("retention.", "ap.", "map")
"""Metrics shown first: what `MetricsRecord` has."""
UNDECIDED = 3
"""Exit code where nothing is broken, and not all could be checked."""
MARKS = {"holds": "holds", "broken": "BROKEN", "stale": "stale", "unchecked": "unchecked"}


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
    verifying = actions.add_parser(
        "verify",
        help="check a revision's record: every hash, and what can be computed again in seconds",
        description="Exit code: 0 all holds, 1 something is broken, 3 something is stale or can't"
        " be checked.",
    )
    verifying.add_argument(
        "rev",
        nargs="?",
        default="HEAD",
        help="commit, tag, branch or DVC experiment (default HEAD)",
    )
    verifying.add_argument("--all", action="store_true", help="show what holds as well")
    verifying.add_argument(
        "--hashes-only", action="store_true", help="compute nothing again but hashes"
    )
    verifying.add_argument(
        "--allow-unchecked",
        action="store_true",
        help="exit code 0 also where something is stale or can't be checked",
    )
    verifying.add_argument("--format", choices=["table", "json"], default="table")


def run(arguments: argparse.Namespace) -> int:
    """Run the action; see there for exit codes."""
    return _list(arguments) if arguments.action == "list" else _verify(arguments)


def _list(arguments: argparse.Namespace) -> int:
    from topwork.audit.history import experiments
    from topwork.audit.repository import project_root

    table = experiments(project_root(Path()), arguments.limit)
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
    """0 where all holds, 1 where something is broken, 3 where something is stale or unchecked."""
    from topwork.audit.repository import project_root
    from topwork.audit.revision import open_revision
    from topwork.audit.verification import notes, verify

    revision = open_revision(project_root(Path()), arguments.rev)
    checks = verify(revision, recompute=not arguments.hashes_only)
    for note in notes(revision):
        print(f"note: {note}", file=sys.stderr)
    if arguments.format == "json":
        import json

        print(json.dumps([vars(check) for check in checks], indent=2))
    else:
        _print(checks, arguments.rev, revision.commit, arguments.all)
    statuses = {check.status for check in checks}
    if "broken" in statuses:
        return 1
    undecided = bool(statuses & {"stale", "unchecked"}) and not arguments.allow_unchecked
    return UNDECIDED if undecided else 0


def _print(checks: "list[Check]", rev: str, commit: str, everything: bool) -> None:
    for check in checks:
        if everything or check.status != "holds":
            print(
                f"{MARKS[check.status]:9}  {check.stage}:"
                f" {check.what}{': ' if check.message else ''}{check.message}"
            )
    counts = {status: sum(check.status == status for check in checks) for status in MARKS}
    verdict = (
        "broken"
        if counts["broken"]
        else "what could be checked holds"
        if counts["stale"] or counts["unchecked"]
        else "all of it holds"
    )
    print(
        f"{rev} ({commit[:10]}): {verdict}: {counts['holds']} statements hold, {counts['broken']}"
        f" are broken, {counts['stale']} are stale, {counts['unchecked']} can't be checked"
    )
