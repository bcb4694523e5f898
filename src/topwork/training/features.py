"""What the frozen part of a detector gives, computed once.

That part is the trunk while it doesn't learn, with batch norm at rest; of a detector with branches,
all below the cut of the one that learns. What it gives for an image depends on the image alone;
with no augmentation but mirroring there are two variants of each. They're computed one image at a
time, so that their bits don't depend on which batch asks first, and kept on the device.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from topwork.detectors.branches import Branched
from topwork.detectors.families import Family, feature_maps
from topwork.params.finetune import FinetuneParams
from topwork.training.dataset import DetectionDataset, Key, Target, Variant
from topwork.training.device import Device
from topwork.training.models import learning_part

MIN_EPOCHS = 3  # with a frozen part; below that nearly every variant would be asked for once


def frozen_epochs(params: FinetuneParams) -> int:
    """Epochs in which the part whose features can be kept doesn't learn."""
    never = params.protect == "branch" or params.trunk_lr == 0
    return params.epochs if never else params.head_epochs


class FeatureBank:
    """Features and resized targets by variant, for detectors that resize every image to one size
    (SSD, SSDLite, EfficientDet).

    Args:
        family: the detector's.
        transform: the detector's module that resizes.
        frozen: resized pixels float[1, 3, H, W] -> a feature map, or a dict of them.
        place: whose forward takes what is kept in the place of computing it: a module, and the name
            of its method.
        dataset: whose images are looked at.
        device: where features are computed and kept.
        size: (H, W) to which the detector resizes.
    """

    def __init__(
        self,
        family: Family,
        transform: nn.Module,
        frozen: Callable[[Tensor], Any],
        place: tuple[nn.Module, str],
        dataset: DetectionDataset,
        device: Device,
        size: tuple[int, int],
    ) -> None:
        self.family, self.transform, self.frozen, self.place = family, transform, frozen, place
        self.dataset, self.device, self.size = dataset, device, size
        self.draws = False  # whether a forward pass drew random numbers
        self.single = False  # whether it gives one feature map, not a dict of them
        self._kept: dict[Variant, tuple[OrderedDict[str, Tensor], Target]] = {}

    @classmethod
    def where_it_pays(
        cls,
        detector: nn.Module,
        family: Family,
        dataset: DetectionDataset,
        device: Device,
        params: FinetuneParams,
    ) -> "tuple[FeatureBank | None, str | None]":
        """A bank, if the frozen part is frozen long enough, the samples allow it and memory
        suffices; else None. And a message, where it's the detector that doesn't allow it. Decided
        by the job alone, so that a resumed run decides alike.

        Args:
            detector: in training mode; without branches, its trunk frozen, its batch norms at rest.
            family: the detector's.
            dataset: whose images are looked at.
            device: where features are computed and kept.
            params: finetune.
        """
        if frozen_epochs(params) < MIN_EPOCHS or not dataset.steady:
            return None, None
        if isinstance(detector, Branched):
            part, usable = "lower trunk", detector.branches.scions[-1].cut is not None
        else:
            part, usable = "trunk", params.freeze_batch_norm and not params.compile
        if not usable:
            return None, None
        without = (
            f"the frozen {part}'s features aren't kept between epochs, since the detector rules it"
            " out"
        )
        model = learning_part(detector)
        if family.input_size is None:
            return None, f"{without}: its family {family.name!r} declares no `input_size`"
        size = family.input_size(model)
        if size is None:
            return None, f"{without}: it doesn't resize every image to one size"
        frozen: Callable[[Tensor], Any]
        place: tuple[nn.Module, str]
        if isinstance(detector, Branched):
            frozen, place = detector.below_cut, (detector, "below_cut")
        else:
            frozen = trunk = family.module(model, family.backbone)
            place = (trunk, "forward")
            if any(parameter.requires_grad for parameter in trunk.parameters()):
                return None, (
                    f"{without}: parameters of its {family.backbone!r} don't belong to the trunk"
                    f" that its family {family.name!r} declares, {', '.join(family.trunk)}"
                )
        transform = family.module(model, family.transform)
        bank = cls(family, transform, frozen, place, dataset, device, size)
        features, _ = bank._of((0, 0))
        if bank.draws:
            return None, f"{without}: its {part} draws random numbers (dropout)"
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
        given = features["0"] if self.single else features
        self.transform.forward = lambda _, targets: (images, targets)
        setattr(*self.place, lambda _: given)
        try:
            yield
        finally:
            del self.transform.forward
            delattr(*self.place)

    @torch.no_grad()
    def _of(self, key: Key) -> tuple["OrderedDict[str, Tensor]", Target]:
        variant = self.dataset.variant(*key)
        if variant not in self._kept:
            image, target = self.dataset[key]
            pixels = self.device.to(image).float() / 255
            with self.device.autocast():
                images, (resized,) = self.transform([pixels], [self.device.to(target)])
                before = _generator_states(self.device.device)
                found = self.frozen(images.tensors)
                after = _generator_states(self.device.device)
            maps = feature_maps(self.family, found)
            self.single = isinstance(found, Tensor)
            self.draws |= not all(map(torch.equal, before, after))
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
