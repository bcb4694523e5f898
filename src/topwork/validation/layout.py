"""What a folder or file of labelled images is: format, splits, pictures, classes, and the lines of
params.yaml that name it. `find_layout` finds it out.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from topwork.params.dataset import SetParams
from topwork.validation.reader import Format

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""What a file or folder is called -> the split that it's taken for."""


@dataclass(frozen=True)
class FoundSet:
    """One split of a layout; paths are relative to the layout's root.

    Attributes:
        annotations: what `annotations:` names.
        images: what `images:` names, None where the format says it or there are none.
        subset: what `subset:` names, None where it isn't needed.
        pictures: how many images the annotations list.
        lacking: the images weren't found anywhere near.
    """

    annotations: Path
    images: Path | None = None
    subset: str | None = None
    pictures: int = 0
    lacking: bool = False


@dataclass(frozen=True)
class Layout:
    """What was found at a path.

    Attributes:
        format: which reader takes it.
        description: what it was taken for, in words, such as `YOLO (data.yaml)`.
        root: the folder that holds all of it: `dataset.root`.
        sets: split -> what it's made of; train, val and test in this order.
        classes: names, in the file's order; of all splits.
    """

    format: Format
    description: str
    root: Path
    sets: Mapping[str, FoundSet]
    classes: tuple[str, ...]

    @property
    def pictures(self) -> int:
        """Images of all splits."""
        return sum(found.pictures for found in self.sets.values())

    def params(self) -> dict[str, Any]:
        """The section `dataset:` as plain values; paths below root are relative to it."""
        section: dict[str, Any] = {"root": self.root.as_posix()}
        for split, found in self.sets.items():
            entry = {"annotations": found.annotations.as_posix()}
            if found.images is not None:
                entry["images"] = found.images.as_posix()
            if found.subset is not None:
                entry["subset"] = found.subset
            section[split] = entry
        if list(self.sets) == ["train"]:
            section["split"] = {"val": 0.15, "test": 0.15}
        return section

    def entries(self) -> dict[str, SetParams]:
        """Split -> its entry, with root before every path."""
        return {
            split: SetParams(
                annotations=self.root / found.annotations,
                images=None if found.images is None else self.root / found.images,
                subset=found.subset,
            )
            for split, found in self.sets.items()
        }

    def lines(self) -> str:
        """The section `dataset:` of params.yaml, as text that ends in a line break.

        Example:
            >>> sets = {"train": FoundSet(Path("labels.json"), Path("data"), pictures=3)}
            >>> print(Layout("coco", "COCO", Path("data/own"), sets, ("helmet",)).lines(), end="")
            dataset:
              root: data/own
              train:
                annotations: labels.json
                images: data
              split:
                val: 0.15
                test: 0.15
        """
        lines = ["dataset:"]
        for key, value in self.params().items():
            if isinstance(value, dict):
                lines.append(f"  {key}:")
                lines += [f"    {name}: {_scalar(entry)}" for name, entry in value.items()]
            else:
                lines.append(f"  {key}: {_scalar(value)}")
        return "\n".join(lines) + "\n"

    def summary(self) -> str:
        """One line: what it was taken for, splits with their pictures, classes."""
        counts = ", ".join(f"{split} {found.pictures}" for split, found in self.sets.items())
        shown = ", ".join(self.classes[:12]) + (", ..." if len(self.classes) > 12 else "")
        return (
            f"{self.description}; images: {counts}; {len(self.classes)}"
            f" class{'' if len(self.classes) == 1 else 'es'}: {shown or 'none'}"
        )


def _scalar(value: object) -> str:
    """A YAML scalar: plain where it can be, else as JSON, which YAML reads."""
    text = str(value)
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./ -]*(?<! )", text):
        return msgspec.json.encode(text).decode()
    return text


def relative(path: Path, root: Path) -> Path:
    """`path` from `root`, with `..` where it lies outside."""
    return Path(os.path.relpath(path, root))
