"""The scheduled run: a fixed revision, in a git worktree of its own that shares the project's DVC
cache.

The worktree keeps a run apart from whoever edits the project meanwhile. What it made stays in the
shared cache, and its dvc.lock and metrics are committed to the branch `nightly/DATE-REVISION`, so
that `topwork audit list` shows the run.
"""

import subprocess
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from flows.pipeline import pipeline


@flow(name="nightly", persist_result=False)
def nightly(root: Path = Path(), revision: str = "HEAD") -> str:
    """Run the pipeline of `revision` in a worktree; returns the branch that holds the result.

    Raises:
        StageError: a stage failed; the worktree stays for a look, its path is in the log.
    """
    root = root.resolve()
    commit = _git(root, "rev-parse", "--short", revision)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    branch = f"nightly/{stamp}-{commit}"
    tree = root / ".topwork" / "worktrees" / f"{stamp}-{flow_run.id or 'local'}"
    get_run_logger().info("revision %s in %s", commit, tree)
    tree.parent.mkdir(parents=True, exist_ok=True)
    _git(root, "worktree", "add", "--quiet", "-b", branch, str(tree), commit)
    share_cache(root, tree)
    pipeline.with_options(name="nightly-pipeline")(tree)
    _git(tree, "add", "--all")
    if _git(tree, "status", "--porcelain"):
        _git(tree, "commit", "--quiet", "--message", f"Nightly run of {commit}")
    _git(root, "worktree", "remove", "--force", str(tree))
    return branch


def share_cache(root: Path, tree: Path) -> None:
    """Let the worktree use the project's DVC cache (a local setting, never committed)."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        cache = repo.cache.local.path
    local = tree / ".dvc" / "config.local"
    local.write_text(
        f"[cache]\n    dir = {Path(cache).parent.parent if Path(cache).name == 'md5' else cache}\n",
        encoding="utf-8",
    )


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"git {' '.join(arguments)} in {folder}: {done.stderr.strip()}")
    return done.stdout.strip()
