"""Learning rates by step: warm-up, then cosine or constant; the trunk's own warm-up begins when
it's thawed.
"""

import math
from dataclasses import dataclass

import torch

from topwork.params.finetune import FinetuneParams


@dataclass(frozen=True)
class Schedule:
    """Learning rates of a run.

    Attributes:
        params: finetune.
        steps: of an epoch.
    """

    params: FinetuneParams
    steps: int

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.steps * self.params.epochs

    def head(self, step: int) -> float:
        """The head's learning rate at a step of the whole run, counted from 0."""
        return self.params.lr * self._warm(step) * self._decay(step)

    def trunk(self, step: int) -> float:
        """The trunk's learning rate; 0 while it's frozen."""
        since = step - self.steps * self.params.head_epochs
        return (
            self.params.lr * self.params.trunk_lr * self._warm(since) * self._decay(step)
            if since >= 0
            else 0.0
        )

    def _warm(self, step: int) -> float:
        warmup = min(self.params.warmup_steps, max(1, self.total // 4))
        return min(1.0, (step + 1) / warmup) if warmup else 1.0

    def _decay(self, step: int) -> float:
        if self.params.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * step / max(1, self.total)))

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the learning rates of a step."""
        for group in optimizer.param_groups:
            group["lr"] = self.trunk(step) if group["trunk"] else self.head(step)
