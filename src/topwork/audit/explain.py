"""`topwork audit explain A B`: how much of the difference between two runs each cause explains.

The causes (code, data, weights, each section of params.yaml) are swapped from A's to B's, one at a
time and in every combination; a cause's share is its Shapley value: the mean of what its swap
changes, over all orders. So the shares add up to the difference, whatever the causes do together.

Each combination runs in a git worktree with the code that it has; DVC takes from its cache what was
computed before.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from math import factorial
from pathlib import Path
from typing import Any

from topwork.audit.recompute import close_tree, flat_numbers, open_tree
from topwork.audit.revision import Revision
from topwork.environment import environment_of
from topwork.errors import AuditError
from topwork.project.evaluate import METRICS

TREES = Path(".topwork/explain")
MOST_CAUSES = 4
MOST_NAMED = 3
"""Params or files of a cause that are named."""
PARAMS = "params.yaml"
NOT_COMPUTED = ("params.runtime", "params.report", "params.demo")
"""Sections that no metric depends on, or that the data cause covers."""
Combination = frozenset[str]


@dataclass(frozen=True)
class Explanation:
    """One metric's difference between two runs.

    Attributes:
        metric: dotted name.
        before, after: of A and of B.
        shares: cause -> how much of `after - before` it explains.
    """

    metric: str
    before: float
    after: float
    shares: dict[str, float]


def explain(
    first: Revision, second: Revision, *, notify: Callable[[str], None] = print
) -> list[Explanation]:
    """Explain every metric that both runs have.

    Raises:
        AuditError: nothing differs, more causes than can be combined, or a combination can't run.
    """
    causes = differing_causes(first, second)
    if not causes:
        raise AuditError(
            f"{first.rev} and {second.rev}: code, data, weights and params are the same."
        )
    if len(causes) > MOST_CAUSES:
        raise AuditError(
            f"{first.rev} and {second.rev} differ in {len(causes)} causes ({', '.join(causes)}); at"
            f" most {MOST_CAUSES} can be combined. Take two revisions that are nearer."
        )
    found: dict[Combination, dict[str, float]] = {}
    for count in range(len(causes) + 1):
        for chosen in combinations(causes, count):
            name = " and ".join(chosen) or "nothing"
            if count in (0, len(causes)):
                revision = first if count == 0 else second
                found[frozenset(chosen)] = _recorded(revision)
            else:
                notify(f"{first.rev} with {name} of {second.rev}: running")
                found[frozenset(chosen)] = _run(first, second, chosen)
    everything = frozenset(causes)
    metrics = sorted(set.intersection(*(set(figures) for figures in found.values())))
    return [
        Explanation(
            metric,
            found[frozenset()][metric],
            found[everything][metric],
            {
                cause: shapley(cause, causes, lambda c, m=metric: found[c][m])  # type: ignore[misc]
                for cause in causes
            },
        )
        for metric in metrics
    ]


def shapley(cause: str, causes: list[str], figure: Callable[[Combination], float]) -> float:
    """Mean, over all orders in which the causes can be swapped, of what the swap of one changes."""
    others = [other for other in causes if other != cause]
    share = 0.0
    for count in range(len(others) + 1):
        weight = factorial(count) * factorial(len(others) - count) / factorial(len(causes))
        for chosen in combinations(others, count):
            share += weight * (figure(frozenset({*chosen, cause})) - figure(frozenset(chosen)))
    return share


def differing_causes(first: Revision, second: Revision) -> list[str]:
    """What differs between two revisions: `code`, `data`, `weights`, `params.SECTION`."""
    paths = {*first.tracked, *second.tracked}
    changed = [path for path in paths if first.tracked.get(path) != second.tracked.get(path)]
    groups = {cause for path in changed if (cause := _cause_of(path)) is not None}
    ours, theirs = first.params_document(), second.params_document()
    sections = [
        f"params.{name}" for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)
    ]
    return [*sorted(groups), *(name for name in sections if name not in NOT_COMPUTED)]


def in_words(first: Revision, second: Revision, cause: str) -> str:
    """What differs in a cause: `finetune.lr 0.01 -> 0.02`, or the files."""
    kind, _, section = cause.partition(".")
    if kind == "params":
        ours, theirs = (
            dict(_flat(document[section], section)) if section in document else {}
            for document in (first.params_document(), second.params_document())
        )
        found = [
            f"{name} {ours.get(name, 'unset')} -> {theirs.get(name, 'unset')}"
            for name in {**ours, **theirs}
            if ours.get(name) != theirs.get(name)
        ]
    else:
        found = sorted(
            path
            for path in {*first.tracked, *second.tracked}
            if _cause_of(path) == cause and first.tracked.get(path) != second.tracked.get(path)
        )
    beyond = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return ", ".join(found[:MOST_NAMED]) + beyond


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}")
    else:
        yield name, value


def _cause_of(path: str) -> str | None:
    if path.startswith("src/") or path.rpartition("/")[2] == "dvc.yaml":
        return "code"
    if path.startswith("weights/") or path == "weights.lock":
        return "weights"
    if path.endswith(".dvc") or (path.startswith("data/") and not path.endswith("dvc.lock")):
        return "data"
    return None


def _recorded(revision: Revision) -> dict[str, float]:
    try:
        document = json.loads(revision.read_bytes(METRICS.as_posix()))
    except ValueError as error:
        raise AuditError(f"{METRICS} at {revision.rev}: not readable as JSON ({error}).") from error
    return dict(flat_numbers(document))


def _run(first: Revision, second: Revision, causes: tuple[str, ...]) -> dict[str, float]:
    """Metrics of A with some causes of B."""
    root = first.root
    top = root / TREES / f"{first.commit[:8]}-{second.commit[:8]}-{os.getpid()}"
    tree = open_tree(first, top)
    try:
        for path, blob in _swapped(first, second, causes):
            target = tree / path
            target.unlink(missing_ok=True)
            if blob:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(second.git_bytes(path))
        _write_params(tree, first, second, causes)
        _dvc(tree, "checkout", "--quiet", "--force", "--allow-missing")
        _dvc(tree, "repro", "--quiet", "evaluate")
        return dict(flat_numbers(json.loads((tree / METRICS).read_bytes())))
    finally:
        close_tree(root, top)


def _swapped(
    first: Revision, second: Revision, causes: tuple[str, ...]
) -> Iterator[tuple[str, bool]]:
    """Files of the causes, and whether B has them."""
    for path in sorted({*first.tracked, *second.tracked}):
        if _cause_of(path) in causes:
            yield path, path in second.tracked


def _write_params(tree: Path, first: Revision, second: Revision, causes: tuple[str, ...]) -> None:
    from ruamel.yaml import YAML

    document: dict[str, Any] = dict(first.params_document())
    theirs = second.params_document()
    for cause in causes:
        kind, _, section = cause.partition(".")
        if kind == "params":
            document.pop(section, None)
            document |= {section: theirs[section]} if section in theirs else {}
    with (tree / PARAMS).open("w", encoding="utf-8") as stream:
        YAML().dump(document, stream)


def _dvc(tree: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=tree,
        env=environment_of(tree),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = (done.stdout + done.stderr).splitlines()
        shown = [line for line in lines if line.startswith("error: ")] or lines[-3:]
        raise AuditError(f"dvc {' '.join(arguments)}: {' '.join(shown)[:600]}")
