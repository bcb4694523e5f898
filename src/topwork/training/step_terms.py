"""Loss terms of a step, read without waiting for the device.

A GPU works behind the program that feeds it. Reading a number waits until it has caught up, and
leaves it idle afterwards. So a step's terms are copied while it goes on, and read when the next
step has been handed over.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from topwork.errors import TrainingError
from topwork.training.dataset import DetectionDataset, Key


@dataclass(frozen=True)
class StepTerms:
    """The terms of one step, on their way from the device.

    Attributes:
        names: of the terms.
        values: float[1 + M, names] on the host: their mean over images and processes, then those
            of each of this process's M micro-batches.
        ready: event after the copy; None where the values are there.
    """

    names: tuple[str, ...]
    values: Tensor
    ready: torch.Event | None

    @classmethod
    def of(cls, means: Mapping[str, Tensor], micro_batches: Sequence[Tensor]) -> "StepTerms":
        """Begin to copy.

        Args:
            means: name -> scalar.
            micro_batches: float[names] each, in the order of `means`.
        """
        found = torch.stack([torch.stack(list(means.values())), *micro_batches])
        if found.device.type == "cpu":
            return cls(tuple(means), found, None)
        values = torch.empty(found.shape, pin_memory=True)
        values.copy_(found, non_blocking=True)
        ready = torch.Event(found.device)
        ready.record()
        return cls(tuple(means), values, ready)

    def means(self) -> dict[str, float]:
        """The terms, once they are there."""
        if self.ready is not None:
            self.ready.synchronize()
        return dict(zip(self.names, self.values[0].tolist(), strict=True))

    def first_not_finite(self) -> tuple[int, dict[str, float]] | None:
        """The first micro-batch whose loss isn't finite, and its terms; after `means`."""
        bad = (~torch.isfinite(self.values[1:])).any(dim=1).nonzero()
        if not len(bad):
            return None
        number = int(bad[0, 0])
        return number, dict(zip(self.names, self.values[1 + number].tolist(), strict=True))


@dataclass(frozen=True)
class UnreadStep:
    """A step whose loss terms nobody has read yet.

    Attributes:
        number: of the step, counted through the run.
        keys: of this process's images.
        terms: on their way.
        images: how many the step took in all processes.
    """

    number: int
    keys: Sequence[Key]
    terms: StepTerms
    images: int

    def read(self, dataset: DetectionDataset, steps: int) -> dict[str, float]:
        """The terms' means.

        Args:
            dataset: that the keys belong to.
            steps: an epoch.

        Raises:
            TrainingError: the loss isn't finite; names epoch, step, terms and the micro-batch's
                images.
        """
        means = self.terms.means()
        if bad := self.terms.first_not_finite():
            micro_batch, terms = bad
            size = math.ceil(len(self.keys) / (len(self.terms.values) - 1))
            keys = self.keys[micro_batch * size : (micro_batch + 1) * size]
            images = ", ".join(dataset.name(index) for _, index in keys)
            values = ", ".join(f"{name} {value}" for name, value in terms.items())
            epoch, step = divmod(self.number, steps)
            raise TrainingError(
                f"finetune: the loss isn't finite at epoch {epoch + 1}, step {step + 1}: {values};"
                f" images: {images}. Lower finetune.lr or finetune.clip_norm, or look at these"
                " images' boxes (topwork validate)."
            )
        return means
