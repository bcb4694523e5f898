"""A sweep: trials side by side, each an experiment; a cluster's worker that dies loses nothing."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from conftest import done
from flows_tiny import WEIGHTS, Served, epoch_mark, until, weights

pytestmark = pytest.mark.long


def start(tiny: Path, served: Served, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows.sweep", *words],
        cwd=tiny,
        env=served.client_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def experiments(tiny: Path) -> list[str]:
    return done(tiny, "dvc", "exp", "list", "--name-only").split()


def test_trials_are_experiments_side_by_side(tiny: Path, served: Served) -> None:
    served.pace.write_text("0.3")
    sweep = start(tiny, served, "--set", "finetune.seed=1,2", "--set", "finetune.lr=0.01,0.5")
    trees = tiny / ".topwork" / "worktrees"
    until(lambda: trees.is_dir() and len(list(trees.iterdir())) == 2, 120, "two at a time")
    out, err = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, err[-3000:]
    lines = out.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("finetune.seed=1, finetune.lr=0.01: kept as sweep-")
    assert "finetune.seed=1, finetune.lr=0.5: gate: contract breached" in lines[1]
    assert lines[-1].startswith("4 of 4 trials have a result")
    names = experiments(tiny)
    assert len(names) == 4
    assert {weights(tiny, name) for name in names} == {WEIGHTS}, out
    (run,) = served.post(
        "/flow_runs/filter", flow_runs={"name": {"like_": "sweep: 4 sets of params"}}
    )
    table = served.artifacts(run["id"])["sweep"]
    assert table.count("| Completed | 0.1 |") == 2
    assert table.count("| Breached | 5 |") == 2
    assert not list(trees.iterdir())


def test_a_missing_integration_is_reported(tiny: Path, served: Served) -> None:
    if importlib.util.find_spec("prefect_ray"):
        pytest.skip("prefect-ray is installed")
    sweep = start(tiny, served, "--set", "finetune.seed=1", "--runner", "ray")
    _, err = sweep.communicate(timeout=120)
    assert sweep.returncode == 1
    assert err.splitlines()[-1].endswith(
        "needs its integration: python -m pip install 'topwork[ray]'"
    )


@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_a_sweep_survives_the_death_of_a_cluster_worker(
    tiny: Path, served: Served, runner: str
) -> None:
    if not importlib.util.find_spec(f"prefect_{runner}"):
        pytest.skip(f"no prefect-{runner}: pip install 'topwork[{runner}]'")
    served.pace.write_text("1")
    sweep = start(tiny, served, "--set", "finetune.seed=1,2", "--runner", runner)
    trees = tiny / ".topwork" / "worktrees"
    until(lambda: trees.is_dir() and len(list(trees.iterdir())) == 2, 180, "two at a time")
    until(epoch_mark(tiny, 1, 1).exists, 60, "they train")

    def above_a_trial() -> psutil.Process:
        """The cluster's worker of a trial."""
        for process in psutil.Process(sweep.pid).children(recursive=True):
            if "flows.pipeline" in process.cmdline() and "processes.py" in " ".join(
                process.parent().cmdline()  # type: ignore[union-attr]
            ):
                return process.parents()[1]
        pytest.fail("no trial runs")

    os.kill(above_a_trial().pid, signal.SIGKILL)
    time.sleep(1)
    served.pace.write_text("0")
    out, err = sweep.communicate(timeout=400)
    assert sweep.returncode == 0, err[-3000:]
    assert out.splitlines()[-1].startswith("2 of 2 trials have a result")
    assert {weights(tiny, name) for name in experiments(tiny)} == {WEIGHTS}
