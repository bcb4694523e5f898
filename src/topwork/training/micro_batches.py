"""The gradients of one step, in as many micro-batches as memory needs."""

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from topwork.errors import TrainingError
from topwork.training.batches import ProcessRank
from topwork.training.dataset import Target
from topwork.training.device import Device
from topwork.training.distributed import mean_over_processes
from topwork.training.state import State
from topwork.training.step_terms import StepTerms


def gradients(
    module: nn.Module,
    images: list[Tensor],
    targets: list[Target],
    state: State,
    device: Device,
    process: ProcessRank,
) -> StepTerms:
    """Add up the micro-batches' gradients; returns the loss terms of the step.

    Args:
        module: images and targets in, loss terms out; wrapped by DDP where there are more
            processes.
        images: of the step, on any device.
        targets: theirs.
        state: how many micro-batches there are, and the scaler.
        device: where to compute.
        process: which process this is.
    """
    size = math.ceil(len(images) / state.accumulate)
    means: dict[str, Tensor] = {}
    found = []
    for start in range(0, len(images), size):
        micro_batch = slice(start, start + size)
        weight = len(images[micro_batch]) / len(images)
        last = start + size >= len(images)
        with nullcontext() if last or process.world == 1 else module.no_sync():  # type: ignore[operator]
            with device.autocast():
                terms = module(device.to(images[micro_batch]), device.to(targets[micro_batch]))
                total = torch.stack([term.float() for term in terms.values()]).sum() * weight
            state.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        terms = {name: term.detach().float() for name, term in terms.items()}
        found.append(torch.stack(list(terms.values())))
        means = {name: means.get(name, 0.0) + term * weight for name, term in terms.items()}
    return StepTerms.of(mean_over_processes(means, process), found)


def take_less_memory(
    state: State, images: int, device: Device, process: ProcessRank, error: Exception
) -> str:
    """Halve the micro-batch; returns the note of it.

    Args:
        state: of the run; its gradients are freed.
        images: of the step.
        device: whose memory it is.
        process: which process this is.
        error: the device's.

    Raises:
        TrainingError: a micro-batch is one image already, or there are other processes, which
            wouldn't take as many.
    """
    if process.world > 1 or state.accumulate >= images:
        raise TrainingError(
            f"finetune: out of memory with {math.ceil(images / state.accumulate)} images at a"
            f" time on {device.device} ({error}). Lower finetune.batch_size, raise"
            " finetune.accumulate, or choose a smaller detector."
        ) from error
    state.optimizer.zero_grad(set_to_none=True)
    if device.device.type == "cuda":
        torch.cuda.empty_cache()
    state.accumulate = min(state.accumulate * 2, images)
    return (
        f"out of memory at epoch {state.epoch + 1}, step {state.step + 1}: from there on each"
        f" step is made of {state.accumulate} micro-batches"
    )
