"""`topwork champion [promote REV | demote]`: the detector in use, and those before it."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    parser.epilog = (
        "Example: topwork champion promote HEAD\n         topwork champion\n         dvc artifacts"
        " get . detector --stage champion"
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    promoting = actions.add_parser(
        "promote", help="make a revision's detector the champion, if it isn't worse"
    )
    promoting.add_argument("rev", help="commit, tag, branch or DVC experiment")
    promoting.add_argument("--despite", metavar="WHY", help="promote it anyway; the tag says why")
    demoting = actions.add_parser("demote", help="give the title back to the champion before")
    demoting.add_argument("--why", required=True, help="what its tag says")


def run(arguments: argparse.Namespace) -> int:
    """Show, promote or demote; a refused promotion gives 1."""
    from topwork.compare.champion import demote

    root = Path()
    if arguments.action == "promote":
        return _promote(root, arguments.rev, arguments.despite)
    if arguments.action == "demote":
        title = demote(root, arguments.why)
        print(f"champion: {title.version} ({title.commit[:10]}), {title.why}")
        return 0
    return _show(root)


def _promote(root: Path, rev: str, despite: str | None) -> int:
    from topwork.audit.revision import open_revision
    from topwork.commands.compare import open_run
    from topwork.compare.champion import objections, promote, titles
    from topwork.errors import TopworkError

    held = titles(root)
    candidate, _ = open_run(rev)
    champion = open_run(held[-1].commit)[0] if held else None
    against = objections(champion, candidate)
    if against and not despite:
        raise TopworkError(
            f"{rev} isn't promoted: {'; '.join(against)}. To promote it anyway: --despite WHY."
        )
    why = (
        f"despite {'; '.join(against)}: {despite}"
        if against
        else f"no worse than {held[-1].version}, contract met"
        if held
        else "the first champion, contract met"
    )
    title = promote(root, open_revision(root, rev).commit, why)
    print(f"champion: {title.version} ({title.commit[:10]}), {title.why}")
    print("`git push --tags` tells the others; `dvc push` brings them its weights.")
    return 0


def _show(root: Path) -> int:
    from topwork.compare.champion import titles

    held = titles(root)
    if not held:
        print("no champion yet: topwork champion promote REV")
        return 0
    for place, title in enumerate(reversed(held)):
        mark = "champion" if not place else "before  "
        print(
            f"{mark}  {title.version:8}  {title.commit[:10]}  {title.since:%Y-%m-%d %H:%M} "
            f" {title.why}"
        )
    return 0
