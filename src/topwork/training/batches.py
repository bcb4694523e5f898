"""Which images make which batch, and the loader that brings them: both decided by keys, neither by
chance or by the number of workers.
"""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from topwork.training.dataset import DetectionDataset, Key, Sample, Target, collate
from topwork.training.seeds import permutation


@dataclass(frozen=True)
class ProcessRank:
    """Which of how many training processes this is; each takes its own images of every step."""

    rank: int = 0
    world: int = 1


def epoch_batches(
    epoch: int,
    *,
    train: int,
    replay: int = 0,
    replay_fraction: float = 0.25,
    batch_size: int = 8,
    seed: int = 0,
    process: ProcessRank = ProcessRank(),
) -> list[list[Key]]:
    """The batches of one epoch for one process: keys (epoch, index); indices from `train` on are
    replayed images.

    A step takes batch_size * world images in the epoch's order, dealt out to the processes in turn;
    the last, incomplete step is taken too, but where a process would go without an image.

    Args:
        epoch: counted from 0; it decides the order.
        train: how many training images there are.
        replay: how many images there are to replay.
        replay_fraction: of a batch, that is replayed; at least one image where there are any.
        batch_size: images a step and process.
        seed: of the run.
        process: which process this is.
    """
    replayed = (
        min(max(1, round(batch_size * replay_fraction)), batch_size - 1)
        if replay and replay_fraction and batch_size > 1
        else 0
    )
    fresh = (batch_size - replayed) * process.world
    order = permutation(train, seed, "order", epoch)
    steps = [order[start : start + fresh] for start in range(0, train, fresh)]
    if len(steps) > 1 and len(steps[-1]) < process.world:
        steps.pop()
    batches = []
    for number, step in enumerate(steps):
        own = step[process.rank :: process.world] or step[:1]
        first = (epoch * len(steps) + number) * replayed * process.world + process.rank * replayed
        again = [train + _replayed(first + offset, replay, seed) for offset in range(replayed)]
        batches.append([(epoch, index) for index in [*own, *again]])
    return batches


def _replayed(position: int, replay: int, seed: int) -> int:
    """The replay set, shuffled again each time it's used up."""
    return permutation(replay, seed, "replay", position // replay)[position % replay]


class _Worker:
    """Set-up of a loader process; a class, so that it can be pickled.

    A SIGTERM to the whole process group is the training process's to answer: it saves, ends, and
    its loaders end with it.
    """

    def __call__(self, _: int) -> None:
        torch.set_num_threads(1)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def loader(
    dataset: DetectionDataset,
    batches: Sequence[Sequence[Key]],
    *,
    workers: int = 1,
    pin_memory: bool = False,
) -> Iterator[tuple[list[torch.Tensor], list[Target]]]:
    """Load batches in order, ahead of time where there are workers."""
    options: dict[str, Any] = {"num_workers": workers}
    if workers:
        options |= {"prefetch_factor": 4, "worker_init_fn": _Worker()}
    source: DataLoader[Sample] = DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=collate,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(0),  # else the loader draws from the global one
        **options,
    )
    return iter(source)
