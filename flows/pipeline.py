"""The pipeline as a Prefect flow: in place, or a revision in a worktree of its own.

    python -m flows.pipeline
    python -m flows.pipeline --revision HEAD --set finetune.lr=0.0005

Prefect gives order, parallel branches, logs, schedules and artifacts; what is fresh is DVC's to
say (`flows.stages`).
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args
from uuid import UUID

from dvc.exceptions import DvcException
from prefect import Task, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff

from flows.housekeeping import note, sweep
from flows.isolation import (
    GIT_REMOTE,
    Isolated,
    Keep,
    RunError,
    command_environment,
    commit_of,
    data_now,
    dvc,
    git,
    readable,
)
from flows.processes import Commands
from flows.published import (
    name_run,
    publish_champion,
    publish_kept,
    publish_results,
    publish_stages,
)
from flows.stages import keep_order, lock_orders, run_stage, stage_graph
from flows.turns import Collision, Turn, alive, folder, settle

RUNNER: Any = ThreadPoolTaskRunner(max_workers=2)
GATE = "gate"
NETWORK_TRIES = 4
NETWORK_WAIT_S = float(os.environ.get("TOPWORK_NETWORK_WAIT_S", "5"))
"""Before the second try; then twice as long each time."""


@dataclass
class Result:
    """What became of a run.

    Attributes:
        stages: stage address -> `ran`, `fresh`, `failed` or `not reached`.
        kept: the DVC experiment or branch that was made for the result; None where nothing has
            changed, or in place.
        record: where the result stands: `kept`, or what holds it already; None in place.
        why: the first failed stage's own error; empty where none failed.
        said: one line about it all.
    """

    stages: dict[str, str] = field(default_factory=dict)
    kept: str | None = None
    record: str | None = None
    why: str = ""
    said: str = ""


class RunFailed(RuntimeError):
    """A run's stage failed; the message is that stage's own error."""

    def __init__(self, result: Result) -> None:
        super().__init__(f"{result.why} ({result.said})")
        self.result = result


@task(
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=NETWORK_TRIES - 1,
    retry_delay_seconds=exponential_backoff(backoff_factor=NETWORK_WAIT_S),
)
def over_network(work: Callable[[], Any]) -> None:
    """Work that needs the network, tried again with longer and longer pauses."""
    work()


def _network(name: str, work: Callable[[], Any]) -> None:
    over_network.with_options(task_run_name=name)(work)


@flow(name="pipeline", task_runner=RUNNER, persist_result=False)
def pipeline(
    root: Path = Path(),
    revision: str | None = None,
    params: dict[str, Any] | None = None,
    data: Literal["committed", "current"] = "committed",
    only_new_data: bool = False,
    pull: bool | None = None,
    push: bool = False,
    collision: Collision = "wait",
    keep: Keep = "experiment",
    label: str = "run",
    timeout_minutes: float | None = None,
    keep_days: float = 14,
    promote: bool = False,
) -> State[dict[str, Any]]:
    """Run every stage in the order of DVC's graph, independent ones side by side.

    Args:
        root: the project.
        revision: what is run, in a worktree of its own with that revision's code; None: the project
            as it lies there, in place.
        params: dotted key of params.yaml -> value, for a revision alone.
        data: for a revision: data tracked by .dvc files as that revision has it, or as the
            project's folder has it now.
        only_new_data: run where the data has changed since the last run that asked this.
        pull: fetch git's remote and pull from DVC's first; None: pull from DVC's where something
            isn't in this machine's cache.
        push: push the result to DVC's remote, and the experiment or branch to git's.
        collision: what to do while another run has the project.
        keep: keep a revision's result as a DVC experiment, or on a branch.
        label: what kind of run it is, for names (`nightly`).
        timeout_minutes: end the run, and all that it started, after that time.
        keep_days: remove worktrees and checkpoints of dead runs after that time.
        promote: make a revision's new detector the champion, where the champion's gate lets it.

    Returns:
        A state with `Result` as a dictionary: `Completed`, or named `Unchanged` where there was
        nothing to do and `Skipped` where another run had the project; `Failed`, named `Breached`
        where it's the contract; its message is the stage's own error.
    """
    root = root.resolve()
    commands = Commands()
    with commands_of_run(commands), alive(root, run_id()):
        try:
            for sentence in settle(root):
                get_run_logger().warning("a run's process is gone: %s now", sentence)
            if revision is None:
                if params or data != "committed":
                    raise RunError(
                        "params and data are for a revision: give one (revision: HEAD); in place,"
                        " edit params.yaml."
                    )
                name_run(run_id(), f"{now()} {label} in place")
                turn = Turn(root, "in place", str(flow_run.name))
                with turn.taken(collision, get_run_logger().info) as other:
                    if other:
                        return _joined_or_skipped(other)
                    result = _in_place(root, commands, pull, push, timeout_minutes)
                    turn.tell(vars(result))
                    return _state(result)
            if (pull or push) and GIT_REMOTE not in git(root, "remote").split():
                raise RunError(
                    f"pull and push: {root} has no git remote {GIT_REMOTE}. Add one (git remote add"
                    f" {GIT_REMOTE} URL), or leave pull and push out."
                )
            if pull:
                _network("git fetch", lambda: git(root, "fetch", "--quiet", GIT_REMOTE))
            run = Isolated(
                root,
                commit_of(root, revision),
                params or {},
                data_now(root) if data == "current" else {},
                label,
            )
            if pull:
                _network("git fetch of records", run.fetch_records)
            if only_new_data and not _new_data(run):
                name_run(run_id(), f"{now()} {run.commit[:7]} {label}: no new data")
                return _unchanged("no data has changed since the last run")
            name_run(run_id(), f"{now()} {run.commit[:7]} {label}: {_about(run)}")
            turn = Turn(root, run.key, str(flow_run.name), beside=collision == "beside")
            with turn.taken(collision, get_run_logger().info) as other:
                if other:
                    return _joined_or_skipped(other)
                for sentence in sweep(root, keep_days) if collision != "beside" else ():
                    get_run_logger().info("%s", sentence)
                result = isolated(run, commands, pull, push, keep, timeout_minutes)
                if promote and result.kept and not result.why:
                    result.said += f"; {promoted(root, commands, result.kept, push)}"
                if only_new_data:  # what failed on it would fail on it again
                    _remember_data(run)
                turn.tell(vars(result))
                return _state(result)
        except RunError as error:
            return Failed(message=str(error))
        except DvcException as error:
            return Failed(message=f"{root}: {' '.join(str(error).split())}")


def isolated(
    run: Isolated,
    commands: Commands,
    pull: bool | None,
    push: bool,
    keep: Keep,
    timeout_minutes: float | None = None,
) -> Result:
    """Run a revision in its worktree, keep the result, remove the worktree.

    Whoever calls it has the project, or is alone with this revision and these params. When the run
    is killed or cancelled, the worktree stays for the next run of the same.

    Raises:
        RunError: it couldn't begin; nothing new is left.
    """
    resumed = run.open()
    if resumed:
        get_run_logger().info(
            "going on with what a killed run of the same left in %s", run.worktree
        )
    note(run)
    try:
        with readable(run.tree):
            bring_data(run, pull)
            graph = stage_graph(run.tree)
    except RunError:
        if not resumed:
            run.close()
        raise
    before = _metrics_of(run)
    states = run_stages(run.tree, graph, run.environment, commands, timeout_minutes)
    why = next((state.message or "" for state in states.values() if state.is_failed()), "")
    kept = run.record(why, keep, _about_line(run))
    publish_stages(states)
    publish_results(run.tree, before)
    result = Result(_outcomes(states), kept, kept, why)
    if kept:
        result.said = f"kept as {kept}"
        report = run.root / ".topwork" / "reports" / f"{kept.replace('/', '-')}.html"
        publish_kept(
            **{keep: f"`{kept}`"},
            look=f"`topwork audit verify {kept}`, `dvc exp apply {kept}`",
            **({"report": f"`{report}`"} if report.is_file() else {}),
        )
    else:
        earlier = run.earlier()
        result.record = run.name_of(earlier) if earlier else run.commit[:7]
        result.said = f"nothing has changed: as {result.record}"
    if push and (problem := _push(run)):
        # what was computed is kept here; the next run of the same pushes it
        result.why = result.why or problem
    run.close()
    return result


def promoted(root: Path, commands: Commands, name: str, push: bool) -> str:
    """Make a kept result's detector the champion, or say why it isn't; that fails no run."""
    before = set(git(root, "tag", "--list").split())
    line = [sys.executable, "-m", "topwork.cli", "champion", "promote", name]
    with commands.run(line, root, command_environment(root)) as command:
        lines = command.output.read().strip().splitlines() or ["no output"]
        failed = command.wait()
    outcome = lines[-1].removeprefix("error: ") if failed else lines[0]
    publish_champion(outcome)
    if failed:
        return outcome
    tags = sorted(set(git(root, "tag", "--list").split()) - before)
    if push and tags:
        try:
            _network("git push of tags", lambda: git(root, "push", "--quiet", GIT_REMOTE, *tags))
        except RunError as error:
            return f"{outcome}; its tags weren't pushed: {error}"
    return outcome


def bring_data(run: Isolated, pull: bool | None) -> None:
    """Check out what git's records name, from the shared cache, and pull what it lacks.

    Raises:
        RunError: data that no stage makes isn't to be had; which, and what to do.
    """
    dvc(run.tree, run.environment, "checkout", "--quiet", "--force", "--allow-missing")
    run.take_data()
    if pull is not False and run.has_remote and (pull or run.absent()):
        try:
            _network(
                "dvc pull",
                lambda: dvc(
                    run.tree, run.environment, "pull", "--quiet", "--force", "--allow-missing"
                ),
            )
        except RunError as error:
            if run.absent(only_sources=True):
                raise
            get_run_logger().warning("%s; the stages make what is missing", error)
    if absent := run.absent(only_sources=True):
        remote = (
            "and not on its DVC remote; `dvc push` it where it is"
            if run.has_remote and pull is not False
            else "and no DVC remote was asked; `dvc remote add`, and `dvc push` it where it is"
        )
        raise RunError(
            f"{', '.join(absent)} at {run.commit[:7]}: not in this machine's DVC cache, {remote}."
        )


def _push(run: Isolated) -> str:
    """Push outs and record; why it failed, or nothing."""
    if not run.has_remote:
        return "push: no DVC remote is set; `dvc remote add --default NAME URL`"
    try:
        _network("dvc push", lambda: dvc(run.tree, run.environment, "push", "--quiet"))
        refs = [f"{ref}:{ref}" for ref in (run.earlier(), run.run_ref()) if ref]
        if refs:
            _network("git push", lambda: git(run.root, "push", "--quiet", GIT_REMOTE, *refs))
    except RunError as error:
        return f"push: {error}"
    return ""


def _in_place(
    root: Path,
    commands: Commands,
    pull: bool | None,
    push: bool,
    timeout_minutes: float | None,
) -> Result:
    environment = command_environment(root)
    with readable(root):
        if pull:
            _network("dvc pull", lambda: dvc(root, environment, "pull", "--allow-missing"))
        graph = stage_graph(root)
    states = run_stages(root, graph, environment, commands, timeout_minutes)
    publish_stages(states)
    publish_results(root)
    why = next((state.message or "" for state in states.values() if state.is_failed()), "")
    if push:
        _network("dvc push", lambda: dvc(root, environment, "push", "--quiet"))
    result = Result(_outcomes(states), why=why)
    ran = sum(state == "ran" for state in result.stages.values())
    result.said = f"{ran} of {len(graph)} stages ran" if ran else "nothing has changed"
    return result


def run_stages(
    root: Path,
    graph: Mapping[str, list[str]],
    environment: Mapping[str, str],
    commands: Commands,
    timeout_minutes: float | None,
) -> dict[str, State[str]]:
    """Run the stages of a graph; every stage's state, whatever became of the others.

    Raises:
        RunError: the time is up; every command has ended.
    """
    end = time.monotonic() + timeout_minutes * 60 if timeout_minutes else None
    orders = lock_orders(root, graph)
    futures: dict[str, PrefectFuture[Any]] = {}
    for stage, upstream in graph.items():
        named: Task[..., Any] = run_stage.with_options(task_run_name=stage)
        futures[stage] = named.submit(
            stage,
            root,
            environment,
            commands,
            wait_for=[futures[name] for name in upstream],
        )
    for future in futures.values():
        future.wait(None if end is None else max(0.0, end - time.monotonic()))
        if end is not None and time.monotonic() >= end and not future.state.is_final():
            commands.end()
            raise RunError(
                f"the run took more than timeout_minutes ({timeout_minutes:g}) and was ended; the"
                " next run of the same goes on where it was."
            )
    with readable(root):
        keep_order(root, orders)
    return {stage: future.state for stage, future in futures.items()}


@contextmanager
def commands_of_run(commands: Commands) -> Iterator[None]:
    """Leave nothing running, however the run ends."""
    try:
        yield
    finally:
        commands.end()


def _state(result: Result) -> State[dict[str, Any]]:
    if result.why:
        breached = result.why.startswith(f"{GATE}: ")
        error = RunFailed(result)
        return Failed(name="Breached" if breached else "Failed", message=str(error), data=error)
    if set(result.stages.values()) <= {"fresh"} and not result.kept:
        return _unchanged(result.said, result)
    return Completed(message=result.said, data=vars(result))


def _unchanged(message: str, result: Result | None = None) -> State[dict[str, Any]]:
    return Completed(name="Unchanged", message=message, data=vars(result or Result(said=message)))


def _joined_or_skipped(other: Mapping[str, Any]) -> State[dict[str, Any]]:
    """The state of a run that another one's took the place of."""
    if other.get("ended"):
        result = Result(**other["ended"])
        result.said = f"joined {other['name']}: {result.said}"
        return _state(result)
    message = f"skipped: {other['name']} has the project"
    return Completed(name="Skipped", message=message, data=vars(Result(said=message)))


def _outcomes(states: Mapping[str, State[str]]) -> dict[str, str]:
    words = {"Fresh": "fresh", "Completed": "ran", "Failed": "failed", "NotReady": "not reached"}
    return {stage: words.get(str(state.name), "failed") for stage, state in states.items()}


def _about(run: Isolated) -> str:
    """What is new in a run, in a few words."""
    changes = [f"{key}={value}" for key, value in run.params.items()]
    changes += [f"{target} as it is now" for target in run.data]
    subject = git(run.root, "log", "-1", "--format=%s", run.commit)
    return ", ".join(changes) or (subject if len(subject) <= 50 else f"{subject[:47]}...")


def _about_line(run: Isolated) -> str:
    changes = [f"{key}={value}" for key, value in run.params.items()] + list(run.data)
    return f"{run.label} of {run.commit[:7]}{' with ' + ', '.join(changes) if changes else ''}"


def _metrics_of(run: Isolated) -> dict[str, Any]:
    try:
        found = json.loads(git(run.tree, "show", "HEAD:./out/metrics.json"))
    except (RunError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _new_data(run: Isolated) -> bool:
    return _data_of(run) != _remembered(run.root)


def _data_of(run: Isolated) -> dict[str, str]:
    """What all data tracked by .dvc files is: .dvc file -> what git has of it, or its content."""
    listing = git(run.root, "ls-tree", "-r", run.commit, "--", ".").splitlines()
    found = {
        path: about.split()[2]
        for about, _, path in (line.partition("\t") for line in listing)
        if path.endswith(".dvc")
    }
    return found | dict(run.data)


def _remembered(root: Path) -> dict[str, str] | None:
    try:
        found: dict[str, str] = json.loads((folder(root) / "data.json").read_text())
    except (OSError, ValueError):
        return None
    return found


def _remember_data(run: Isolated) -> None:
    (folder(run.root) / "data.json").write_text(json.dumps(_data_of(run)), encoding="utf-8")


def now() -> str:
    """The time for a run's name, in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M")


def run_id() -> UUID | None:
    """This flow run's id; None outside of one."""
    return UUID(flow_run.id) if flow_run.id else None


def main(argv: list[str] | None = None) -> int:
    """Run the flow on the project of the current folder; exit code 1 where a stage failed."""
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description="The pipeline.")
    parser.add_argument("--revision", help="commit, tag or branch; without: in place")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="params")
    parser.add_argument("--data", choices=["committed", "current"], default="committed")
    parser.add_argument("--only-new-data", action="store_true")
    parser.add_argument("--keep", choices=["experiment", "branch"], default="experiment")
    parser.add_argument("--collision", choices=get_args(Collision), default="wait")
    parser.add_argument("--label", default="run")
    parser.add_argument("--timeout-minutes", type=float)
    parser.add_argument("--keep-days", type=float, default=14)
    parser.add_argument("--pull", action="store_true", default=None)
    parser.add_argument("--push", action="store_true")
    parser.add_argument("--promote", action="store_true")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    values = vars(parser.parse_args(argv))
    as_json: bool = values.pop("json")
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    params = dict(text.partition("=")[::2] for text in values.pop("params"))
    typed = {key: yaml.load(value) for key, value in params.items()}
    state: State[Any] = pipeline(**values, params=typed or None, return_state=True)
    if as_json:
        about = {"state": state.name, "message": state.message}
        found = state.result(raise_on_failure=False)
        if isinstance(found, RunFailed):
            found = vars(found.result)
        print(json.dumps(about | (found if isinstance(found, dict) else {})))
        return int(not state.is_completed())
    if not state.is_completed():
        print(f"error: {state.message}", file=sys.stderr)
        return 1
    result: dict[str, Any] = state.result()
    for stage, outcome in result["stages"].items():
        print(f"{stage}: {outcome}")
    print(state.message or result["said"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
