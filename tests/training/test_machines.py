"""Training over machines: two launchers of torchrun, killed and started again."""

import time
from pathlib import Path

import psutil
import pytest

from topwork.errors import TrainingError
from topwork.stages import finetune
from training.machines import Machines
from training.tiny import make_project


@pytest.mark.long
def test_two_machines_killed_and_started_again_end_in_the_bits_of_one(tmp_path: Path) -> None:
    machines = Machines(tmp_path, make_project(tmp_path / "first", train=32, epochs=6))
    expected = machines.run(1, 4)
    assert machines.run(2, 2) == expected
    scratch = machines.folders[0] / ".topwork/scratch"
    for victim in (1, 0):
        started = machines.start(2, 2)
        until = time.monotonic() + 120
        while not list(scratch.glob("*/[0-9]*.checkpoint")) and time.monotonic() < until:
            time.sleep(0.01)
        machine = psutil.Process(started[victim].pid)
        for process in (machine, *machine.children(recursive=True)):
            process.kill()
        assert started[1 - victim].wait(240) != 0, machines.log
        assert list(scratch.glob("*/[0-9]*.checkpoint")), machines.log
        assert not list(machines.folders[1].glob(".topwork/scratch/*/*"))
        resumed = machines.log.count("resumed at epoch")
        assert machines.run(2, 2) == expected
        assert machines.log.count("resumed at epoch") == resumed + 1


def test_machines_have_to_be_started_each(tmp_path: Path) -> None:
    params = make_project(tmp_path, nodes=2, processes=3)
    with pytest.raises(TrainingError, match="torchrun --nnodes 2 --nproc-per-node 3 --node-rank 0"):
        finetune.run(params, tmp_path)


def test_another_number_of_processes_than_the_params_say_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = make_project(tmp_path)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match=r"2 training processes were started.* is 1\."):
        finetune.run(params, tmp_path)
