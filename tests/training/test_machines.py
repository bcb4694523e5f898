"""Training over machines: two launchers of torchrun on loopback, each with a folder of its own."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from topwork.errors import TrainingError
from topwork.files import sha256_file
from topwork.params.document import Params
from topwork.stages import finetune
from training.tiny import make_project

SOURCE = Path(__file__).parents[2] / "src"
WEIGHTS = "out/finetune/weights.safetensors"


class Machines:
    """Folders that share nothing, with the same project in each."""

    def __init__(self, folder: Path, params: Params) -> None:
        self.params = params
        self.folders = [folder / "first", folder / "second"]
        for other in self.folders[1:]:
            shutil.copytree(self.folders[0], other)

    def start(self, nodes: int, processes: int) -> "list[subprocess.Popen[bytes]]":
        raw = self.params.model_dump(
            mode="json",
            exclude={"dataset": {"train": {"images", "subset"}}, "demo": True},
            exclude_defaults=True,
        )
        raw["dataset"] = {"root": "data", "train": {"annotations": "train.json"}}
        raw["finetune"].update(nodes=nodes, processes=processes)
        raw["runtime"].update(workers=0, checkpoint_steps=1)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = []
        for rank, folder in enumerate(self.folders[:nodes]):
            (folder / "params.yaml").write_text(json.dumps(raw))
            shutil.rmtree(folder / "out/finetune", ignore_errors=True)
            options = f"--nnodes {nodes} --nproc-per-node {processes} --node-rank {rank}"
            address = f"--master-addr 127.0.0.1 --master-port {port}"
            command = f"{options} {address} -m topwork.stages.finetune".split()
            with (folder / "log.txt").open("ab") as log:
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "torch.distributed.run", *command],
                        cwd=folder,
                        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
                        stdout=log,
                        stderr=log,
                    )
                )
        return started

    def run(self, nodes: int, processes: int) -> str:
        """SHA-256 of the result."""
        codes = [process.wait(240) for process in self.start(nodes, processes)]
        assert codes == [0] * nodes, self.log
        assert not (self.folders[1] / WEIGHTS).exists()
        return sha256_file(self.folders[0] / WEIGHTS)

    @property
    def log(self) -> str:
        return "".join(file.read_text() for file in self.folders[0].parent.glob("*/log.txt"))


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
