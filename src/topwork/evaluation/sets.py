"""What is evaluated on what: which classes a set can speak of, and what each model calls them.

The pretrained detector knows its own classes: only those that the plan keeps can be compared, and they are renamed to the target's
names. The source set speaks only of kept classes, since nobody annotated the new ones there.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
from PIL import Image

from topwork.classes import ClassPlan
from topwork.coco.images import ImageStore
from topwork.coco.tables import Tables
from topwork.evaluation.predict import Picture
from topwork.evaluation.truth import Truth, truth_of

SETS = ("test", "source")


def classes_of(plan: ClassPlan, tables: Tables, split: str) -> dict[str, tuple[str, ...]]:
    """Target class -> category names of a set that stand for it.

    On the custom set all target classes, by their own names. On the source set kept classes alone, by the target's name or, where no
    category has that, by the pretrained detector's.
    """
    if split != "source":
        return {name: (name,) for name in plan.names}
    known = set(tables.split(split).categories["name"])
    named = {target: target if target in known else source for target, source in plan.kept.items()}
    return {target: (name,) for target, name in named.items() if name in known}


def truths_of(plan: ClassPlan, tables: Tables) -> dict[str, Truth]:
    """Ground truth of each set that is there and has a class to speak of."""
    wanted = {split: classes_of(plan, tables, split) for split in SETS if split in tables.splits}
    return {split: truth_of(tables, split, classes) for split, classes in wanted.items() if classes}


def rename_kept(predictions: pd.DataFrame, plan: ClassPlan) -> pd.DataFrame:
    """The pretrained detector's predictions of kept classes, under the target's names and labels; the rest is left out."""
    parts = [
        predictions[predictions["name"] == source].assign(name=target, label=plan.columns.index(target))
        for target, source in plan.kept.items()
    ]
    if not parts:
        return predictions.iloc[:0]
    return pd.concat(parts).sort_index(kind="stable").reset_index(drop=True)


class Pictures:
    """The images of a split, to be opened one by one; one store an image root."""

    def __init__(self, root: Path = Path()) -> None:
        self.root = root
        self.stores: dict[str, ImageStore] = {}

    def of(self, tables: Tables, split: str) -> list[Picture]:
        """Ids and openers, by id."""
        rows = tables.split(split).images.sort_values("image_id", kind="stable")
        return [
            (int(image_id), self._opener(str(image_root), str(file_name)))
            for image_id, image_root, file_name in zip(rows["image_id"], rows["image_root"], rows["file_name"], strict=True)
        ]

    def stamps(self, tables: Tables, split: str) -> list[tuple[int, int] | None]:
        """Size and modification time of each image file: equal before and after a stage, if nobody touched them meanwhile."""
        rows = tables.split(split).images
        return [self._store(str(root)).stamp(str(name)) for root, name in zip(rows["image_root"], rows["file_name"], strict=True)]

    def _store(self, image_root: str) -> ImageStore:
        if image_root not in self.stores:
            self.stores[image_root] = ImageStore(self.root / image_root)
        return self.stores[image_root]

    def _opener(self, image_root: str, file_name: str) -> Callable[[], Image.Image]:
        return partial(self._store(image_root).open, file_name)
