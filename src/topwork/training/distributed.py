"""Several training processes: one a GPU, started by torchrun's launcher, gradients averaged by
DDP.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn

from topwork.errors import TrainingError
from topwork.training.batches import ProcessRank

RENDEZVOUS = "127.0.0.1:0"
LONGEST_MEASURE = timedelta(hours=6)
"""How long processes wait for one another. Process 0 measures (the pretrained detector at the
start, validation, each share that is tried) while the others wait for its figures: a Faster R-CNN
at one image a second looks at COCO's 5000 validation images for 84 minutes. By torch's defaults
(10 minutes for NCCL, 30 for others: `init_process_group`, torch 2.14) the run would end there. A
process that died is noticed without it, by its launcher and by gloo's connections; between machines
with NCCL it may take as long as this.
"""


def process_of_environment() -> ProcessRank:
    """Which process of how many this is, from the environment that torchrun sets; without it, the
    only one.
    """
    return ProcessRank(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def process_group(process: ProcessRank, device: torch.device) -> Iterator[None]:
    """Join the other processes for the block."""
    if process.world == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=LONGEST_MEASURE)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def launch(function: Callable[..., Any], processes: int, *arguments: Any) -> None:
    """Run a function in that many new processes and wait for all of them.

    Raises:
        TrainingError: one failed; the others were stopped.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint=RENDEZVOUS,
        run_id="topwork",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, function)(*arguments)
    except ChildFailedError as error:
        first = error.get_first_failure()[1]
        message = (
            first.message if isinstance(first.message, str) else first.message.get("message", "")
        )
        raise TrainingError(
            f"finetune: training process {first.local_rank} of {processes} failed:"
            f" {message or 'see its output above'}"
        ) from error


def wrap(objective: nn.Module, process: ProcessRank, device: torch.device) -> nn.Module:
    """DDP around the objective where there are several processes; to be wrapped again when other
    tensors begin to learn.

    After its first step DDP sorts gradients into new buckets, by when they were ready, unless it
    looks for unused parameters. The place in a bucket decides in which order three or more
    processes are added up, so a resumed run would end in other bits; the sum of two has no order.
    """
    if process.world == 1:
        return objective
    return nn.parallel.DistributedDataParallel(
        objective,
        device_ids=[device.index] if device.type == "cuda" else None,
        forward_sync_buffers=False,
        gradient_as_bucket_view=False,
        find_unused_parameters=process.world > 2,
    )


def broadcast_from_rank0(value: Any, process: ProcessRank) -> Any:
    """The value that process 0 has, in every process."""
    if process.world == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def mean_over_processes(
    terms: dict[str, torch.Tensor], process: ProcessRank
) -> dict[str, torch.Tensor]:
    """Loss terms averaged over processes, for the history and the progress line."""
    if process.world == 1 or not terms:
        return terms
    values = torch.stack([value.detach().float() for value in terms.values()])
    distributed.all_reduce(values)
    return dict(zip(terms, values / process.world, strict=True))
