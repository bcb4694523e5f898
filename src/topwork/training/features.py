"""Features of a frozen trunk, computed once.

With batch norm at rest and the trunk frozen, an image's features depend on the image alone; with no
augmentation but mirroring there are two variants of each. They're computed one image at a time, so
that their bits don't depend on which batch asks first, and kept on the device.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from topwork.detectors.families import Family, feature_maps
from topwork.params.finetune import FinetuneParams
from topwork.training.dataset import DetectionDataset, Key, Target, Variant
from topwork.training.device import Device

MIN_EPOCHS = 3  # with a frozen trunk; below that nearly every variant would be asked for once
_WITHOUT = "the frozen trunk's features aren't kept between epochs, since the detector rules it out"


def frozen_epochs(params: FinetuneParams) -> int:
    """Epochs in which the trunk doesn't learn."""
    return params.epochs if params.trunk_lr == 0 else params.head_epochs


class FeatureBank:
    """Features and resized targets by variant, for detectors that resize every image to one size
    (SSD, SSDLite, EfficientDet).

    Args:
        model: the detector in training.
        family: the detector's.
        dataset: whose images are looked at.
        device: where features are computed and kept.
        size: (H, W) to which the detector resizes.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        dataset: DetectionDataset,
        device: Device,
        size: tuple[int, int],
    ) -> None:
        self.family, self.dataset, self.device, self.size = family, dataset, device, size
        self.transform = family.module(model, family.transform)
        self.trunk = family.module(model, family.backbone)
        self.trunk_draws = False  # whether a forward pass of the trunk drew random numbers
        self._kept: dict[Variant, tuple[OrderedDict[str, Tensor], Target]] = {}

    @classmethod
    def where_it_pays(
        cls,
        model: nn.Module,
        family: Family,
        dataset: DetectionDataset,
        device: Device,
        params: FinetuneParams,
    ) -> "tuple[FeatureBank | None, str | None]":
        """A bank, if the trunk is frozen long enough, the samples allow it and memory suffices;
        else None. And a message, where it's the detector that doesn't allow it.

        Args:
            model: in training mode, its trunk frozen, its batch norms at rest.
            family: the detector's.
            dataset: whose images are looked at.
            device: where features are computed and kept.
            params: finetune.
        """
        if (
            frozen_epochs(params) < MIN_EPOCHS
            or not params.freeze_batch_norm
            or params.compile
            or not dataset.steady
        ):
            return None, None
        if family.input_size is None:
            return None, f"{_WITHOUT}: its family {family.name!r} declares no `input_size`"
        size = family.input_size(model)
        if size is None:
            return None, f"{_WITHOUT}: it doesn't resize every image to one size"
        bank = cls(model, family, dataset, device, size)
        if any(parameter.requires_grad for parameter in bank.trunk.parameters()):
            return None, (
                f"{_WITHOUT}: parameters of its {family.backbone!r} don't belong to the trunk that"
                f" its family {family.name!r} declares, {', '.join(family.trunk)}"
            )
        features, _ = bank._of((0, 0))
        if bank.trunk_draws:
            return None, f"{_WITHOUT}: its trunk draws random numbers (dropout)"
        needed = (
            sum(tensor.nbytes for tensor in features.values()) * len(dataset) * dataset.variants
        )
        return (bank if needed <= params.feature_cache_mib << 20 else None), None

    def targets(self, keys: Sequence[Key]) -> tuple[list[Tensor], list[Target]]:
        """Stand-in images without pixels, and the resized targets of a batch."""
        stand_in = torch.zeros(1, device=self.device.device).expand(3, *self.size)
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
            len(targets), 3, *self.size
        )
        images = ImageList(pixels, [self.size] * len(targets))
        self.transform.forward = lambda _, given: (images, given)
        self.trunk.forward = lambda _: features
        try:
            yield
        finally:
            del self.transform.forward, self.trunk.forward

    @torch.no_grad()
    def _of(self, key: Key) -> tuple["OrderedDict[str, Tensor]", Target]:
        variant = self.dataset.variant(*key)
        if variant not in self._kept:
            image, target = self.dataset[key]
            pixels = self.device.to(image).float() / 255
            with self.device.autocast():
                images, (resized,) = self.transform([pixels], [self.device.to(target)])
                before = _generator_states(self.device.device)
                maps = feature_maps(self.family, self.trunk(images.tensors))
                after = _generator_states(self.device.device)
            self.trunk_draws |= not all(map(torch.equal, before, after))
            self._kept[variant] = (
                OrderedDict((name, value[0].clone()) for name, value in maps.items()),
                resized,
            )
        return self._kept[variant]


def _generator_states(device: torch.device) -> list[Tensor]:
    """States of the generators that a forward pass may draw from."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        module = torch.get_device_module(device)
        states.append(
            module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
        )
    return states
