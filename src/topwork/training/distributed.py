"""Several training processes: one a GPU, started by torchrun's launcher, gradients averaged by
DDP.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn

from topwork.errors import TrainingError
from topwork.training.batches import Share

RENDEZVOUS = "127.0.0.1:0"


def share_of_environment() -> Share:
    """Which process of how many this is, from the environment that torchrun sets; alone without
    it.
    """
    return Share(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def process_group(share: Share, device: torch.device) -> Iterator[None]:
    """Join the other processes for the block."""
    if share.world == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
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
        told = first.message if isinstance(first.message, str) else first.message.get("message", "")
        raise TrainingError(
            f"finetune: training process {first.local_rank} of {processes} failed:"
            f" {told or 'see its output above'}"
        ) from error


def wrap(objective: nn.Module, share: Share, device: torch.device) -> nn.Module:
    """DDP around the objective where there are several processes; to be made anew when other
    tensors begin to learn.
    """
    if share.world == 1:
        return objective
    return nn.parallel.DistributedDataParallel(
        objective,
        device_ids=[device.index] if device.type == "cuda" else None,
        forward_sync_buffers=False,
        gradient_as_bucket_view=False,
    )


def told_by_first(value: Any, share: Share) -> Any:
    """The value that process 0 has, in every process."""
    if share.world == 1:
        return value
    held = [value]
    distributed.broadcast_object_list(held, src=0)
    return held[0]


def mean_over_processes(terms: dict[str, torch.Tensor], share: Share) -> dict[str, torch.Tensor]:
    """Loss terms averaged over processes, for telling."""
    if share.world == 1 or not terms:
        return terms
    values = torch.stack([value.detach().float() for value in terms.values()])
    distributed.all_reduce(values)
    return dict(zip(terms, values / share.world, strict=True))
