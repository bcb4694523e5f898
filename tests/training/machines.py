"""Machines that train together: launchers of torchrun on loopback, each with its own folder."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from topwork.files import sha256_file
from topwork.params.document import Params

SOURCE = Path(__file__).parents[2] / "src"
WEIGHTS = "out/finetune/weights.safetensors"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}


class Machines:
    """Folders that share nothing, with the same project in each."""

    def __init__(self, folder: Path, params: Params) -> None:
        self.params = params
        self.folders = [folder / "first", folder / "second"]
        for other in self.folders[1:]:
            shutil.copytree(self.folders[0], other)

    def write(self, folder: Path, nodes: int, processes: int) -> None:
        """The params of one machine; what was made there is removed."""
        raw = self.params.model_dump(
            mode="json",
            exclude={"dataset": {"train": {"images", "subset"}}, "demo": True},
            exclude_defaults=True,
        )
        raw["dataset"] = {"root": "data", "train": {"annotations": "train.json"}}
        raw["finetune"].update(nodes=nodes, processes=processes)
        raw["runtime"].update(workers=0, checkpoint_steps=1)
        (folder / "params.yaml").write_text(json.dumps(raw))
        shutil.rmtree(folder / "out/finetune", ignore_errors=True)

    def start(self, nodes: int, processes: int) -> "list[subprocess.Popen[bytes]]":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = []
        for rank, folder in enumerate(self.folders[:nodes]):
            self.write(folder, nodes, processes)
            options = f"--nnodes {nodes} --nproc-per-node {processes} --node-rank {rank}"
            address = f"--master-addr 127.0.0.1 --master-port {port}"
            command = f"{options} {address} -m topwork.stages.finetune".split()
            with (folder / "log.txt").open("ab") as log:
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "torch.distributed.run", *command],
                        cwd=folder,
                        env=environment(),
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
