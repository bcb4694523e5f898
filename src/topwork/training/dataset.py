"""Training images and targets, from the validated tables.

A sample is asked for by (epoch, index); its augmentation is drawn by that key alone, so that it is
the same whichever process loads it, and after any restart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as vision

from topwork.dataset.images import ImageStore
from topwork.dataset.tables import Tables
from topwork.errors import TrainingError
from topwork.training.augmentation import augmentation, mirrored
from topwork.training.masks import masks_of
from topwork.training.seeds import drawn_by, seed_of

Target = dict[str, Any]
Sample = tuple[Tensor, Target]
Key = tuple[int, int]  # (epoch, index)
Variant = tuple[int, bool]  # (index, mirrored): what a steady sample is
COUNT_FROM_XYWH = np.array(
    [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]], dtype=np.float64
)


@dataclass(frozen=True)
class Example:
    """One image and its annotations, not yet decoded.

    Attributes:
        split, image_id, file_name, root: where the image is, and how messages name it.
        boxes: float64[N, 4], (x1, y1, x2, y2) in absolute pixels.
        labels: int64[N], columns of the head.
        segmentations: N JSON texts or Nones.
    """

    split: str
    image_id: int
    file_name: str
    root: str
    height: int
    width: int
    boxes: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    segmentations: tuple[str | None, ...]


def examples(
    tables: Tables, split: str, label_of: Mapping[str, int], added: pd.DataFrame | None = None
) -> list[Example]:
    """The images of a split with the annotations whose class the head has; crowds are left out, as
    in the reference recipe.

    Args:
        tables: from the validate stage.
        split: `train`, `replay`...
        label_of: class name -> column.
        added: further boxes with columns image_id, name, x, y, width, height (the teacher's), or
            None.
    """
    records = tables.split(split)
    names = tables.names(split)
    found = records.annotations[~records.annotations["iscrowd"].astype(bool)]
    found = found.assign(name=found["category_id"].map(names))[
        ["image_id", "name", "x", "y", "width", "height", "segmentation"]
    ]
    if added is not None and len(added):
        found = pd.concat(
            [found, added.assign(segmentation=None)[list(found.columns)]], ignore_index=True
        )
    found = found[found["name"].isin(list(label_of)) & (found["width"] > 0) & (found["height"] > 0)]
    by_image = {int(str(key)): rows for key, rows in found.groupby("image_id", sort=False)}
    nothing = found.iloc[:0]
    result = []
    for record in records.images.to_dict("records"):
        rows = by_image.get(int(record["image_id"]), nothing)
        boxes = (
            rows[["x", "y", "width", "height"]].to_numpy(np.float64).reshape(-1, 4)
            @ COUNT_FROM_XYWH.T
        )
        labels = np.array([label_of[name] for name in rows["name"]], dtype=np.int64)
        result.append(
            Example(
                split,
                int(record["image_id"]),
                record["file_name"],
                record["image_root"],
                int(record["height"]),
                int(record["width"]),
                boxes,
                labels,
                tuple(rows["segmentation"]),
            )
        )
    return result


class DetectionDataset(torch.utils.data.Dataset[Sample]):
    """Decoded, augmented samples by (epoch, index).

    Args:
        items: what to load.
        root: the project's folder, to which image roots are relative.
        preset: augmentation.
        seed: of the run.
        cache_mib: memory for decoded images; used only where the whole set fits.
        masks: whether targets carry instance masks (Mask R-CNN).
    """

    def __init__(
        self,
        items: Sequence[Example],
        *,
        root: Path = Path(),
        preset: str = "hflip",
        seed: int = 0,
        cache_mib: int = 512,
        masks: bool = False,
    ) -> None:
        self.items = list(items)
        self.preset, self.seed, self.masks = preset, seed, masks
        self.transform: nn.Module = augmentation(preset)
        self.cleaned: nn.Module = augmentation("none")
        self.steady = preset in ("none", "hflip")  # a sample is one of `variants` pictures
        self.variants = 2 if preset == "hflip" else 1
        self.stores = {
            name: ImageStore(root / name) for name in sorted({item.root for item in items})
        }
        self.cached = sum(3 * item.height * item.width for item in items) <= cache_mib << 20
        self._pixels: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Key) -> Sample:
        """Image uint8[3, H, W] and target (boxes float32[N, 4] xyxy, labels int64[N], image_id,
        maybe masks bool[N, H, W]).
        """
        epoch, index = key
        if self.steady:
            image, target = self.plain(index)
            image, target = (
                mirrored(image, target) if self.variant(epoch, index)[1] else (image, target)
            )
            return _untyped(*self.cleaned(image, {**target, "variant": self.variant(epoch, index)}))
        with drawn_by(self.seed, "augmentation", epoch, index):
            image, target = self.transform(*self.plain(index))
        return _untyped(image, target)

    def variant(self, epoch: int, index: int) -> Variant:
        """Which variant of a steady sample an epoch sees."""
        return index, self.preset == "hflip" and bool(
            seed_of(self.seed, "mirror", epoch, index) & 1
        )

    def plain(self, index: int) -> Sample:
        """The sample without augmentation, as tv_tensors."""
        item = self.items[index]
        image = tv_tensors.Image(self.pixels(index))
        size = (int(image.shape[-2]), int(image.shape[-1]))
        boxes = torch.as_tensor(item.boxes, dtype=torch.float32).reshape(-1, 4)
        target: Target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.as_tensor(item.labels, dtype=torch.int64),
            "image_id": item.image_id,
        }
        if self.masks:
            target["masks"] = tv_tensors.Mask(
                torch.from_numpy(masks_of(item.segmentations, item.boxes, size))
            )
        return image, target

    def pixels(self, index: int) -> Tensor:
        """The decoded image, uint8[3, H, W]; decoded once where the set fits into memory."""
        if index in self._pixels:
            return self._pixels[index]
        item = self.items[index]
        picture = self.stores[item.root].open(item.file_name)
        if picture.size != (item.width, item.height):
            raise TrainingError(
                f"{item.root}: {item.file_name} (image {item.image_id}) has"
                f" {picture.width}x{picture.height} pixels, its record says"
                f" {item.width}x{item.height}. Run `dvc repro validate` again."
            )
        pixels: Tensor = vision.pil_to_tensor(picture)
        if self.cached:
            self._pixels[index] = pixels
        return pixels

    def preload(self) -> None:
        """Decode all images now, where they fit into memory; processes forked later share them."""
        for index in range(len(self) if self.cached else 0):
            self.pixels(index)

    def name(self, index: int) -> str:
        """How messages name an image: split and id."""
        return f"{self.items[index].split} {self.items[index].image_id}"


def _untyped(image: Tensor, target: Target) -> Sample:
    """Plain tensors: cheaper to send between processes and to compute with."""
    plain = {
        key: value.as_subclass(Tensor) if isinstance(value, Tensor) else value
        for key, value in target.items()
    }
    return image.as_subclass(Tensor), plain


def collate(samples: Sequence[Sample]) -> tuple[list[Tensor], list[Target]]:
    """A batch: images may differ in size, so they stay a list, as torchvision's detectors want
    them.
    """
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)
