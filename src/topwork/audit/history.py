"""`topwork audit list`: past experiments, over commits and DVC experiments, with their params and
metrics.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from topwork.audit.revision import git
from topwork.errors import AuditError

if TYPE_CHECKING:
    import pandas as pd


def experiments(root: Path, limit: int | None = None) -> "pd.DataFrame":
    """Every commit that changed the record, and every DVC experiment, newest first, as DVC itself
    reads them.

    Returns:
        One row an experiment: rev, name, kind (`commit` or `experiment`), date, subject, then one
        column for each metric and param (`params.finetune.lr`); a value that a revision lacks is
        NA.

    Raises:
        AuditError: the folder isn't a git and DVC project.
    """
    import pandas as pd
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    commits = (
        git(
            root,
            "log",
            "HEAD",
            "--branches",
            "--tags",
            "--remotes",
            "--format=%H",
            "--",
            "dvc.lock",
        )
        .decode()
        .split()[:limit]
    )
    # a commit that only runs of it have a record of
    commits += [commit for commit in _baselines(root) if commit not in commits]
    rows: list[dict[str, Any]] = []
    try:
        with Repo(str(root)) as repo:
            for state in repo.experiments.show(revs=commits or None) if commits else []:
                if state.rev == "workspace":
                    continue
                rows.append(_row(root, state, "commit"))
                for group in state.experiments or []:
                    rows += [_row(root, revision, "experiment") for revision in group.revs]
    except DvcException as error:
        raise AuditError(f"{root.resolve()}: DVC can't read the experiments: {error}") from error
    if not rows:
        return pd.DataFrame(columns=["rev", "name", "kind", "date", "subject"])
    table = pd.DataFrame(rows).drop_duplicates("rev")
    return table.sort_values("date", ascending=False, kind="stable").reset_index(drop=True)


def _baselines(root: Path) -> list[str]:
    """Commits that DVC experiments start from: `refs/exps/ab/cdef.../NAME`."""
    refs = git(root, "for-each-ref", "--format=%(refname)", "refs/exps").decode().split()
    places = [ref.split("/") for ref in refs]
    return list(dict.fromkeys(p[2] + p[3] for p in places if len(p) == 5 and len(p[2]) == 2))


def _row(root: Path, state: Any, kind: str) -> dict[str, Any]:
    date, _, subject = (
        git(root, "show", "--no-patch", "--format=%cI%n%s", state.rev)
        .decode()
        .strip()
        .partition("\n")
    )
    row = {
        "rev": state.rev[:10],
        "name": state.name or "",
        "kind": kind,
        "date": date,
        "subject": subject,
    }
    data = state.data
    if data is None:
        return row
    for sources, start in ((data.metrics, ""), (data.params, "params.")):
        for content in (sources or {}).values():
            values = content.data if hasattr(content, "data") else content.get("data", {})
            row |= {f"{start}{key}": value for key, value in _flat(values or {})}
    return row


def _flat(values: dict[str, Any], start: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        flat += (
            _flat(value, f"{start}{key}.")
            if isinstance(value, dict)
            else [(f"{start}{key}", value)]
        )
    return flat
