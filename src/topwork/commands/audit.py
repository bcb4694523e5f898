"""`topwork audit list | show | verify | recompute | explain | bundle | check`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from topwork.errors import AuditError

if TYPE_CHECKING:
    import pandas as pd

    from topwork.audit.check import Check

HEADLINES = ("retention.", "ap.", "map")
"""Metrics shown first: what `MetricsRecord` has."""
LENGTH = 32
"""Of a subject in the table."""
UNDECIDED = 3
"""Exit code where nothing is broken, and not all could be checked."""
ELSEWHERE = ("environment", "hardware", "nondeterminism")
"""Causes with which a run may differ and still be what it says."""
MARKS = {"holds": "holds", "broken": "BROKEN", "stale": "stale", "unchecked": "unchecked"}


def _count(text: str) -> int:
    if int(text) < 0:
        raise ValueError
    return int(text)


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
    listing.add_argument("--limit", type=_count, default=None, help="at most so many commits")
    listing.add_argument(
        "--columns",
        nargs="*",
        default=None,
        help="show the metrics and params whose name holds one of these words",
    )
    listing.add_argument("--format", choices=["table", "csv", "json"], default="table")
    showing = actions.add_parser(
        "show", help="what a revision's run was made of, from data and weights to metrics"
    )
    showing.add_argument("rev", nargs="?", default="HEAD", help="as for verify")
    showing.add_argument("--html", type=Path, metavar="FILE", help="write it as one page as well")
    showing.add_argument("--hashes-only", action="store_true", help="as for verify")
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
    again = actions.add_parser(
        "recompute",
        help="run a revision again by its own code, and hold what it writes against its record",
        description="Runs in a worktree below .topwork/recompute; started again, it goes on where"
        " it was. Exit code: 0 the same bits, 1 a mismatch, 3 metrics within tolerance.",
    )
    again.add_argument("rev", nargs="?", default="HEAD", help="as for verify")
    again.add_argument(
        "--from",
        dest="start",
        choices=["predictions", "weights", "training", "data"],
        default="data",
        help="what to start from (default data: everything runs)",
    )
    again.add_argument("--stage", default=None, help="this stage alone, from its recorded inputs")
    again.add_argument(
        "--environment",
        choices=["same", "differs"],
        default="same",
        help="`differs`: go on where other versions are installed than the revision pins",
    )
    again.add_argument("--keep", action="store_true", help="leave the worktree for a look")
    again.add_argument("--format", choices=["table", "json"], default="table")
    explaining = actions.add_parser(
        "explain",
        help="how much of the difference between two runs code, data, weights and params explain",
    )
    explaining.add_argument("first", metavar="A", help="as for verify")
    explaining.add_argument("second", metavar="B", help="as for verify")
    explaining.add_argument("--format", choices=["table", "json"], default="table")
    bundling = actions.add_parser(
        "bundle", help="the evidence of a run as one zip: record, metrics, predictions, report"
    )
    bundling.add_argument("rev", nargs="?", default="HEAD", help="as for verify")
    bundling.add_argument(
        "--output", type=Path, metavar="FILE", help="default: evidence-REVISION.zip"
    )
    bundling.add_argument(
        "--sign", type=Path, metavar="KEY", help="sign it with this private key (PEM)"
    )
    checking = actions.add_parser(
        "check",
        help="verify a bundle without its repository",
        description="Executes and writes nothing. Exit codes as for verify.",
    )
    checking.add_argument("bundle", type=Path)
    checking.add_argument(
        "--key", type=Path, metavar="KEY", help="hold its signature against this public key (PEM)"
    )
    checking.add_argument("--all", action="store_true", help="show what holds as well")


def run(arguments: argparse.Namespace) -> int:
    """Run the action; see there for exit codes."""
    actions = {
        "list": _list,
        "show": _show,
        "verify": _verify,
        "recompute": _recompute,
        "explain": _explain,
        "bundle": _bundle,
        "check": _check,
    }
    return actions[arguments.action](arguments)


def _list(arguments: argparse.Namespace) -> int:
    from topwork.audit.history import FACTS, chosen_columns, experiments
    from topwork.audit.repository import project_root

    table = experiments(project_root(Path()), arguments.limit)
    if table.empty:
        raise AuditError(
            "no experiment found: no commit holds a dvc.lock. Run `dvc repro`, then commit"
            " dvc.lock."
        )
    words = arguments.columns
    columns = list(table.columns)
    chosen = chosen_columns(columns, words) if words else None
    if arguments.format != "table":
        view = table[[*FACTS, *chosen]] if chosen is not None else table
        text = (
            view.to_csv(index=False)
            if arguments.format == "csv"
            else view.to_json(orient="records", indent=2)
        )
        print(text)
        return 0
    _print_list(table, chosen if chosen is not None else _headlines(columns), words is None)
    return 0


def _headlines(columns: list[str]) -> list[str]:
    """The first retention and the mean AP, where there are such."""
    retentions = [name for name in columns if name.startswith("retention.")][:1]
    return [*retentions, *(name for name in ("map",) if name in columns)]


def _print_list(table: "pd.DataFrame", chosen: list[str], differs: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    view = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    view.add_column("rev", no_wrap=True, min_width=10)
    view.add_column("date", no_wrap=True, min_width=10)
    view.add_column("name", overflow="fold", max_width=16)
    for name in chosen:
        head = {"map": "mAP"}.get(name, name.removeprefix("params."))
        if name.startswith("retention."):
            head = name.replace("retention.", "kept ")
        view.add_column(head, justify="right", overflow="fold")
    if differs:
        view.add_column("differs from the one before", overflow="fold")
    for _, row in table.iterrows():
        values = [
            "" if row[column] is None or row[column] != row[column] else _short(row[column])
            for column in chosen
        ]
        about = row["name"] or _shortened(row["subject"])
        texts = [row["rev"], row["date"][:10], about, *values]
        texts += [row["differs"].replace(", ", "\n")] if differs else []
        view.add_row(*map(Text, texts), style="red" if row["kind"] == "failed" else None)
    Console().print(view)


def _shortened(subject: str) -> str:
    """A subject's first words, or the beginning of a long one."""
    if len(subject) <= LENGTH:
        return subject
    return f"{subject[: LENGTH - 1].rsplit(' ', 1)[0]}…"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _show(arguments: argparse.Namespace) -> int:
    from topwork.audit.lineage import lineage_of, lineage_page, lineage_text
    from topwork.audit.repository import project_root
    from topwork.audit.revision import open_revision
    from topwork.audit.verification import verify
    from topwork.files import write_text

    revision = open_revision(project_root(Path()), arguments.rev)
    checks = verify(revision, recompute=not arguments.hashes_only)
    lineage = lineage_of(revision, checks)
    print(lineage_text(lineage))
    if arguments.html:
        write_text(arguments.html, lineage_page(lineage))
        print(f"page: {arguments.html}")
    return 0


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
    return _exit_code(checks, arguments.allow_unchecked)


def _exit_code(checks: "list[Check]", allow_unchecked: bool) -> int:
    statuses = {check.status for check in checks}
    if "broken" in statuses:
        return 1
    return UNDECIDED if statuses & {"stale", "unchecked"} and not allow_unchecked else 0


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


def _recompute(arguments: argparse.Namespace) -> int:
    """0 where every out has the recorded bits, 1 where one hasn't, 3 where metrics are within
    tolerance and what differs is of another machine or environment.
    """
    from dataclasses import asdict

    from topwork.audit.recompute import recompute
    from topwork.audit.repository import project_root
    from topwork.audit.revision import open_revision

    revision = open_revision(project_root(Path()), arguments.rev)
    results = recompute(
        revision,
        start=arguments.start,
        stage=arguments.stage,
        environment=arguments.environment,
        keep=arguments.keep,
        notify=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if arguments.format == "json":
        import json

        print(json.dumps([asdict(result) for result in results], indent=2))
    outs = [out for result in results for out in result.outs]
    differing = [result for result in results if not result.matches]
    where = f"{arguments.rev} ({revision.commit[:10]})"
    if not differing:
        print(f"{where}: MATCH: {len(outs)} outs of {len(results)} stages have the recorded bits")
        return 0
    within = any(out.outcome == "WITHIN TOLERANCE" for out in outs)
    first = next(result for result in differing if result.cause is not None)
    count = sum(out.outcome != "MATCH" for out in outs)
    print(
        f"{where}: {'WITHIN TOLERANCE' if within else 'MISMATCH'}: {count} of {len(outs)} outs"
        f" differ, first in {first.stage}. Cause: {first.cause}: {first.reason}"
    )
    return UNDECIDED if within and first.cause in ELSEWHERE else 1


def _explain(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from topwork.audit.explain import explain, in_words
    from topwork.audit.repository import project_root
    from topwork.audit.revision import open_revision

    root = project_root(Path())
    first, second = open_revision(root, arguments.first), open_revision(root, arguments.second)
    found = explain(
        first,
        second,
        notify=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if arguments.format == "json":
        import json

        print(json.dumps([asdict(explanation) for explanation in found], indent=2))
        return 0
    for cause in found[0].shares if found else ():
        print(f"{cause}: {in_words(first, second, cause)}")
    for item in found:
        difference = f"{item.after - item.before:+.4f}"
        print(f"{item.metric}: {item.before:.4f} -> {item.after:.4f} ({difference})")
        for cause, share in item.shares.items():
            print(f"  {share:+.4f}  {cause}")
    return 0


def _bundle(arguments: argparse.Namespace) -> int:
    from topwork.audit.bundle import write_bundle
    from topwork.audit.repository import project_root
    from topwork.audit.revision import open_revision
    from topwork.audit.verification import verify

    revision = open_revision(project_root(Path()), arguments.rev)
    checks = verify(revision)
    target = arguments.output or Path(f"evidence-{revision.commit[:10]}.zip")
    sha256 = write_bundle(revision, checks, target)
    faults = sum(check.status != "holds" for check in checks)
    print(f"{target}: {arguments.rev} ({revision.commit[:10]}), {faults} statements don't hold")
    print(f"SHA-256 of its manifest: {sha256}")
    if arguments.sign:
        from topwork.audit.signing import sign

        print(f"signature: {sign(target, arguments.sign)}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from topwork.audit.bundle import check_bundle, manifest_sha256

    checks = check_bundle(arguments.bundle)
    if arguments.key:
        from topwork.audit.signing import check_signature

        checks.append(check_signature(arguments.bundle, arguments.key))
    _print(checks, str(arguments.bundle), "bundle", arguments.all)
    print(f"SHA-256 of its manifest: {manifest_sha256(arguments.bundle)}")
    return _exit_code(checks, allow_unchecked=False)
