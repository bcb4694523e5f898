"""Frozen batch norm, folded into the convolution before it at each forward pass.

A frozen norm multiplies a convolution's output by constants. Multiplying the weights instead gives
the same function and the same gradients (but for rounding), and spares two passes over the feature
maps, forward and backward. The tensors and their names stay as they are.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d


def fold_frozen_norms(model: nn.Module) -> int:
    """Fold every frozen norm that follows a plain convolution, in place; returns how many.

    The norms' tensors must not change any more: they're read once, here.
    """
    pairs = list(_pairs(model))
    for convolution, norm in pairs:
        scale, shift = _affine(norm)
        convolution.forward = _Folded(convolution, scale, shift)  # type: ignore[assignment]
        norm.forward = _unchanged
    return len(pairs)


class _Folded:
    """Forward of a convolution with a norm in it."""

    def __init__(self, convolution: nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
        self.convolution, self.scale, self.shift = convolution, scale.reshape(-1, 1, 1, 1), shift

    def __call__(self, features: Tensor) -> Tensor:
        folded: Tensor = self.convolution._conv_forward(
            features, self.convolution.weight * self.scale, self.shift
        )
        return folded


def _unchanged(features: Tensor) -> Tensor:
    return features


@torch.no_grad()
def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """float[C] factors and summands of a norm in evaluation."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale.clone(), norm.bias - norm.running_mean * scale


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.Module]]:
    """Convolutions and the norms that follow them, where the order of execution is known."""
    for module in model.modules():
        candidates: list[tuple[nn.Module | None, nn.Module | None]] = []
        if isinstance(module, nn.Sequential | IntermediateLayerGetter):
            children = list(module.children())
            candidates = list(pairwise(children))
        elif isinstance(module, BasicBlock | Bottleneck):
            candidates = [
                (getattr(module, f"conv{n}", None), getattr(module, f"bn{n}", None))
                for n in (1, 2, 3)
            ]
        for convolution, norm in candidates:
            if (
                type(convolution) is not nn.Conv2d
                or convolution.bias is not None
                or convolution.padding_mode != "zeros"
            ):
                continue
            if (  # no subclass: it may do more, as timm's BatchNormAct2d does
                isinstance(norm, FrozenBatchNorm2d)
                or (isinstance(norm, nn.BatchNorm2d) and norm.affine and norm.track_running_stats)
            ) and type(norm) in (FrozenBatchNorm2d, nn.BatchNorm2d):
                yield convolution, norm
