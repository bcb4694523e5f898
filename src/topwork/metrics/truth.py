"""Ground truth of one set, and predictions checked against it: same classes, same images, finite
numbers.

Classes go by name. A label is a class's place in `Truth.classes`, from 1: how a model or a file
numbers it doesn't matter here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from topwork.dataset.tables import Tables
from topwork.errors import EvaluationError

BOX = ["x", "y", "width", "height"]


@dataclass(frozen=True)
class Truth:
    """Annotated images of one set.

    Attributes:
        classes: the classes looked at, in order.
        image_ids: int64[I], unique, sorted.
        sizes: int64[I, 2], width and height.
        image: int64[G], index into `image_ids` of each annotation; annotations in the file's order.
        label: int64[G], 1 + index into `classes`.
        boxes: float64[G, 4], COCO (x, y, width, height).
        area: float64[G], as annotated (COCO takes the mask's): it decides small, medium and large.
        crowd: bool[G].
        annotation_ids: int64[G], the ids in the data.
        segmentation: JSON texts or None, one an annotation.
    """

    classes: tuple[str, ...]
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int64]
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    boxes: NDArray[np.float64]
    area: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    annotation_ids: NDArray[np.int64]
    segmentation: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.label)

    @property
    def objects(self) -> dict[str, int]:
        """How many objects (crowds aside) each class has; AP is defined where there's one at
        least.
        """
        counts = np.bincount(self.label[~self.crowd], minlength=len(self.classes) + 1)[1:]
        return {name: int(count) for name, count in zip(self.classes, counts, strict=True)}

    def only(self, names: Sequence[str]) -> "Truth":
        """The same images with annotations of some of the classes alone."""
        classes = tuple(name for name in self.classes if name in names)
        label_of = np.zeros(len(self.classes) + 1, dtype=np.int64)
        for place, name in enumerate(classes, start=1):
            label_of[self.classes.index(name) + 1] = place
        label = label_of[self.label]
        kept = label > 0
        return Truth(
            classes,
            self.image_ids,
            self.sizes,
            self.image[kept],
            label[kept],
            self.boxes[kept],
            self.area[kept],
            self.crowd[kept],
            self.annotation_ids[kept],
            tuple(
                text for text, stays in zip(self.segmentation, kept.tolist(), strict=True) if stays
            ),
        )


@dataclass(frozen=True)
class Detections:
    """Predictions that were checked against a `Truth`, in the order given.

    Attributes:
        image: int64[D], index into the truth's `image_ids`.
        label: int64[D], 1 + index into the truth's `classes`.
        boxes: float64[D, 4], COCO (x, y, width, height).
        score: float64[D].
        segmentation: JSON texts of RLE, one a detection, or None for boxes alone.
    """

    image: NDArray[np.int64]
    label: NDArray[np.int64]
    boxes: NDArray[np.float64]
    score: NDArray[np.float64]
    segmentation: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.label)

    def keep(self, which: NDArray[Any]) -> "Detections":
        """Some of the detections (a mask or indices), all fields together."""
        texts = (
            None
            if self.segmentation is None
            else tuple(np.asarray(self.segmentation, dtype=object)[which])
        )
        return Detections(
            self.image[which], self.label[which], self.boxes[which], self.score[which], texts
        )


def truth_of(
    tables: Tables, split: str, classes: Mapping[str, Sequence[str]] | Sequence[str]
) -> Truth:
    """The annotations of some classes in one split.

    Args:
        tables: the data set.
        split: `test`, `source`...
        classes: class name here -> names that categories of the data may have for it; or names that
            are the same on both sides.

    Raises:
        EvaluationError: no class, an image listed twice, or an annotation of an image that isn't
            there.
    """
    data = tables.split(split)
    wanted = dict(classes) if isinstance(classes, Mapping) else {name: (name,) for name in classes}
    if not wanted:
        raise EvaluationError(
            f"{split}: no class to evaluate; its categories are"
            f" {', '.join(map(str, data.categories['name'])) or 'none'}."
        )
    label_of_name = {
        alias: label for label, names in enumerate(wanted.values(), start=1) for alias in names
    }
    label_of_id = {
        int(key): label_of_name[name]
        for key, name in zip(data.categories["category_id"], data.categories["name"], strict=True)
        if name in label_of_name
    }
    images = data.images.sort_values("image_id", kind="stable")
    image_ids = images["image_id"].to_numpy(dtype=np.int64)
    if len(np.unique(image_ids)) != len(image_ids):
        double = image_ids[:-1][np.diff(image_ids) == 0][0]
        raise EvaluationError(
            f"{split}: image id {double} is there twice; run `topwork validate`, which names all"
            " such faults."
        )
    rows = data.annotations[data.annotations["category_id"].isin(list(label_of_id))]
    image = _index_of(image_ids, rows["image_id"].to_numpy(dtype=np.int64), f"{split}: annotations")
    return Truth(
        classes=tuple(wanted),
        image_ids=image_ids,
        sizes=images[["width", "height"]].to_numpy(dtype=np.int64),
        image=image,
        label=np.asarray(rows["category_id"].map(label_of_id), dtype=np.int64),
        boxes=rows[BOX].to_numpy(dtype=np.float64),
        area=rows["area"].to_numpy(dtype=np.float64),
        crowd=rows["iscrowd"].to_numpy(dtype=np.bool_),
        annotation_ids=rows["annotation_id"].to_numpy(dtype=np.int64),
        segmentation=tuple(rows["segmentation"]),
    )


def detections_of(
    predictions: pd.DataFrame, truth: Truth, *, what: str = "predictions"
) -> Detections:
    """Check a table of predictions against the truth; classes that the truth doesn't look at are
    left out.

    Args:
        predictions: image_id, name, score, x, y, width, height; maybe segmentation.
        truth: the ground truth.
        what: where the predictions come from, for messages.

    Raises:
        EvaluationError: a column is missing, a number is NaN, infinite or a negative size, or an
            image is unknown.
    """
    missing = [name for name in ("image_id", "name", "score", *BOX) if name not in predictions]
    if missing:
        raise EvaluationError(
            f"{what}: no column {', '.join(missing)}; found"
            f" {', '.join(map(str, predictions.columns))}."
        )
    numbers = predictions[["score", *BOX]].to_numpy(dtype=np.float64)
    bad = ~np.isfinite(numbers).all(axis=1) | (numbers[:, 3:] < 0).any(axis=1)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        score, *box = numbers[first].tolist()
        raise EvaluationError(
            f"{what}: row {first} (image {predictions['image_id'].iloc[first]}): score {score}, box"
            f" {box}; expected finite numbers and no negative width or height ({int(bad.sum())}"
            " such rows). The weights that made them are damaged, or the file is."
        )
    image = _index_of(truth.image_ids, predictions["image_id"].to_numpy(dtype=np.int64), what)
    label_of = {name: label for label, name in enumerate(truth.classes, start=1)}
    label: NDArray[np.int64] = np.asarray(
        predictions["name"].map(label_of).fillna(0), dtype=np.int64
    )
    texts = tuple(predictions["segmentation"]) if "segmentation" in predictions else None
    return Detections(image, label, numbers[:, 1:], numbers[:, 0], texts).keep(label > 0)


def _index_of(
    image_ids: NDArray[np.int64], wanted: NDArray[np.int64], what: str
) -> NDArray[np.int64]:
    place = np.searchsorted(image_ids, wanted)
    known = place < len(image_ids)
    known[known] = image_ids[place[known]] == wanted[known]
    if not known.all():
        unknown = np.unique(wanted[~known])
        raise EvaluationError(
            f"{what}: image id"
            f" {', '.join(map(str, unknown[:5]))}{' and others' if len(unknown) > 5 else ''}:"
            f" not among the {len(image_ids)} images of the ground truth. Predictions and ground"
            " truth belong to different sets."
        )
    return place.astype(np.int64)
