"""A run's state: all that changes while it trains, as one checkpoint holds it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from topwork.training.checkpoint import restore_rng, rng_states


@dataclass
class State:
    """Model, optimizer, scaler, moving average, position and history.

    Attributes:
        model: the detector in training.
        optimizer: with its momenta.
        scaler: of gradients; does nothing but in float16.
        average: the moving average of the weights, or None.
        epoch, step: position: the epoch (from 0) and the step inside it that come next.
        accumulate: micro-batches a step; memory may have forced it up.
        history: one row an epoch.
        sums: loss terms added up over the running epoch.
        best: weights of the best validation (early stop only), or None.
        best_map: their mAP.
        stale: validations since.
        notes: messages for the record.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: dict[str, Tensor] | None = None
    epoch: int = 0
    step: int = 0
    accumulate: int = 1
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    best: dict[str, Tensor] | None = None
    best_map: float = -1.0
    stale: int = 0
    notes: list[str] = field(default_factory=list)

    PLAIN = (
        "average",
        "epoch",
        "step",
        "accumulate",
        "history",
        "sums",
        "best",
        "best_map",
        "stale",
        "notes",
    )

    def dump(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": rng_states(),
            **{name: getattr(self, name) for name in self.PLAIN},
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take over a checkpoint."""
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        restore_rng(saved["rng"])
        device = next(self.model.parameters()).device
        for name in self.PLAIN:
            setattr(self, name, _on(saved[name], device))

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move the average towards the model."""
        found = self.model.state_dict()
        if self.average is None:
            self.average = {name: tensor.clone() for name, tensor in found.items()}
        for name, tensor in found.items():
            if tensor.is_floating_point():
                self.average[name].lerp_(tensor, 1 - decay)
            else:
                self.average[name].copy_(tensor)

    def remember_best(self, found: float) -> None:
        """Take in a validation's mAP: keep the weights if it's the best so far."""
        if found > self.best_map:
            self.best = {name: tensor.clone() for name, tensor in self.result().items()}
            self.best_map, self.stale = found, 0
        else:
            self.stale += 1

    def is_stale(self, patience: int | None) -> bool:
        """Whether that many validations were no better than the best; never where it's None."""
        return patience is not None and self.stale >= patience

    def result(self) -> dict[str, Tensor]:
        """The weights that a validation looks at and that training ends with."""
        return self.average if self.average is not None else self.model.state_dict()


def _on(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _on(item, device) for key, item in value.items()}
    return value
