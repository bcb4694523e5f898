"""A sweep: one revision with many sets of params, each an isolated run of its own, spread over
threads, or over the workers of a Dask or a Ray cluster.

    python -m flows.sweep --set finetune.lr=0.0005,0.001 --set finetune.seed=1,2

Each trial is a flow run in a process of its own: it is kept as a DVC experiment, and where its
worker dies, another one goes on with it.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.isolation import RunError, command_environment, commit_of, git
from flows.pipeline import commands_of_run, now, run_id
from flows.processes import Commands, commands_of
from flows.published import cell, figures, name_run, shown
from flows.turns import Turn, alive

Runner = Literal["threads", "dask", "ray"]
Trial = dict[str, Any]
METRICS = 4
"""So many metrics stand in the table of a sweep; the page has all."""


def task_runner(runner: Runner, at_once: int) -> Any:
    """Prefect's task runner.

    Raises:
        RunError: its integration isn't installed; how to.
    """
    from prefect.task_runners import ThreadPoolTaskRunner

    try:
        if runner == "dask":
            from prefect_dask import DaskTaskRunner

            # processes, and threads in none of them: a trial is a process anyway
            return DaskTaskRunner(cluster_kwargs={"n_workers": at_once, "threads_per_worker": 1})
        if runner == "ray":
            from prefect_ray import RayTaskRunner

            return RayTaskRunner(init_kwargs={"num_cpus": at_once})
    except ImportError as error:
        raise RunError(
            f"sweep: runner {runner} needs its integration: python -m pip install"
            f" 'topwork[{runner}]'"
        ) from error
    return ThreadPoolTaskRunner(max_workers=at_once)


@task(cache_policy=NO_CACHE, persist_result=False, retries=1)
def run_trial(
    root: str, commit: str, params: Mapping[str, Any], words: Sequence[str], sweep_id: str
) -> Trial:
    """Run one set of params; what became of it."""
    commands = commands_of(sweep_id)
    line = [sys.executable, "-m", "flows.pipeline", "--revision", commit, "--collision", "beside"]
    for key, value in params.items():
        line += ["--set", f"{key}={json.dumps(value)}"]
    last_line = ""
    folder = Path(root)
    environment = command_environment(folder) | {"PYTHONPATH": _path(folder)}
    with commands.run([*line, "--json", *words], folder, environment) as command:
        for text in filter(None, map(str.rstrip, command.output)):
            get_run_logger().info("%s", text)
            last_line = text
    try:
        found: Trial = json.loads(last_line)
    except ValueError as error:
        # killed, say; the second try goes on in the same worktree
        raise RunError(f"the trial ended without a result: {last_line}") from error
    return found


def _path(root: Path) -> str:
    """The flows of this sweep, for the trials' processes."""
    import os

    before = command_environment(root).get("PYTHONPATH", "")
    return os.pathsep.join(filter(None, [before, str(Path(__file__).parents[1])]))


@flow(name="sweep", persist_result=False)
def sweep(
    sets: list[dict[str, Any]],
    root: Path = Path(),
    revision: str = "HEAD",
    runner: Runner = "threads",
    at_once: int = 2,
    label: str = "sweep",
    pull: bool = False,
    push: bool = False,
) -> State[list[Trial]]:
    """Run a revision with each set of params.

    Args:
        sets: one dictionary a trial: dotted key of params.yaml -> value.
        root: the project.
        revision: what is run.
        runner: what spreads the trials; `dask` and `ray` start a cluster of this machine.
        at_once: so many at a time.
        label: how the experiments' names begin.
        pull: see `flows.pipeline.pipeline`.
        push: see there.

    Returns:
        A state with what became of each trial; `Failed` where one has no result at all.
    """
    root = root.resolve()
    identity = str(run_id())
    commands = commands_of(identity)
    words = ["--label", label, *(["--pull"] if pull else []), *(["--push"] if push else [])]
    with commands_of_run(commands), alive(root, run_id()):
        try:
            commit = commit_of(root, revision)
            name_run(run_id(), f"{now()} {commit[:7]} {label}: {len(sets)} sets of params")
            spread = task_runner(runner, at_once)
            turn = Turn(root, f"sweep {identity}", f"{label} of {commit[:7]}")
            with turn.taken("wait", get_run_logger().info), spread:
                futures = [
                    spread.submit(
                        run_trial.with_options(task_run_name=", ".join(_texts(params))),
                        {
                            "root": str(root),
                            "commit": commit,
                            "params": params,
                            "words": words,
                            "sweep_id": identity,
                        },
                    )
                    for params in sets
                ]
                for future in futures:
                    future.wait()
                states = [future.state for future in futures]
                trials: list[Trial] = [
                    state.result() if state.is_completed() else {"message": state.message}
                    for state in states
                ]
        except RunError as error:
            return Failed(message=str(error))
        _publish(root, sets, trials)
        page = _compare(root, trials, commands)
    lost = [params for params, trial in zip(sets, trials, strict=True) if "record" not in trial]
    summary = f"{len(sets) - len(lost)} of {len(sets)} trials have a result{page}"
    if lost:
        first = next(trial for trial in trials if "record" not in trial)
        return Failed(message=f"{first['message']} ({summary})")
    return Completed(message=summary, data=trials)


def _texts(params: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in params.items()]


def _publish(root: Path, sets: Sequence[Mapping[str, Any]], trials: Sequence[Trial]) -> None:
    """A table: params, state, the first metrics."""
    measured = [_metrics(root, trial) for trial in trials]
    names = list(dict.fromkeys(name for values in measured for name in values))[:METRICS]
    rows = [
        f"| {cell(', '.join(_texts(params)))} | {cell(trial.get('state') or 'no result')} | "
        + " | ".join(f"{values[name]:.4g}" if name in values else "" for name in names)
        + f" | {trial.get('record') or ''} |"
        for params, trial, values in zip(sets, trials, measured, strict=True)
    ]
    head = f"| params | state | {' | '.join(names)} | experiment |"
    with shown():
        create_markdown_artifact(
            "\n".join([head, "| --- " * (3 + len(names)) + "|", *rows]), key="sweep"
        )


def _metrics(root: Path, trial: Trial) -> dict[str, float]:
    from dvc.repo.experiments.refs import EXPS_NAMESPACE

    refs = git(root, "for-each-ref", "--format=%(refname)", EXPS_NAMESPACE, "refs/heads")
    for ref in refs.splitlines():
        if ref.endswith(f"/{trial.get('record')}"):
            try:
                return figures(json.loads(git(root, "show", f"{ref}:./out/metrics.json")))
            except (RunError, ValueError):
                return {}
    return {}


def _compare(root: Path, trials: Sequence[Trial], commands: Commands) -> str:
    """The comparison page of all trials with a result; where it is, for the last sentence."""
    names = list(dict.fromkeys(trial["record"] for trial in trials if trial.get("record")))
    if len(names) < 2:
        return ""
    page = root / ".topwork" / "reports" / f"{names[0]}-and-{len(names) - 1}-more.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    line = [sys.executable, "-m", "topwork.cli", "compare", *names, "--html", str(page)]
    with commands.run(line, root, command_environment(root)) as command:
        output = command.output.read().strip()
        failed = command.wait()
    if failed:
        get_run_logger().warning("no comparison page: %s", output)
        return ""
    get_run_logger().info("%s", output)
    return f"; side by side in {page}"


def main(argv: list[str] | None = None) -> int:
    """Run the product of the values given; exit code 1 where a trial has no result."""
    from ruamel.yaml import YAML

    parser = argparse.ArgumentParser(prog="python -m flows.sweep", description="A sweep.")
    parser.add_argument(
        "--set", action="append", required=True, metavar="KEY=VALUE,VALUE...", dest="grid"
    )
    parser.add_argument("--revision", default="HEAD")
    parser.add_argument("--runner", choices=["threads", "dask", "ray"], default="threads")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--label", default="sweep")
    parser.add_argument("--pull", action="store_true")
    parser.add_argument("--push", action="store_true")
    values = vars(parser.parse_args(argv))
    yaml = YAML(typ="safe", pure=True)
    grid = [text.partition("=")[::2] for text in values.pop("grid")]
    axes = [[(key, yaml.load(value)) for value in texts.split(",")] for key, texts in grid]
    sets = [dict(chosen) for chosen in itertools.product(*axes)]
    state: State[Any] = sweep(sets, **values, return_state=True)
    trials = state.result(raise_on_failure=False)
    for params, trial in zip(sets, trials if isinstance(trials, list) else [], strict=False):
        print(f"{', '.join(_texts(params))}: {trial.get('message')}")
    print(state.message, file=sys.stdout if state.is_completed() else sys.stderr)
    return int(not state.is_completed())


if __name__ == "__main__":
    # a cluster's workers import the task from where it lies
    from flows.sweep import main as imported_main

    raise SystemExit(imported_main())
