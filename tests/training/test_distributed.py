"""Several training processes: how long they wait for one another."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from topwork.training.batches import ProcessRank
from topwork.training.distributed import (
    LONGEST_MEASURE,
    launch,
    process_group,
    process_of_environment,
)


def write_timeout(folder: Path) -> None:
    """What a process of a group waits for the others at most, in seconds; in a file of its own."""
    process = process_of_environment()
    with process_group(process, torch.device("cpu")):
        group = distributed.distributed_c10d._get_default_group()
        backend: Any = group._get_backend(torch.device("cpu"))
        found = {"seconds": backend.options._timeout.total_seconds()}
        (folder / f"{process.rank}.json").write_text(json.dumps(found))
        distributed.barrier()


def test_processes_wait_for_the_one_that_measures(tmp_path: Path) -> None:
    """By torch's defaults they would wait 30 minutes, on GPUs 10."""
    launch(write_timeout, 2, tmp_path)
    found = [json.loads((tmp_path / f"{rank}.json").read_text())["seconds"] for rank in (0, 1)]
    assert found == [LONGEST_MEASURE.total_seconds()] * 2
    assert timedelta(hours=1) < LONGEST_MEASURE


def test_so_do_those_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one here: what torch is asked for."""
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.setattr(
        distributed, "init_process_group", lambda *names, **options: asked.append((names, options))
    )
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: asked.append("destroyed"))
    device = torch.device("cuda", 1)
    with process_group(ProcessRank(1, 2), device):
        assert asked == [device, (("nccl",), {"timeout": LONGEST_MEASURE})]
    assert asked[2:] == ["destroyed"]
