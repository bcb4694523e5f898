"""A small sound COCO set that a test can spoil in one place: two classes, four images, no
finding.
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from topwork.params.dataset import DatasetParams, SetParams, SplitParams
from topwork.validation.findings import Finding
from topwork.validation.gate import Validation, validate

WIDTH, HEIGHT = 100, 80
ABSENT = object()


def picture(seed: int, size: tuple[int, int] = (WIDTH, HEIGHT), mode: str = "RGB") -> Image.Image:
    """Smooth noise: pictures of different seeds look different."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """An image as the bytes of a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def small_set(first_seed: int = 0, first_id: int = 1, count: int = 4) -> dict[str, Any]:
    """So many images with three boxes of each class."""
    images = [
        {"id": first_id + i, "file_name": f"{first_seed + i}.jpg", "width": WIDTH, "height": HEIGHT}
        for i in range(count)
    ]
    annotations = []
    for i in range(count):
        for j in range(6):
            box = [3 + 14 * j, 5 + 9 * j, 12 + i % 4, 14 + j]
            key = 10 * (first_id + i) + j
            entry = {
                "id": key,
                "image_id": first_id + i,
                "category_id": 1 + j % 2,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            annotations.append(entry)
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "helmet"}, {"id": 2, "name": "forklift"}],
    }


class Scene:
    """The set, its images, and the ways to spoil them; every method gives the scene back."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.sets: dict[str, Any] = {"train": small_set()}
        self.raw_bytes: dict[str, bytes | None] = {}
        self.files: dict[str, bytes] = {
            f"train/{seed}.jpg": encoded(picture(seed)) for seed in range(4)
        }
        self.links: dict[str, str] = {}
        self.archives: dict[str, dict[str, bytes]] = {}
        self.options: dict[str, Any] = {}
        self.roots: dict[str, str] = {}
        self.annotations: str | None = None
        self.others: dict[str, str] = {}

    def image(self, index: int, split: str = "train", **values: Any) -> "Scene":
        _put(self.sets[split]["images"][index], values)
        return self

    def category(self, index: int, split: str = "train", **values: Any) -> "Scene":
        _put(self.sets[split]["categories"][index], values)
        return self

    def annotation(self, index: int, split: str = "train", **values: Any) -> "Scene":
        _put(self.sets[split]["annotations"][index], values)
        return self

    def every(self, split: str = "train", **values: Any) -> "Scene":
        for record in self.sets[split]["annotations"]:
            _put(record, values)
        return self

    def box(self, index: int, *numbers: Any, area: float | None = None) -> "Scene":
        """Another box for an annotation, with its area unless that's given."""
        values: dict[str, Any] = {"bbox": list(numbers)}
        if area is not None:
            values["area"] = area
        elif len(numbers) == 4 and all(isinstance(n, int | float) for n in numbers):
            values["area"] = max(numbers[2] * numbers[3], 1e-3)
        return self.annotation(index, **values)

    def mask(self, index: int, segmentation: Any, **values: Any) -> "Scene":
        return self.annotation(index, segmentation=segmentation, **values)

    def top(self, split: str = "train", **values: Any) -> "Scene":
        _put(self.sets[split], values)
        return self

    def add(self, kind: str, record: Any, split: str = "train") -> "Scene":
        self.sets[split][kind].append(record)
        return self

    def raw(self, data: bytes | None) -> "Scene":
        """The bytes of train.json; None leaves the file out."""
        self.raw_bytes["train"] = data
        return self

    def edit(self, old: str, new: str, count: int = 1) -> "Scene":
        """Another text in train.json."""
        text = json.dumps(self.sets["train"])
        assert old in text
        return self.raw(text.replace(old, new, count).encode("utf-8", "surrogatepass"))

    def encode(self, encoding: str) -> "Scene":
        return self.raw(json.dumps(self.sets["train"]).encode(encoding))

    def file(self, name: str, data: bytes | None) -> "Scene":
        """A file of images; None takes it away."""
        if data is None:
            del self.files[name]
        else:
            self.files[name] = data
        return self

    def link(self, name: str, target: str) -> "Scene":
        self.files.pop(name, None)
        self.links[name] = target
        return self

    def zip(self, members: dict[str, bytes]) -> "Scene":
        """The images of train in a zip, with further members."""
        own = {
            name.removeprefix("train/"): data
            for name, data in self.files.items()
            if name.startswith("train/")
        }
        self.archives["train.zip"] = {**own, **members}
        self.roots["train"] = "train.zip"
        return self

    def use(self, annotations: str) -> "Scene":
        """Another annotation file or folder as train, in place of the COCO set."""
        self.sets.clear()
        self.annotations = annotations
        return self

    def also(self, split: str, annotations: str) -> "Scene":
        """A further split from an annotation file or folder of its own."""
        self.others[split] = annotations
        return self

    def images_at(self, root: str) -> "Scene":
        """Another folder or archive for the images of train."""
        self.roots["train"] = root
        return self

    def other(self, split: str = "val", first_seed: int = 10) -> "Scene":
        """A second sound split."""
        self.sets[split] = small_set(first_seed)
        self.files |= {
            f"{split}/{seed}.jpg": encoded(picture(seed))
            for seed in range(first_seed, first_seed + 4)
        }
        return self

    def option(self, **values: Any) -> "Scene":
        self.options |= values
        return self

    def write(self) -> "Scene":
        for name, data in self.files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        for name, target in self.links.items():
            (self.folder / name).symlink_to(target)
        for name, members in self.archives.items():
            with zipfile.ZipFile(self.folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
                for member, data in members.items():
                    archive.writestr(member, data)
        for split, value in self.sets.items():
            data_ = self.raw_bytes.get(split, json.dumps(value).encode())
            if data_ is not None:
                (self.folder / f"{split}.json").write_bytes(data_)
        return self

    def dataset(self) -> DatasetParams:
        sets = {
            split: SetParams(
                annotations=Path(f"{split}.json"), images=Path(self.roots.get(split, split))
            )
            for split in self.sets
        }
        if self.annotations is not None:
            sets["train"] = SetParams(annotations=Path(self.annotations))
        sets |= {split: SetParams(annotations=Path(place)) for split, place in self.others.items()}
        options = dict(self.options)
        if "split" in options:
            options["split"] = SplitParams(**options["split"])
        return DatasetParams(root=Path(), **sets, **options)

    def run(self, **choices: Any) -> Validation:
        self.write()
        return validate(self.dataset(), self.folder, workers=1, **choices)


def rules(found: Validation) -> set[str]:
    """Names of the rules that were found."""
    return {row.rule for row in found.findings}


def first(found: Validation, rule: str) -> Finding:
    """The first finding of a rule."""
    return next(row for row in found.findings if row.rule == rule)


def _put(record: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if value is ABSENT:
            del record[key]
        else:
            record[key] = value
