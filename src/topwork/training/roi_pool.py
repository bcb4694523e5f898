"""Deterministic RoI pooling that fits into memory.

With deterministic algorithms on CUDA, torchvision's `roi_align` gathers every sample of every
region at once, which can take tens of gigabytes (pytorch/vision issues 8168, 7457). Here regions
are pooled a few at a time, and each group's intermediate tensors are computed again in the backward
pass instead of being kept: the same numbers, in bounded memory.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

REGIONS = 64


def pool_in_groups(model: Any) -> None:
    """Make a two-stage detector pool its regions in groups, in place; other detectors are left as
    they are.
    """
    heads = getattr(model, "roi_heads", None)
    for name in ("box_roi_pool", "mask_roi_pool", "keypoint_roi_pool"):
        pool = getattr(heads, name, None)
        if pool is not None:
            pool.forward = _Groups(pool.forward)


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
