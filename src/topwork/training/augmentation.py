"""Augmentation: the presets of torchvision's reference recipes, as `transforms.v2`, with boxes kept
valid.

Source: pytorch/vision, references/detection/presets.py. Each preset ends with boxes clipped to the
picture and those without area taken out,
labels and masks with them.
"""

from typing import Any

import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

PRESETS = ("none", "hflip", "multiscale", "ssd", "ssdlite")
FILL = {tv_tensors.Image: (123, 117, 104), "others": 0}
LEAST_SIDE = 1.0  # pixels; a narrower box is what cropping left of one, and says nothing


def augmentation(preset: str) -> nn.Module:
    """The transform of a preset: (tv_tensors.Image uint8[3, H, W], target dict) -> the same two.

    Args:
        preset: `none`; `hflip` (half of the pictures mirrored); `multiscale` (large scale jitter to
            0.5..1.5 times the size, crop, mirror); `ssd` (colours, zoom out, crop by overlap,
            mirror); `ssdlite` (crop by overlap, mirror).

    Raises:
        KeyError: no such preset.
    """
    steps: dict[str, list[nn.Module]] = {
        "none": [],
        "hflip": [v2.RandomHorizontalFlip(0.5)],
        "multiscale": [_OwnSizeJitter(0.5, 1.5), v2.RandomHorizontalFlip(0.5)],
        "ssd": [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill=FILL),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(0.5),
        ],
        "ssdlite": [v2.RandomIoUCrop(), v2.RandomHorizontalFlip(0.5)],
    }
    composed: nn.Module = v2.Compose([*steps[preset], v2.ClampBoundingBoxes(), _SanitizeAll()])
    return composed


def mirrored(image: torch.Tensor, target: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
    """The picture and its target, mirrored left to right; draws nothing."""
    flip = v2.functional.horizontal_flip
    return flip(image), {
        key: flip(value) if isinstance(value, tv_tensors.TVTensor) else value
        for key, value in target.items()
    }


class _SanitizeAll(nn.Module):
    """Takes out boxes without area, and everything that runs parallel to them, through one mask."""

    def forward(
        self, image: torch.Tensor, target: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        boxes = target["boxes"]
        keep = ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_SIDE).all(dim=1)
        if bool(keep.all()):
            return image, target
        parallel = {
            key: value
            for key, value in target.items()
            if isinstance(value, torch.Tensor) and value.shape[:1] == keep.shape
        }
        return image, {
            **target,
            **{
                key: (
                    tv_tensors.wrap(value[keep], like=value)
                    if isinstance(value, tv_tensors.TVTensor)
                    else value[keep]
                )
                for key, value in parallel.items()
            },
        }


class _OwnSizeJitter(nn.Module):
    """Large scale jitter around the picture's own size: the result has the size it came with."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(
        self, image: torch.Tensor, target: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        height, width = image.shape[-2:]
        scale = self.low + (self.high - self.low) * float(torch.rand(()))
        resized = v2.Resize(
            [max(1, round(height * scale)), max(1, round(width * scale))], antialias=True
        )
        crop = v2.RandomCrop([height, width], pad_if_needed=True, fill=FILL)
        result: tuple[torch.Tensor, dict[str, Any]] = crop(*resized(image, target))
        return result
