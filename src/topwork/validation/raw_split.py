"""One split as it was read, before it's checked: the unit that readers make and checks look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from topwork.dataset.tables import Tables
from topwork.validation.findings import Box, Findings

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass
class RawSplit:
    """One split, column by column; rows keep the order of the file.

    Attributes:
        split: its name.
        file: the annotation file, as params.yaml writes it (for messages).
        root: the images' folder or archive, as written.
        image_id, file_name, image_width, image_height: one entry an image; width and height are 0
            where unknown.
        annotation_id, annotated, category, box (N x 4, xywh), area (NaN where missing), crowd: one
        entry an annotation.
        segmentation: JSON text or null, one entry an annotation; None where it wasn't read.
        category_id, category_name: one entry a category.
        fields: file name -> the image record's other fields, read only when a group asks for them.
        readable: False when a fatal fault left nothing to look at.
        format: which reader made it.
        sizes_declared: False where sizes are those of the images' headers.
        rotation: degrees by which boxes are turned about their centres, one entry an annotation;
            None where none is.
        corners: boxes are still (left, top, right, bottom) as Pascal VOC writes them; `evidence`
            names a corner below 1.
        looked_for: a label file that should be there, where there's none at all.
    """

    split: str
    file: str
    root: str
    findings: Findings
    image_id: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    file_name: list[str] = field(default_factory=list)
    image_width: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    image_height: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    annotation_id: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    annotated: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    category: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    box: Floats = field(default_factory=lambda: np.empty((0, 4)))
    area: Floats = field(default_factory=lambda: np.empty(0))
    crowd: Bools = field(default_factory=lambda: np.empty(0, np.bool_))
    segmentation: pa.LargeStringArray | None = None
    category_id: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    category_name: list[str] = field(default_factory=list)
    fields: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    readable: bool = True
    format: str = "coco"
    sizes_declared: bool = True
    rotation: Floats | None = None
    corners: bool = False
    evidence: str | None = None
    looked_for: str | None = None

    def find(self, rule: str, message: str, **where: Any) -> None:
        """Add a finding about this split's file."""
        self.findings.add(rule, self.split, self.file, message, **where)

    def find_annotation(self, rule: str, row: int, message: str) -> None:
        """Add a finding about the annotation in one row."""
        x, y, width, height = (float(value) for value in self.box[row])
        self.findings.add(
            rule,
            self.split,
            self.file,
            message,
            image_id=int(self.annotated[row]),
            annotation_id=int(self.annotation_id[row]),
            image=self.name_of.get(int(self.annotated[row])),
            box=(x, y, width, height),
        )

    def find_image(
        self,
        rule: str,
        row: int,
        message: str,
        box: Box | None = None,
        other: tuple[str, int] | None = None,
    ) -> None:
        """Add a finding about the image in one row; `other` is the split and id of an image that
        looks the same.
        """
        image_id, name = int(self.image_id[row]), self.file_name[row]
        self.findings.add(
            rule,
            self.split,
            self.file,
            message,
            image_id=image_id,
            image=name,
            box=box,
            other=other,
        )

    @property
    def name_of(self) -> Mapping[int, str]:
        """Image id -> file name (the first, where an id is there twice)."""
        if "_name_of" not in self.__dict__:
            self.__dict__["_name_of"] = dict(
                zip(self.image_id[::-1].tolist(), self.file_name[::-1], strict=True)
            )
        names: Mapping[int, str] = self.__dict__["_name_of"]
        return names

    def image_rows(self) -> Ints:
        """For each annotation the row of its image, -1 where it's dangling."""
        return rows_of(self.image_id, self.annotated)

    def category_rows(self) -> Ints:
        """For each annotation the row of its category, -1 where it's dangling."""
        return rows_of(self.category_id, self.category)

    def tables(self) -> Tables:
        """The split's tables, in file order."""
        images = pd.DataFrame(
            {
                "split": _repeat(self.split, len(self.image_id)),
                "image_id": self.image_id,
                "file_name": pd.array(self.file_name, dtype="str"),
                "width": self.image_width,
                "height": self.image_height,
                "image_root": _repeat(self.root, len(self.image_id)),
            }
        )
        count = len(self.annotation_id)
        if self.segmentation is None:
            segmentation: Any = pd.array(pa.nulls(count, pa.large_string()), dtype="str")
        else:
            segmentation = pd.array(self.segmentation, dtype="str")
        columns: dict[str, Any] = {
            "split": _repeat(self.split, count),
            "annotation_id": self.annotation_id,
            "image_id": self.annotated,
            "category_id": self.category,
        }
        for index, name in enumerate(("x", "y", "width", "height")):
            columns[name] = self.box[:, index].copy()
        annotations = pd.DataFrame(
            {**columns, "area": self.area, "iscrowd": self.crowd, "segmentation": segmentation}
        )
        categories = pd.DataFrame(
            {
                "split": _repeat(self.split, len(self.category_id)),
                "category_id": self.category_id,
                "name": pd.array(self.category_name, dtype="str"),
            }
        )
        return Tables(images, annotations, categories)


@dataclass
class Rows:
    """Records of one split while a reader gathers them; `put` makes them the columns of a split."""

    images: list[tuple[int, str, int, int]] = field(default_factory=list)
    annotations: list[tuple[int, int, int]] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    crowds: list[bool] = field(default_factory=list)
    segmentations: list[bytes] = field(default_factory=list)
    categories: list[tuple[int, str]] = field(default_factory=list)

    def add(
        self, ids: tuple[int, int, int], box: Box, crowd: bool = False, segmentation: bytes = b""
    ) -> None:
        """One annotation: (annotation_id, image_id, category_id), box, and the rest."""
        self.annotations.append(ids)
        self.boxes.append(box)
        self.crowds.append(crowd)
        self.segmentations.append(segmentation)

    def put(self, raw: RawSplit) -> None:
        """Fill the split's columns; areas are the boxes', since these formats have none."""
        raw.image_id = np.array([row[0] for row in self.images], np.int64)
        raw.file_name = [row[1] for row in self.images]
        raw.image_width = np.array([row[2] for row in self.images], np.int64)
        raw.image_height = np.array([row[3] for row in self.images], np.int64)
        ids = np.array(self.annotations, np.int64).reshape(-1, 3)
        raw.annotation_id, raw.annotated, raw.category = (
            ids[:, 0].copy(),
            ids[:, 1].copy(),
            ids[:, 2].copy(),
        )
        raw.box = np.array(self.boxes, np.float64).reshape(-1, 4)
        with np.errstate(invalid="ignore", over="ignore"):
            area = raw.box[:, 2] * raw.box[:, 3]
        raw.area = np.where(area > 0, area, np.nan)
        raw.crowd = np.array(self.crowds, np.bool_)
        raw.segmentation = texts(self.segmentations)
        raw.category_id = np.array([row[0] for row in self.categories], np.int64)
        raw.category_name = [row[1] for row in self.categories]


def rows_of(known: Ints, wanted: Ints) -> Ints:
    """For each wanted id its (first) row among the known ones, -1 where there's none."""
    if not len(known):
        return np.full(len(wanted), -1, np.int64)
    order = np.argsort(known, kind="stable")
    ranks = known[order]
    place = np.minimum(np.searchsorted(ranks, wanted), len(ranks) - 1)
    return np.where(ranks[place] == wanted, order[place], -1).astype(np.int64)


def texts(values: Sequence[Any]) -> pa.LargeStringArray:
    """Pieces of UTF-8 (bytes or msgspec.Raw) as one Arrow text column; nulls where a piece is
    empty. The pieces are copied once, straight into place.

    Raises:
        pa.ArrowInvalid: a piece isn't UTF-8.
    """
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    data = pa.allocate_buffer(int(offsets[-1]))
    view = memoryview(data).cast("B")
    for start in range(0, len(values), 10_000):
        stop = min(start + 10_000, len(values))
        view[offsets[start] : offsets[stop]] = b"".join(values[start:stop])
    valid = pa.py_buffer(np.packbits(lengths > 0, bitorder="little").tobytes())
    column = pa.LargeStringArray.from_buffers(len(values), pa.py_buffer(offsets), data, valid)
    column.validate(full=True)
    return column


def _repeat(value: str, count: int) -> Any:
    return pd.array(pa.repeat(pa.scalar(value, pa.large_string()), count), dtype="str")
