"""What dead runs left: kept on record, then removed, after a time that one sets."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from flows.isolation import Isolated, RunError, close_worktree, remove

ABOUT = "run.json"


def note(run: Isolated) -> None:
    """Leave in the worktree what it is about, for the sweep."""
    values = asdict(run) | {"root": None}
    (run.tree / ".topwork" / ABOUT).write_text(json.dumps(values), encoding="utf-8")


def sweep(root: Path, keep_days: float) -> list[str]:
    """Remove worktrees and checkpoints that no run has touched for so many days.

    Only the run whose turn it is may call it. What a killed run had finished is first kept as a DVC
    experiment, which says that it was killed.

    Returns:
        One sentence each.
    """
    oldest = time.time() - keep_days * 86_400
    removed = []
    worktrees = root / ".topwork" / "worktrees"
    for worktree in sorted(worktrees.iterdir()) if worktrees.is_dir() else ():
        if _touched(worktree) > oldest:
            continue
        removed.append(f"{worktree.name}: removed{_record(root, worktree)}")
        close_worktree(root, worktree)
    scratch = root / ".topwork" / "scratch"
    for entry in sorted(scratch.iterdir()) if scratch.is_dir() else ():
        if _touched(entry) <= oldest:
            remove(entry)
            removed.append(f"checkpoints {entry.name}: removed")
    return removed


def _record(root: Path, worktree: Path) -> str:
    for about in worktree.glob(f"**/.topwork/{ABOUT}"):
        try:
            run = Isolated(**(json.loads(about.read_text(encoding="utf-8")) | {"root": root}))
            name = run.record("killed, and never gone on with", "experiment", run.label)
        except (RunError, ValueError, TypeError, OSError) as error:
            return f", without a record ({error})"
        return f", kept as {name}" if name else ""
    return ""


def _touched(path: Path) -> float:
    """The newest time of anything in a folder."""
    newest = path.lstat().st_mtime
    for folder, _, files in os.walk(path):
        for name in files:
            newest = max(newest, (Path(folder) / name).lstat().st_mtime)
    return newest
