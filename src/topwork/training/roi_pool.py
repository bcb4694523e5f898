"""RoI pooling with a gradient of our own: the same at every run on a GPU, and quick on a CPU.

torchvision's own gradient adds up in any order on CUDA. With deterministic algorithms it therefore
falls back to a Python implementation that gathers every sample of every region at once, is compiled
at first use, and takes minutes and tens of gigabytes (pytorch/vision issues 8168, 7457). On a CPU
it adds number by number in one thread, and takes two fifths of a step of a small Faster R-CNN.

But bilinear pooling is linear and separable: a region is `Y @ map @ X.T`, with a row of
interpolation weights for each of its bins. So its gradient is `Y.T @ gradient @ X`, added up over
the regions: two matrix products, whose order is fixed. The forward pass is torchvision's kernel,
which adds up in a fixed order as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchvision.ops import MultiScaleRoIAlign, poolers

from topwork.detectors.families import Family

REGIONS = 128
"""Regions whose gradients are added up at once: some 250 MB of a map of 200 x 270 with 256
channels.
"""
LARGEST_ON_CPU = 100 * 100
"""Places of a map up to which the products are quicker there than torchvision's kernel, whose time
depends on the regions alone (256 of them, one thread: 10 x 10 27 against 175 ms, 40 x 40 66 against
181, 100 x 100 210 against 213, 200 x 200 491 against 298).
"""


def replace_pool_gradient(model: nn.Module, family: Family) -> None:
    """Give a two-stage detector's region pooling our gradient, in place, in each of its branches;
    other detectors are left as they are.
    """
    pools = tuple(f".{path}" for path in family.two_stage.pools) if family.two_stage else ()
    for path, module in model.named_modules():
        if f".{path}".endswith(pools) and isinstance(module, MultiScaleRoIAlign):
            module.forward = _Pool(module.forward)


class _Pool:
    """Forward of torchvision's MultiScaleRoIAlign, with our `roi_align` in it."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, *inputs: Any) -> Tensor:
        with _own_roi_align():
            pooled: Tensor = self.forward(*inputs)
        return pooled


@contextmanager
def _own_roi_align() -> Iterator[None]:
    theirs = poolers.roi_align
    poolers.roi_align = roi_align
    try:
        yield
    finally:
        poolers.roi_align = theirs


def roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
) -> Tensor:
    """As `torchvision.ops.roi_align`, with our gradient.

    Args:
        features: float[N, C, H, W].
        rois: float[K, 5]: image, x1, y1, x2, y2 in pixels of the image.
        output_size: (P, Q).
        spatial_scale: of the map over the image.
        sampling_ratio: samples of a bin in each direction; below 1, as many as the bin has pixels.

    Returns:
        float[K, C, P, Q].
    """
    pooled: Tensor = _RoIAlign.apply(features, rois, output_size, spatial_scale, sampling_ratio)
    return pooled


class _RoIAlign(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        rois: Tensor,
        output_size: tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
    ) -> Tensor:
        ctx.save_for_backward(rois)
        ctx.shape, ctx.dtype = features.shape, features.dtype
        ctx.scale, ctx.sampling = spatial_scale, sampling_ratio
        pooled: Tensor = torch.ops.torchvision.roi_align(
            features, rois, spatial_scale, *output_size, sampling_ratio, False
        )
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pooled: Tensor) -> tuple[Tensor | None, ...]:
        (rois,) = ctx.saved_tensors
        images, channels, height, width = ctx.shape
        if pooled.device.type == "cpu" and height * width > LARGEST_ON_CPU:
            gradient = torch.ops.torchvision._roi_align_backward(
                pooled.float().contiguous(),
                rois.float(),
                ctx.scale,
                *pooled.shape[2:],
                *ctx.shape,
                ctx.sampling,
                False,
            )
            return gradient.to(ctx.dtype), None, None, None, None
        rows = _weights(rois[:, 2], rois[:, 4], ctx.scale, pooled.shape[2], height, ctx.sampling)
        columns = _weights(rois[:, 1], rois[:, 3], ctx.scale, pooled.shape[3], width, ctx.sampling)
        gradient = torch.zeros(
            (images, height, channels * width), dtype=torch.float32, device=pooled.device
        )
        counts = (rois[:, :1] == torch.arange(images, device=rois.device)).sum(0).tolist()
        with torch.autocast(pooled.device.type, enabled=False):
            for group in _groups(counts):
                image, found = group
                # [K, P, C, W]: what each row of bins gives to the columns of the map
                spread = pooled[found].float().transpose(1, 2) @ columns[found].unsqueeze(1)
                gradient[image].addmm_(
                    rows[found].flatten(0, 1).T, spread.reshape(-1, channels * width)
                )
        result = gradient.view(images, height, channels, width).transpose(1, 2)
        return result.to(ctx.dtype), None, None, None, None


def _groups(counts: list[int]) -> Iterator[tuple[int, slice]]:
    """Slices of at most REGIONS regions of one image each; an image's regions follow each other."""
    first = 0
    for image, count in enumerate(counts):
        for start in range(first, first + count, REGIONS):
            yield image, slice(start, min(start + REGIONS, first + count))
        first += count


def _weights(
    low: Tensor, high: Tensor, scale: float, bins: int, size: int, sampling: int
) -> Tensor:
    """Interpolation weights of one direction: float[K, bins, size], how much of each row (or
    column) of the map goes into each bin.

    Args:
        low: float[K], where the regions begin, in pixels of the image.
        high: float[K], where they end.
        scale: of the map over the image.
        bins: of a region.
        size: of the map.
        sampling: samples of a bin; below 1, as many as it has pixels.
    """
    start = low.float() * scale
    length = (high.float() * scale - start).clamp(min=1.0)
    step = length / bins
    samples = (
        torch.full_like(length, sampling) if sampling > 0 else torch.ceil(length / bins)
    ).unsqueeze(1)
    most = sampling if sampling > 0 else int(samples.amax()) if len(samples) else 1
    number = torch.arange(most, device=low.device)
    # [K, bins, samples]
    place = (
        start[:, None, None]
        + torch.arange(bins, device=low.device)[None, :, None] * step[:, None, None]
        + ((number + 0.5) / samples * step[:, None])[:, None, :]
    )
    counted = (number < samples)[:, None, :] & (place >= -1) & (place <= size)
    place = place.clamp(0, size - 1)
    weights = low.new_zeros((len(low), bins, size), dtype=torch.float32)
    pixels = torch.arange(size, device=low.device)
    for sample in range(most):  # a few; all at once would take their number times the memory
        near = 1 - (place[:, :, sample, None] - pixels).abs()
        weights += near.clamp(min=0) * counted[:, :, sample, None]
    return weights / samples[:, :, None]
