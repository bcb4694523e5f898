"""Records of runs: a file a run of a stage, below .topwork/runs, for what doesn't repeat.

When and how long a stage ran, with which code and local changes, in which environment, how it
ended. They lie next to the outs and in no lock, since two runs of the same bits differ in them. A
run that fails leaves its record as well, and one that is killed is seen by it.
"""

import os
import platform
import shutil
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Literal

from pydantic import Field

from topwork.environment import differences, environment_file
from topwork.errors import TopworkError
from topwork.files import path_md5, sha256_file
from topwork.project.record import Record

RUNS = Path(".topwork/runs")
PATCH_BYTES = 1 << 20
"""A patch beyond that is left out: it holds data, and no code."""
NOT_CODE = (":(exclude)out", ":(exclude,glob)**/dvc.lock")
"""What a run changes by itself."""

State = Literal["running", "done", "failed", "killed"]


class CodeRecord(Record):
    """The code that ran.

    Attributes:
        commit: git's HEAD when the run began, None outside of a git repository.
        changed: tracked files that differ from it, and files that git doesn't know, outs aside.
        patch: the difference as `git diff` writes it; None where there is none, or it is huge.
    """

    commit: str | None
    changed: tuple[str, ...]
    patch: str | None


class EnvironmentRecord(Record):
    """What the code ran in.

    Attributes:
        python, system, processor, cores: of this machine.
        driver: of its GPU, None where it has none.
        distributions: name -> version of all that is installed.
        pinned_by: the project's requirements.lock or requirements.txt, and its SHA-256.
        differences: what is installed otherwise than pinned there.
    """

    python: str
    system: str
    processor: str
    cores: int
    driver: str | None
    distributions: dict[str, str]
    pinned_by: tuple[str, str] | None
    differences: tuple[str, ...]


class StageRun(Record):
    """One run of a stage.

    Attributes:
        stage: its name.
        started: when, UTC.
        seconds: how long it took, None where it was killed.
        state: `running` also stands in the record of a run that was killed.
        error: what stopped it.
        resumes: runs of this stage just before that didn't get to their end.
        process: number of the process on its machine.
        code, environment: what ran.
        outs: path -> MD5 of what it wrote, as dvc.lock has them.
    """

    stage: str
    started: str
    seconds: float | None = None
    state: State = "running"
    error: str | None = None
    resumes: int = 0
    process: int
    code: CodeRecord
    environment: EnvironmentRecord
    outs: dict[str, str] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of its file: they sort by time."""
        return f"{self.started.replace(':', '').replace('-', '')}-{self.stage}-{self.process}.json"


def begin(stage: str) -> StageRun | None:
    """Leave the record of a run that begins, in the project of the current folder and, where this
    is DVC's copy of a project for an experiment, in the original as well.

    Returns:
        The record; None in all but the first of several processes of a training, and where it
        can't be written, which stops nothing: the run is what counts.
    """
    if os.environ.get("RANK", "0") != "0":
        return None
    with suppress(Exception):
        run = StageRun(
            stage=stage,
            started=datetime.now(UTC).isoformat(timespec="milliseconds"),
            resumes=_unfinished(stage),
            process=os.getpid(),
            code=_code(),
            environment=_environment(),
        )
        _write(run)
        return run
    return None


def end(run: StageRun | None, error: str | None) -> None:
    """Complete the record of a run that has ended; `error` is what stopped it. This, too, stops
    nothing.
    """
    if run is None:
        return
    with suppress(Exception):
        seconds = (datetime.now(UTC) - datetime.fromisoformat(run.started)).total_seconds()
        state: State = "done" if error is None else "failed"
        outs = _outs(run.stage) if error is None else {}
        changes = {"seconds": round(seconds, 3), "state": state, "error": error, "outs": outs}
        _write(run.model_copy(update=changes))


def runs(root: Path) -> list[StageRun]:
    """Records of runs in a project, oldest first; of those that say `running` and whose process is
    gone, the state is `killed`. Files that are no such record are left out.
    """
    found = []
    for path in sorted((root / RUNS).glob("*.json")):
        with suppress(TopworkError):
            run = StageRun.read(path)
            gone = run.state == "running" and not _alive(run.process)
            found.append(run.model_copy(update={"state": "killed"}) if gone else run)
    return sorted(found, key=lambda run: run.started)


def carry(source: Path, target: Path) -> None:
    """Copy the records of runs of one project into another: of a git worktree that is about to go,
    say.
    """
    for path in (source / RUNS).glob("*.json"):
        (target / RUNS).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / RUNS / path.name)


def _write(run: StageRun) -> None:
    original = Path(os.environ.get("DVC_ROOT", "."))
    for folder in {path.resolve() for path in (Path(), original)}:
        run.write(folder / RUNS / run.name)


def _unfinished(stage: str) -> int:
    """Runs of a stage since the last that was done."""
    count = 0
    for path in sorted(RUNS.glob(f"*-{stage}-*.json"), reverse=True):
        with suppress(TopworkError):
            if StageRun.read(path).state == "done":
                break
        count += 1
    return count


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _code() -> CodeRecord:
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return CodeRecord(commit=None, changed=(), patch=None)
    listed = _git("status", "--porcelain", "--untracked-files=all", "--", ".", *NOT_CODE) or ""
    patch = _git("diff", "HEAD", "--", ".", *NOT_CODE) or ""
    return CodeRecord(
        commit=commit.strip(),
        changed=tuple(line[3:] for line in listed.splitlines()),
        patch=patch if 0 < len(patch) <= PATCH_BYTES else None,
    )


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _environment() -> EnvironmentRecord:
    pins = environment_file(Path())
    return EnvironmentRecord(
        python=platform.python_version(),
        system=platform.platform(),
        processor=_processor(),
        cores=os.cpu_count() or 1,
        driver=_driver(),
        distributions={
            distribution.metadata["Name"]: distribution.version
            for distribution in distributions()
            if distribution.metadata["Name"]
        },
        pinned_by=(pins.as_posix(), sha256_file(pins)) if pins is not None else None,
        differences=tuple(map(str, differences(Path()))),
    )


def _processor() -> str:
    with suppress(OSError, IndexError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return text.split("model name\t: ")[1].splitlines()[0]
    return platform.processor() or platform.machine()


def _driver() -> str | None:
    with suppress(OSError):
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    return None


def _outs(stage: str) -> dict[str, str]:
    from ruamel.yaml import YAML

    found = {}
    for file in (Path("dvc.yaml"), Path("data/dvc.yaml")):
        if not file.is_file():
            continue
        definition = YAML(typ="safe").load(file.read_text(encoding="utf-8"))["stages"].get(stage)
        for kind in ("outs", "metrics") if definition else ():
            for out in definition.get(kind, ()):
                path = Path(out if isinstance(out, str) else next(iter(out)))
                if path.exists():
                    found[path.as_posix()] = path_md5(path)
    return found
