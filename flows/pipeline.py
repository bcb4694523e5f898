"""The pipeline as a Prefect flow: DVC's own graph, one task a stage.

DVC decides what is fresh and what a stage reads and writes; Prefect gives order, parallel branches,
retries, logs, schedules and artifacts. A stage added to dvc.yaml appears here by itself.

    python -m flows.pipeline
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# a busy machine needs more than the default 20
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")

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
EVENT = "@topwork "
LOCK_TRIES = 60
_ASKING = threading.Lock()
"""DVC's API isn't made for threads."""
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
    """A stage's progress artifact, made at its first progress event."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._artifact: Any = None

    def follow(self, event: dict[str, Any]) -> None:
        """Take over a progress event."""
        percent = 100 * event["done"] / event["total"]
        text = f"{event['unit']} {event['done']} of {event['total']}  {event.get('text', '')}"
        if self._artifact is None:
            key = re.sub("[^a-z0-9]+", "-", self.stage.lower()).strip("-")
            self._artifact = create_progress_artifact(
                percent, key=f"progress-{key}", description=text
            )
        else:
            update_progress_artifact(self._artifact, progress=percent, description=text)


def is_fresh(stage: str, root: Path) -> bool:
    """Whether DVC finds nothing to do for a stage, asked of DVC's own API.

    Where DVC can't say (a file that the stage needs is missing, say), the answer is no: running the
    stage then gives DVC's own error.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    file, _, name = stage.rpartition(":")
    target = f"{root / (file or 'dvc.yaml')}:{name}"
    for _ in range(LOCK_TRIES):
        try:
            with _ASKING, Repo(str(root)) as repo:
                return not repo.status(targets=[target])
        except LockError:
            time.sleep(1)  # another stage's command begins or ends right now
        except DvcException:
            return False
    return False


@task(cache_policy=NO_CACHE, persist_result=False)
def run_stage(stage: str, root: Path) -> State[str]:
    """Run one stage through DVC, unless it is fresh; its output reaches the log line by line.

    Returns:
        A state named `Fresh` where DVC found nothing to do, `Completed` where the stage ran,
        `Failed` with the stage's error otherwise.
    """
    if is_fresh(stage, root):
        return Completed(
            name="Fresh", message=f"{stage}: nothing to do, DVC found it unchanged", data="fresh"
        )
    logger = get_run_logger()
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", stage]
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    progress, error = Progress(stage), ""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with subprocess.Popen(
        command,
        cwd=root,
        env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", "TOPWORK_EVENTS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in filter(None, map(str.rstrip, process.stdout)):
            event = event_of(line)
            if event is None:
                logger.info("%s", line)
                tail.append(line)
            elif event["kind"] == "progress":
                progress.follow(event)
            elif event["kind"] == "error":
                error = event["message"]
    if process.returncode:
        return Failed(message=f"{stage}: {error or ' '.join(list(tail)[-5:]) or 'no output'}")
    return Completed(message=f"{stage}: ran", data="ran")


def event_of(line: str) -> dict[str, Any] | None:
    """The event in a line of a stage's output (`topwork.events`), None in others."""
    if not line.startswith(EVENT):
        return None
    try:
        event = json.loads(line.removeprefix(EVENT))
    except ValueError:
        return None
    return event if isinstance(event, dict) and "kind" in event else None


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
