"""Features of a frozen trunk, computed once.

With batch norm at rest and the trunk frozen, an image's features depend on the image alone; with no
augmentation but mirroring there are two variants of each. They're computed one image at a time, so
that their bits don't depend on which batch asks first, and kept on the device.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from topwork.params.finetune import FinetuneParams
from topwork.training.dataset import DetectionDataset, Key, Target, Variant
from topwork.training.device import Device

MIN_EPOCHS = 3  # with a frozen trunk; below that nearly every variant would be asked for once


def frozen_epochs(params: FinetuneParams) -> int:
    """Epochs in which the trunk doesn't learn."""
    return params.epochs if params.trunk_lr == 0 else params.head_epochs


class FeatureBank:
    """Features and resized targets by variant, for detectors that resize every image to one size
    (SSD, SSDLite).

    Args:
        model: the detector in training.
        dataset: whose images are looked at.
        device: where features are computed and kept.
    """

    def __init__(self, model: Any, dataset: DetectionDataset, device: Device) -> None:
        self.model, self.dataset, self.device = model, dataset, device
        self._kept: dict[Variant, tuple[OrderedDict[str, Tensor], Target]] = {}
        self._size: tuple[int, int] = model.transform.fixed_size[::-1]  # (H, W)

    @classmethod
    def where_it_pays(
        cls, model: Any, dataset: DetectionDataset, device: Device, params: FinetuneParams
    ) -> "FeatureBank | None":
        """A bank, if the trunk is frozen long enough, the samples allow it and memory suffices;
        else None.
        """
        sized = getattr(getattr(model, "transform", None), "fixed_size", None) is not None
        if (
            frozen_epochs(params) < MIN_EPOCHS
            or not params.freeze_batch_norm
            or params.compile
            or not dataset.steady
            or not sized
        ):
            return None
        if any(
            isinstance(module, nn.modules.dropout._DropoutNd) for module in model.backbone.modules()
        ):
            return None
        bank = cls(model, dataset, device)
        features, _ = bank._of((0, 0))
        needed = (
            sum(tensor.nbytes for tensor in features.values()) * len(dataset) * dataset.variants
        )
        return bank if needed <= params.feature_cache_mib << 20 else None

    def targets(self, keys: Sequence[Key]) -> tuple[list[Tensor], list[Target]]:
        """Stand-in images without pixels, and the resized targets of a batch."""
        stand_in = torch.zeros(1, device=self.device.device).expand(3, *self._size)
        return [stand_in] * len(keys), [self._of(key)[1] for key in keys]

    @contextmanager
    def mounted(self, targets: Sequence[Target]) -> Iterator[None]:
        """Within the block the detector's forward takes these targets' features from the bank
        instead of computing them.
        """
        stored = [self._kept[target["variant"]][0] for target in targets]
        features = OrderedDict(
            (name, torch.stack([item[name] for item in stored])) for name in stored[0]
        )
        pixels = torch.empty((1, 3, 1, 1), device=self.device.device).expand(
            len(targets), 3, *self._size
        )
        images = ImageList(pixels, [self._size] * len(targets))
        transform, trunk = self.model.transform, self.model.backbone
        transform.forward = lambda _, given: (images, given)
        trunk.forward = lambda _: features
        try:
            yield
        finally:
            del transform.forward, trunk.forward

    @torch.no_grad()
    def _of(self, key: Key) -> tuple["OrderedDict[str, Tensor]", Target]:
        variant = self.dataset.variant(*key)
        if variant not in self._kept:
            image, target = self.dataset[key]
            pixels = self.device.to(image).float() / 255
            with self.device.autocast():
                images, (resized,) = self.model.transform([pixels], [self.device.to(target)])
                found = self.model.backbone(images.tensors)
            maps = found if isinstance(found, dict) else {"0": found}
            self._kept[variant] = (
                OrderedDict((name, value[0].clone()) for name, value in maps.items()),
                resized,
            )
        return self._kept[variant]
