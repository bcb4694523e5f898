"""What a second branch costs: parameters and floating-point operations, before anything trains."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from topwork.classes import ClassPlan
from topwork.detectors.builders import Builder, load
from topwork.surgery.branch import branch
from topwork.weights.format import Weights

_SIDE = 640
"""Pixels of the image that operations are counted on; most detectors resize it to their own."""


@dataclass(frozen=True)
class BranchCost:
    """A detector and the same with one branch more.

    Attributes:
        cut: last module that both use; None where nothing is shared.
        parameters: before and after.
        flops: of one image of 640 x 640 pixels, before and after (multiplications and additions).
    """

    cut: str | None
    parameters: tuple[int, int]
    flops: tuple[int, int]

    @property
    def sentence(self) -> str:
        """All of it in words."""
        before, after = (f"{count / 1e6:.1f} M" for count in self.parameters)
        one, other = (f"{count / 1e9:.2f}" for count in self.flops)
        return (
            "second branch (finetune.protect: branch): its own from behind"
            f" {self.cut or 'the pixels'} on; parameters {before} -> {after}"
            f" (x{self.parameters[1] / self.parameters[0]:.2f}), GFLOP an image {one} -> {other}"
            f" (x{self.flops[1] / self.flops[0]:.2f})"
        )


def cost_of(
    weights: Weights,
    plan: ClassPlan,
    *,
    cut: str = "auto",
    mix: float = 0.0,
    builder: Builder | None = None,
) -> BranchCost:
    """Count both; the detectors run once, on one grey image.

    Raises:
        SurgeryError: as `branch`.
    """
    both = branch(weights, plan, cut=cut, mix=mix, builder=builder)
    assert both.branches is not None
    chosen = both.branches.scions[-1].cut if both.branches.scions else None
    before, after = (load(one, builder=builder or one.builder) for one in (weights, both))
    return BranchCost(
        chosen, (parameters(before), parameters(after)), (flops(before), flops(after))
    )


def parameters(model: nn.Module) -> int:
    """Numbers that a detector is made of, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def flops(model: nn.Module) -> int:
    """Floating-point operations for one image."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model([torch.full((3, _SIDE, _SIDE), 0.5)])
    return int(counter.get_total_flops())
