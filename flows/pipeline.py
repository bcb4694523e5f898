"""The pipeline as a Prefect flow: DVC's own graph, one task a stage.

DVC decides what is fresh and what a stage reads and writes; Prefect gives order, parallel branches,
retries, logs, schedules and artifacts. A stage added to dvc.yaml appears here by itself.

    python -m flows.pipeline
"""

import os
import re
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault(
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180"
)  # a busy machine needs more than the default 20

from prefect import Task, flow, get_run_logger, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

REPORT = Path("out/report/report.html")
TAIL_LINES = 60
EPOCH = re.compile(r"epoch (\d+)/([1-9]\d*)\b")
RUNNER: Any = ThreadPoolTaskRunner(max_workers=2)


class StageError(RuntimeError):
    """A stage failed; the message is that stage's own error."""


def stage_graph(root: Path) -> dict[str, list[str]]:
    """Stages of root's dvc.yaml and all that they need: stage address -> addresses upstream, in an
    order that can be run.
    """
    import networkx
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        graph = repo.index.graph  # an edge points from a stage to one that it needs
        own = [
            stage for stage in graph if Path(stage.path).resolve() == (root / "dvc.yaml").resolve()
        ]
        needed = set(own).union(*(networkx.descendants(graph, stage) for stage in own))
        order = [
            stage for stage in networkx.dfs_postorder_nodes(graph) if stage in needed and stage.cmd
        ]
        return {
            _address(stage, root): sorted(
                _address(up, root) for up in graph.successors(stage) if up.cmd
            )
            for stage in order
        }


def _address(stage: Any, root: Path) -> str:
    """A stage's address seen from root (DVC's own `addressing` is seen from the current folder)."""
    file = Path(os.path.relpath(stage.path, root)).as_posix()
    return str(stage.name) if file == "dvc.yaml" else f"{file}:{stage.name}"


class Progress:
    """A stage's progress artifact, made when the stage first says `epoch 3/10`; one that counts
    nothing has none.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._artifact: Any = None

    def follow(self, line: str) -> None:
        """Take over what a line of the stage's output says."""
        if not (told := EPOCH.match(line)):
            return
        percent = 100 * int(told[1]) / int(told[2])
        if self._artifact is None:
            key = re.sub("[^a-z0-9]+", "-", self.stage.lower()).strip("-")
            self._artifact = create_progress_artifact(
                percent, key=f"progress-{key}", description=line
            )
        else:
            update_progress_artifact(self._artifact, progress=percent, description=line)


@task(cache_policy=NO_CACHE, persist_result=False)
def run_stage(stage: str, root: Path) -> State[str]:
    """Run one stage through DVC; its output reaches the log line by line.

    Returns:
        A state named `Fresh` where DVC found nothing to do, `Completed` where the stage ran,
        `Failed` with the stage's error otherwise.
    """
    logger = get_run_logger()
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", stage]
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    progress = Progress(stage)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with subprocess.Popen(
        command,
        cwd=root,
        env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line := line.rstrip():
                logger.info("%s", line)
                tail.append(line)
                progress.follow(line)
    if process.returncode:
        return Failed(message=f"{stage}: {_error(list(tail))}")
    if any("didn't change, skipping" in line for line in tail):
        return Completed(
            name="Fresh", message=f"{stage}: nothing to do, DVC found it unchanged", data="fresh"
        )
    return Completed(message=f"{stage}: ran", data="ran")


def _error(tail: list[str]) -> str:
    """The stage's own error: from its `error:` line up to DVC's closing remark, or the last lines
    where it left none.
    """
    starts = [index for index, line in enumerate(tail) if line.startswith("error: ")]
    if not starts:
        return " ".join(tail[-5:]) or "no output"
    body = tail[starts[0] :]
    end = next(
        (i for i, line in enumerate(body) if line.startswith("ERROR: failed to reproduce")),
        len(body),
    )
    return " ".join(body[:end]).removeprefix("error: ")


@flow(name="pipeline", task_runner=RUNNER, persist_result=False)
def pipeline(root: Path = Path()) -> dict[str, str]:
    """Run every stage in the order of DVC's graph, independent ones side by side.

    Returns:
        Stage address -> `ran` or `fresh`.

    Raises:
        StageError: a stage failed.
    """
    root = root.resolve()
    graph = stage_graph(root)
    futures: dict[str, PrefectFuture[Any]] = {}
    for stage, upstream in graph.items():
        named: Task[..., Any] = run_stage.with_options(task_run_name=stage)
        futures[stage] = named.submit(stage, root, wait_for=[futures[name] for name in upstream])
    states = {}
    for stage, future in futures.items():
        future.wait()
        states[stage] = future.state
    _publish(root, states)
    failed = [state for state in states.values() if state.is_failed()]
    if failed:
        raise StageError(failed[0].message)
    return {stage: "fresh" if state.name == "Fresh" else "ran" for stage, state in states.items()}


def _publish(root: Path, states: dict[str, State[str]]) -> None:
    """Leave what became of each stage, and where the report is, as artifacts of the flow run."""
    rows = "\n".join(
        f"| {stage} | {state.name} | {state.message or ''} |" for stage, state in states.items()
    )
    create_markdown_artifact(
        f"| stage | state | message |\n| --- | --- | --- |\n{rows}\n", key="stages"
    )
    if (root / REPORT).exists():
        create_link_artifact((root / REPORT).as_uri(), link_text="report", key="report")


def main() -> int:
    """Run the flow on the project of the current folder; exit code 1 where a stage failed."""
    try:
        for stage, outcome in pipeline().items():
            print(f"{stage}: {outcome}")
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
