"""`topwork audit recompute`: a past run carried out again, by its own code, and held against its
record out by out.

It happens in a git worktree of that revision below .topwork/recompute, which reads the project's
DVC cache and writes nothing to it: no lock, no run cache, no object. A recompute that is stopped
goes on where it was.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Literal

from topwork.audit.check import Check
from topwork.audit.definition import Definition, definitions
from topwork.audit.rederivation import difference_of, differing_values
from topwork.audit.repository import git
from topwork.audit.revision import Entry, Revision, StageRecord
from topwork.audit.verification import bring, inputs_of, touches
from topwork.environment import check_environment, environment_of
from topwork.errors import AuditError
from topwork.files import path_md5, read_json, write_json
from topwork.project.evaluate import CLASSES, METRICS
from topwork.project.finetune import RECORD
from topwork.project.predictions import record_path

TREES = Path(".topwork/recompute")
LEVELS: dict[str, tuple[str, ...]] = {
    "predictions": ("evaluate", "report", "gate"),
    "weights": ("baseline", "predict", "evaluate", "report", "gate"),
    "training": (
        "surgery",
        "baseline",
        "unlabelled",
        "finetune",
        "predict",
        "evaluate",
        "report",
        "gate",
    ),
}
"""Where a recompute starts -> the stages that it runs; from `data` it runs all."""
TOLERANCE = 0.01
"""How far a metric without a recorded interval may be off where bits can't repeat."""

Outcome = Literal["MATCH", "WITHIN TOLERANCE", "MISMATCH"]


@dataclass(frozen=True)
class OutResult:
    """One out of a stage that ran again.

    Attributes:
        path: of the out.
        outcome: `MATCH`: the same bits; `WITHIN TOLERANCE`: metrics inside of the recorded
            intervals; `MISMATCH`.
        message: what differs.
    """

    path: str
    outcome: Outcome
    message: str = ""


@dataclass(frozen=True)
class StageResult:
    """One stage that ran again.

    Attributes:
        stage: its name.
        seconds: how long it took.
        outs: out by out.
        follows: the stage upstream whose divergence this one had as its input, or None.
        cause: why it diverged by itself: `code`, `params`, `data`, `weights`, `environment`,
            `hardware`, `nondeterminism`, or `record` (none of these: the record isn't what its
            inputs give); None where it didn't.
        reason: the cause in words.
    """

    stage: str
    seconds: float
    outs: tuple[OutResult, ...]
    follows: str | None = None
    cause: str | None = None
    reason: str = ""

    @property
    def matches(self) -> bool:
        """Whether every out has the recorded bits."""
        return all(out.outcome == "MATCH" for out in self.outs)


def recompute(
    revision: Revision,
    *,
    start: str = "data",
    stage: str | None = None,
    environment: Literal["same", "differs"] = "same",
    keep: bool = False,
    notify: Callable[[str], None] = print,
) -> list[StageResult]:
    """Run stages of a past revision again, and hold what they write against the record.

    Args:
        revision: which.
        start: `predictions`, `weights`, `training` or `data`.
        stage: this stage alone, from its recorded inputs.
        environment: whether one that isn't the pinned one will do.
        keep: leave the worktree for a look.
        notify: called with a line as each stage begins and ends.

    Returns:
        The stages in the order in which they ran.

    Raises:
        AuditError: the revision has no such stage, or an input isn't in the cache.
        RevisionError: the environment isn't the one that the revision pins.
    """
    defined = definitions(revision)
    stages = _chosen(revision, defined, start, stage)
    top = revision.root / TREES / revision.commit[:16]
    tree = open_tree(revision, top)
    if environment == "same":
        check_environment(tree)
    _bring_inputs(revision, tree, stages)
    run = _Recompute(revision, defined, tree, notify)
    results = [run.stage(name) for name in stages]
    if not keep:
        close_tree(revision.root, top)
    return results


def _chosen(
    revision: Revision, defined: Mapping[str, Definition], start: str, stage: str | None
) -> list[str]:
    """The stages to run, upstream first."""
    recorded = [name for name in defined if name in revision.stages]
    if stage is not None:
        if stage not in recorded:
            raise AuditError(
                f"{stage}: {revision.rev} records no such stage. It has: {', '.join(recorded)}."
            )
        return [stage]
    wanted = recorded if start == "data" else [s for s in LEVELS[start] if s in recorded]
    if not wanted:
        raise AuditError(
            f"{revision.rev}: records none of the stages {', '.join(LEVELS.get(start, ()))};"
            " recompute it from `data`."
        )
    graph = {
        name: {
            other
            for other in recorded
            if other != name
            and any(touches(dep, out) for dep in defined[name].deps for out in defined[other].outs)
        }
        for name in recorded
    }
    return [name for name in TopologicalSorter(graph).static_order() if name in wanted]


def open_tree(revision: Revision, top: Path) -> Path:
    """A worktree of the revision, which reads the project's DVC cache; one that is there already is
    taken as it is.

    Returns:
        The project in it: its top, or the folder of it that the project lies in.
    """
    if not (top / ".git").exists():
        shutil.rmtree(top, ignore_errors=True)
        git(revision.root, "worktree", "prune")
        top.parent.mkdir(parents=True, exist_ok=True)
        git(revision.root, "worktree", "add", "--quiet", "--detach", str(top), revision.commit)
    tree = top / git(revision.root, "rev-parse", "--show-prefix").decode().strip()
    share_cache(revision.root, tree)
    return tree


def share_cache(root: Path, tree: Path) -> None:
    """Let a worktree use the project's DVC cache (a setting that git ignores)."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        cache = Path(repo.cache.local.path)
    folder = cache.parent.parent if cache.name == "md5" else cache
    config = tree / ".dvc" / "config.local"
    config.write_text(f"[cache]\n    dir = {folder}\n", encoding="utf-8")


def close_tree(root: Path, tree: Path) -> None:
    """Take a worktree away again."""
    git(root, "worktree", "remove", "--force", str(tree))


def _bring_inputs(revision: Revision, tree: Path, stages: list[str]) -> None:
    """Check out the recorded outs, and data of .dvc files, that the stages read."""
    made = {out.path for name in stages for out in revision.stages[name].outs}
    deps = [dep.path for name in stages for dep in revision.stages[name].deps]
    deps += [path for name in stages for path in _asked(revision, name)]
    wanted = sorted(
        out.path
        for out in revision.outs.values()
        if out.path not in made
        and out.path not in revision.tracked
        and not (tree / out.path).exists()
        and any(touches(dep, out.path) for dep in deps)
    )
    if not wanted:
        return
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "checkout", "--quiet", "--force", *wanted],
        cwd=tree,
        env=environment_of(tree),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        for record in revision.stages.values():
            lacking = [out for out in record.outs if out.path in wanted and _lacks(revision, out)]
            if lacking:
                raise AuditError(
                    f"{revision.rev}: inputs aren't in the cache: {lacking[0].path};"
                    f" {bring(revision, record)}."
                )
        raise AuditError(
            f"{revision.rev}: inputs can't be checked out: {' '.join(done.stderr.split())[:600]}"
        )


def _lacks(revision: Revision, out: Entry) -> bool:
    """Whether an out, or a file in it, isn't in the cache."""
    if out.md5 is None:
        return True
    try:
        members = revision.members(out).values() if out.is_folder else ()
    except AuditError:
        return True
    return not all(revision.cached(md5).is_file() for md5 in (out.md5, *members))


def _asked(revision: Revision, name: str) -> frozenset[str]:
    return frozenset(dep.path for dep in revision.stages[name].deps)


class _Recompute:
    def __init__(
        self,
        revision: Revision,
        defined: Mapping[str, Definition],
        tree: Path,
        notify: Callable[[str], None],
    ) -> None:
        self.revision = revision
        self.defined = defined
        self.tree = tree
        self.notify = notify
        self.state = tree / ".topwork" / "recomputed.json"
        self.known: dict[str, Any] = read_json(self.state) if self.state.is_file() else {}
        self.diverged: dict[str, str] = {}

    def stage(self, name: str) -> StageResult:
        """Run a stage, or take over what a recompute that was stopped has found."""
        record = self.revision.stages[name]
        known = self.known.get(name)
        if known is not None and self._outs_are(known["hashes"]):
            self.notify(f"{name}: was recomputed before")
            result = _read(known["result"])
        else:
            self.notify(f"{name}: running")
            result = self._run(record)
            hashes = {out.path: self._md5(out.path) for out in record.outs}
            self.known[name] = {"result": asdict(result), "hashes": hashes}
            write_json(self.state, self.known)
        if not result.matches:
            for out in result.outs:
                if out.outcome != "MATCH":
                    self.diverged[out.path] = result.follows or name
        self.notify(_line(result))
        return result

    def _outs_are(self, hashes: dict[str, str | None]) -> bool:
        return all(self._md5(path) == md5 for path, md5 in hashes.items())

    def _md5(self, path: str) -> str | None:
        return path_md5(self.tree / path) if (self.tree / path).exists() else None

    def _run(self, record: StageRecord) -> StageResult:
        definition = self.defined[record.name]
        begin = time.monotonic()
        error = self._execute(definition)
        seconds = round(time.monotonic() - begin, 1)
        outs = tuple(self._held(out, error) for out in record.outs)
        result = StageResult(record.name, seconds, outs)
        if result.matches:
            return result
        upstream = [
            stage
            for path, stage in self.diverged.items()
            if any(touches(dep, path) for dep in definition.deps)
        ]
        if upstream:
            return StageResult(record.name, seconds, outs, follows=upstream[0])
        cause, reason = self._cause(record, definition, outs)
        return StageResult(record.name, seconds, outs, cause=cause, reason=reason)

    def _execute(self, definition: Definition) -> str | None:
        """Run the stage's command on an empty place; its error, where it ends with one."""
        for path in definition.outs - definition.persistent:
            target = self.tree / path
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
        environment = environment_of(self.tree)
        environment.pop("DVC_ROOT", None)
        commands = definition.cmd if isinstance(definition.cmd, list) else [definition.cmd]
        log = self.tree / ".topwork" / "recompute.log"
        log.parent.mkdir(exist_ok=True)
        for command in commands:
            with log.open("w", encoding="utf-8") as stream:
                code = subprocess.run(
                    command,
                    shell=True,
                    cwd=self.tree / definition.wdir,
                    env=environment,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    check=False,
                ).returncode
            if code:
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
                shown = [line for line in lines if line.startswith("error: ")] or lines[-1:]
                return f"exit code {code}: {' '.join(shown)[:600]}"
        return None

    def _held(self, out: Entry, error: str | None) -> OutResult:
        if error is not None:
            return OutResult(out.path, "MISMATCH", error)
        found = self.tree / out.path
        if not found.exists():
            return OutResult(out.path, "MISMATCH", "isn't written")
        md5 = path_md5(found)
        if md5 == out.md5:
            return OutResult(out.path, "MATCH")
        if Path(out.path) == METRICS and (words := self._within(found)):
            return OutResult(out.path, "WITHIN TOLERANCE", words)
        return OutResult(out.path, "MISMATCH", self._difference(out, found, md5))

    def _difference(self, out: Entry, found: Path, md5: str) -> str:
        revision = self.revision
        try:
            if out.is_folder:
                members = revision.members(out)
                for name in sorted(
                    {*members, *(str(p.relative_to(found)) for p in files_of(found))}
                ):
                    if name not in members:
                        return f"{name} isn't recorded"
                    recorded = _named(revision.cached(members[name]), name, self.tree)
                    if difference := difference_of(found / name, recorded):
                        return f"{name}: {difference}"
            else:
                content = revision.read_bytes(out.path)
                recorded = self.tree / ".topwork" / f"recorded{Path(out.path).suffix}"
                recorded.write_bytes(content)
                if difference := difference_of(found, recorded):
                    return difference
        except (AuditError, OSError, ValueError):
            pass
        return f"MD5 {md5} recomputed, {out.md5} recorded"

    def _within(self, found: Path) -> str | None:
        """Whether metrics lie in the recorded intervals; in words, how far they are off."""
        recorded = json.loads(self.revision.read_bytes(METRICS.as_posix()))
        ours, theirs = dict(flat_numbers(read_json(found))), dict(flat_numbers(recorded))
        if set(ours) != set(theirs):
            return None
        widths = self._widths()
        off = {key: abs(ours[key] - theirs[key]) for key in theirs}
        if any(off[key] > widths.get(key, TOLERANCE) for key in off):
            return None
        worst = max(off, key=lambda key: off[key])
        return f"{worst} is {ours[worst]:.4f}, {theirs[worst]:.4f} recorded"

    def _widths(self) -> dict[str, float]:
        try:
            document = json.loads(self.revision.read_bytes(CLASSES.as_posix()))
            return dict(_intervals(document))
        except (AuditError, ValueError, KeyError, TypeError):
            return {}

    # causes

    def _cause(
        self, record: StageRecord, definition: Definition, outs: tuple[OutResult, ...]
    ) -> tuple[str, str]:
        """Why a stage with the recorded inputs wrote other outs."""
        wrong = [check for check in inputs_of(self.revision, record) if check.status != "holds"]
        for cause, belongs in CAUSES:
            if named := [check for check in wrong if belongs(check)]:
                first = named[0]
                return cause, f"{first.what}: {first.message}"
        if difference := self._recorded_difference(record, "versions"):
            return "environment", difference
        if difference := self._recorded_difference(record, "machine"):
            library = difference.startswith(("machine.torch", "machine.cudnn"))
            return "environment" if library else "hardware", difference
        before = {out.path: self._md5(out.path) for out in record.outs}
        self.notify(f"{record.name}: differs; running once more")
        if self._execute(definition) is None:
            again = {out.path: self._md5(out.path) for out in record.outs}
            if again != before:
                other = next(path for path in before if again[path] != before[path])
                return "nondeterminism", f"{other} differs between two runs of the same code"
        return (
            "record",
            "same code, params, inputs, environment and machine as recorded, and two runs agree:"
            " the record isn't what they give",
        )

    def _recorded_difference(self, record: StageRecord, key: str) -> str | None:
        """Where a recorded fact (versions, machine) isn't this machine's."""
        paths = [RECORD, record_path("finetuned"), record_path("pretrained")]
        for path in paths:
            if path.as_posix() not in {out.path for out in record.outs}:
                continue
            found = self.tree / path
            if not found.is_file():
                return None
            ours = read_json(found).get(key)
            theirs = json.loads(self.revision.read_bytes(path.as_posix())).get(key)
            if ours is not None and theirs is not None:
                return next(differing_values(ours, theirs, key), None)
        return None


def _code(check: Check) -> bool:
    return check.what.startswith(("cmd", "entry", "dep src/", "dep requirements"))


def _data(check: Check) -> bool:
    return check.what.startswith("dep ") and not check.what.startswith("dep out/")


CAUSES: tuple[tuple[str, Callable[[Check], bool]], ...] = (
    ("code", _code),
    ("params", lambda check: check.what.startswith("params ")),
    ("weights", lambda check: check.what.startswith("dep weights")),
    ("data", _data),
)
"""Cause -> whether a statement that doesn't hold tells it."""


def files_of(folder: Path) -> Iterator[Path]:
    """Files below a folder."""
    return (path for path in folder.rglob("*") if path.is_file())


def _named(cached: Path, name: str, tree: Path) -> Path:
    """A cached object under a name with the suffix of the file that it is."""
    target = tree / ".topwork" / f"recorded{Path(name).suffix}"
    shutil.copyfile(cached, target)
    return target


def flat_numbers(document: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """Figures of a nested document by their dotted names."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield from flat_numbers(value, f"{where}.{key}" if where else str(key))
    elif isinstance(document, int | float) and not isinstance(document, bool):
        yield where, float(document)


def _intervals(document: Any) -> Iterator[tuple[str, float]]:
    """Half the width of the interval of each metric that has one."""
    for row in document["classes"]:
        figures = row["models"].get("finetuned") or {}
        if row["set"] == "test" and figures.get("interval"):
            low, high = figures["interval"]
            yield f"ap.{row['class']}", (high - low) / 2
        if row.get("interval_retention"):
            low, high = row["interval_retention"]
            yield f"retention.{row['class']}", (high - low) / 2


def _read(document: dict[str, Any]) -> StageResult:
    outs = tuple(OutResult(**out) for out in document.pop("outs"))
    return StageResult(outs=outs, **document)


def _line(result: StageResult) -> str:
    if result.matches:
        return f"{result.stage}: MATCH, {len(result.outs)} outs, {result.seconds} s"
    parts = [
        f"{out.outcome} {out.path}: {out.message}" for out in result.outs if out.outcome != "MATCH"
    ]
    why = f"follows from {result.follows}" if result.follows else f"cause: {result.cause}"
    return f"{result.stage}: {'; '.join(parts)} ({why})"
