"""One run at a time a project, and states that stay true when a run is killed.

Both hang on locks that the kernel lets go when a process ends, in whatever way: no clock is asked
whether somebody still lives.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from filelock import FileLock, Timeout
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed

Collision = Literal["wait", "skip", "join", "beside"]
"""What a run does while another one has the project: wait for its turn, end at once, or wait and
take over the other's result, where both are about the same. `beside` is for the trials of a sweep,
which has the project: they wait for runs of the same key alone.
"""
REMIND_S = 60
CANCELS = (StateType.CANCELLING, StateType.CANCELLED)


def folder(root: Path) -> Path:
    """Where a project's runs keep what is about them alone."""
    path = root / ".topwork" / "flows"
    path.mkdir(parents=True, exist_ok=True)
    return path


class Turn:
    """A run's turn with the project.

    Args:
        root: the project.
        key: what the run is about; runs of one key would end in the same result.
        name: what a waiting run says it waits for.
        beside: only runs of the same key are waited for.
    """

    def __init__(self, root: Path, key: str, name: str, beside: bool = False) -> None:
        self.root, self.key, self.name = root, key, name
        self._about = folder(root) / (f"turn-{key}.json" if beside else "turn.json")
        self._lock = FileLock(str(self._about.with_suffix(".lock")), timeout=0)

    @contextlib.contextmanager
    def taken(
        self, collision: Collision, say: Callable[[str], None]
    ) -> Iterator[dict[str, Any] | None]:
        """Hold the project in the block.

        Yields:
            None where it's this run's turn; otherwise nothing is held, and it is what is known of
            the other run: `name`, and for `join` its `ended`, as that run gave it to `tell`.
        """
        first = self._holder() if not self._acquired() else None
        if first and collision == "skip":
            yield first
            return
        reminded_at = 0.0
        while first and not self._lock.is_locked and not self._acquired():
            if time.monotonic() - reminded_at > REMIND_S or not reminded_at:
                holder = self._holder()
                say(f"{holder['name']} has the project (process {holder['pid']}); waiting")
                reminded_at = time.monotonic()
            time.sleep(0.5)
        try:
            other = self._holder()
            if first and collision == "join" and other["key"] == self.key and other.get("ended"):
                self._lock.release()
                yield other
                return
            self._write({"ended": None})
            yield None
        finally:
            self._lock.release()

    def tell(self, ended: dict[str, Any]) -> None:
        """Leave what became of this run for those that join it."""
        self._write({"ended": ended})

    def _acquired(self) -> bool:
        try:
            self._lock.acquire()
        except Timeout:
            return False
        return True

    def _holder(self) -> dict[str, Any]:
        try:
            held: dict[str, Any] = json.loads(self._about.read_text())
        except (OSError, ValueError):
            return {"name": "another run", "pid": "unknown", "key": None}
        return held

    def _write(self, more: dict[str, Any]) -> None:
        temporary = self._about.with_suffix(f".{os.getpid()}")
        temporary.write_text(
            json.dumps({"name": self.name, "pid": os.getpid(), "key": self.key, **more}),
            encoding="utf-8",
        )
        temporary.replace(self._about)


@contextlib.contextmanager
def alive(root: Path, run: UUID | None) -> Iterator[None]:
    """Show that a flow run's process lives: a file that it keeps locked during the block."""
    if run is None:
        yield
        return
    marks = folder(root) / "alive"
    marks.mkdir(exist_ok=True)
    # locked first, then in its place, so that nobody finds it unlocked
    lock = FileLock(str(marks / f".{run}"))
    with lock:
        (marks / f".{run}").replace(marks / str(run))
        yield
        (marks / str(run)).unlink(missing_ok=True)


def settle(root: Path) -> list[str]:
    """Give each run whose process is gone, and that didn't end by itself, the state `Crashed`
    (`Cancelled` where somebody asked for that), its tasks included.

    Returns:
        One sentence for each of these runs.
    """
    marks = folder(root) / "alive"
    settled = []
    for mark in sorted(marks.glob("[!.]*")) if marks.is_dir() else ():
        lock = FileLock(str(mark), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            continue
        try:
            if mark.exists():
                settled += _ended(UUID(mark.name))
                mark.unlink(missing_ok=True)
        finally:
            lock.release()
    return settled


def _ended(run: UUID) -> list[str]:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    with get_client(sync_client=True) as client:
        try:
            known = client.read_flow_run(run)
        except ObjectNotFound:
            return []  # another server's
        state: Any = Crashed(
            message="The run's process ended without a word (killed, out of memory, or the machine"
            " went down). The next run goes on where it was."
        )
        if known.state is not None and known.state.type in CANCELS:
            state = Cancelled(message="Cancelled; the next run goes on where it was.")
        # tasks first: once the run has ended, nobody comes back for them
        for task in client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run]))
        ):
            if task.state is None or not task.state.is_final():
                client.set_task_run_state(task.id, state, force=True)
        if known.state is None or not known.state.is_final():
            client.set_flow_run_state(run, state, force=True)
            return [f"{known.name} is {state.name}"]
    return []
