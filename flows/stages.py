"""The stages of DVC's own graph as Prefect tasks.

DVC decides what is fresh and what a stage reads and writes. A stage added to dvc.yaml appears here
by itself.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.processes import Commands, Ended
from flows.published import Progress

TAIL_LINES = 60
EVENT = "@topwork "
LOCK_WAIT_S = 600
"""How long a stage waits for another DVC that holds the project."""
LOCKED = ("it is being blocked by", "Unable to acquire lock")
_ASKING = threading.Lock()
"""DVC's API isn't made for threads."""


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
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            with _ASKING, Repo(str(root)) as repo:
                return not repo.status(targets=[target])
        except LockError:
            time.sleep(1)  # another stage's command begins or ends right now
        except DvcException:
            return False
    return False


def lock_orders(root: Path, graph: Iterable[str]) -> dict[Path, list[str]]:
    """The order of stages in each dvc.lock, those that it lacks in the graph's order: as one `dvc
    repro` leaves it, whichever of two independent stages ends first.
    """
    from dvc.utils.serialize import load_yaml

    orders: dict[Path, list[str]] = {}
    for address in graph:
        file, _, name = address.rpartition(":")
        path = (root / (file or "dvc.yaml")).with_suffix(".lock")
        if path not in orders:
            found = load_yaml(path) if path.is_file() else {}
            orders[path] = list(found.get("stages") or {})
        if name not in orders[path]:
            orders[path].append(name)
    return orders


def keep_order(root: Path, orders: Mapping[Path, list[str]]) -> None:
    """Give each dvc.lock that order; where another DVC holds the project, it is left."""
    from dvc.lock import LockError
    from dvc.repo import Repo
    from dvc.utils.serialize import dump_yaml, load_yaml

    with contextlib.suppress(LockError), Repo(str(root)) as repo, repo.lock:
        for path, order in orders.items():
            found = load_yaml(path) if path.is_file() else {}
            stages = found.get("stages") or {}
            names = sorted(stages, key=lambda name: order.index(name) if name in order else 0)
            if names != list(stages):
                dump_yaml(path, found | {"stages": {name: stages[name] for name in names}})


@task(cache_policy=NO_CACHE, persist_result=False)
def run_stage(
    stage: str, root: Path, environment: Mapping[str, str], commands: Commands
) -> State[str]:
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
    end = time.monotonic() + LOCK_WAIT_S
    warned = False
    while True:
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        progress, error = Progress(stage), ""
        try:
            with commands.run(command, root, environment) as running:
                for line in filter(None, map(str.rstrip, running.output)):
                    event = event_of(line)
                    if event is None:
                        logger.info("%s", line)
                        tail.append(line)
                    elif event["kind"] == "progress":
                        progress.follow(event)
                    elif event["kind"] == "error":
                        error = event["message"]
                code = running.wait()
        except Ended:
            return Failed(message=f"{stage}: not started, since the run is ending")
        if not code:
            return Completed(message=f"{stage}: ran", data="ran")
        last_lines = " ".join(list(tail)[-5:])
        if error or commands.ended or not any(text in last_lines for text in LOCKED):
            return Failed(message=f"{stage}: {error or last_lines or 'no output'}")
        if time.monotonic() > end:
            return Failed(
                message=f"{stage}: another DVC process has held {root} for {LOCK_WAIT_S // 60}"
                f" minutes. End it, then run again. DVC says: {last_lines}"
            )
        if not warned:
            logger.warning("%s: another DVC process holds %s; waiting for it", stage, root)
            warned = True
        time.sleep(2)


def event_of(line: str) -> dict[str, Any] | None:
    """The event in a line of a stage's output (`topwork.events`), None in others."""
    if not line.startswith(EVENT):
        return None
    try:
        event = json.loads(line.removeprefix(EVENT))
    except ValueError:
        return None
    return event if isinstance(event, dict) and "kind" in event else None
