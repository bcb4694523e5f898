"""Deterministic RoI pooling that fits into memory.

With deterministic algorithms on CUDA, torchvision's `roi_align` gathers every sample of every
region at once, which can take tens of gigabytes (pytorch/vision issues 8168, 7457). Here regions
are pooled a few at a time, and each group's intermediate tensors are computed again in the backward
pass instead of being kept: the same numbers, in bounded memory.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from topwork.detectors.families import Family

REGIONS = 64


def pool_in_groups(model: nn.Module, family: Family) -> None:
    """Make a two-stage detector pool its regions in groups, in place; other detectors are left as
    they are.
    """
    pools = family.two_stage.pools if family.two_stage else ()
    for path, module in model.named_modules():
        if path in pools:
            module.forward = _Groups(module.forward)


class _Groups:
    """Forward of torchvision's MultiScaleRoIAlign, some regions of one image at a time."""

    def __init__(self, whole: Any) -> None:
        self.whole = whole

    def __call__(
        self, features: dict[str, Tensor], boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        pooled = []
        for number, (own, size) in enumerate(zip(boxes, sizes, strict=True)):
            maps = {name: value[number : number + 1] for name, value in features.items()}
            pooled += [
                checkpoint(
                    self.whole, maps, [group], [size], use_reentrant=False, preserve_rng_state=False
                )
                for group in torch.split(own, REGIONS)
            ]
        return torch.cat(pooled) if pooled else self.whole(features, list(boxes), list(sizes))
