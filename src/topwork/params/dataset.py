"""Section `dataset`: the data, read by `validate`."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from topwork.params.section import Section


class SetParams(Section):
    """One set of labelled images."""

    annotations: Path
    """COCO instances JSON, a Pascal VOC folder, or a YOLO set (data.yaml, obj.data, or the folder
    with classes.txt).
    """
    images: Path | None = None
    """Folder, zip or tar with the images; left out where the format defines it (VOC, YOLO)."""
    subset: str | None = None
    """Which list of a VOC (ImageSets/Main/NAME.txt) or YOLO set (train, val, test); left out, the
    one named like the split.
    """


class SplitParams(Section):
    """How to divide a set that comes unsplit (only `train` is given)."""

    val: float = Field(default=0.15, ge=0, lt=1)
    """Share of images for validation."""
    test: float = Field(default=0.15, ge=0, lt=1)
    """Share of images for the test."""
    group_by: str | None = None
    """Images of one group stay together: a field of the image record, or a regular expression on
    the file name (its first group).
    """
    assigned: Path | None = None
    """A CSV of earlier places (a copy of out/validate/splits.csv): those stay, new images go where
    their classes lack most.
    """


class DatasetParams(Section):
    """The data: read by `validate`."""

    root: Path
    """The folder that holds all of the data; DVC watches it. Every path below is relative to it."""
    train: SetParams
    """Images to learn from."""
    val: SetParams | None = None
    """Images to choose by (interpolation, early stop)."""
    test: SetParams | None = None
    """Images to report on."""
    source: SetParams | None = None
    """Held-out images of the pretrained detector's own domain: where retention is measured."""
    replay: SetParams | None = None
    """Further images of the source domain: mixed into training, and where a share is chosen by what
    it keeps, measured on. For that, rather such as the pretrained detector wasn't trained on.
    """
    split: SplitParams | None = None
    """With `train` alone: how it is divided. With `val` or `test` given: the share that is named
    here for the other one is taken out of train, and no group by `group_by` may be in two of them.
    """
    aliases: dict[str, str] = {}
    """Category name in the data -> name used here, where the two differ."""
    match: Literal["exact", "nearest"] = "exact"
    """How file names find images: as written, or where that fails by slashes, case and Unicode
    form, and then by a base name that only one image has.
    """
    exif: Literal["turned", "stored"] | None = None
    """Which picture was labelled where EXIF asks to turn it: the turned one, or the one as stored;
    left out, decided by sizes and boxes where these decide.
    """
    voc_base: Literal[0, 1] | None = None
    """The first pixel's number in Pascal VOC boxes; left out, 0 where a corner is below 1, else
    1.
    """
    rotated: Literal["hull", "unturned"] | None = None
    """What a box with an angle becomes: the upright hull of the turned box, or the box as if it
    had none; left out, such boxes are errors.
    """
    drop: list[int | str] = []
    """Annotation ids to leave out, by explicit choice (`topwork validate --fix-list` writes them);
    `train:123` where splits share ids.
    """
    drop_images: list[int | str] = []
    """Image ids to leave out, with their annotations; `train:123` where splits share ids."""
    fail_on: Literal["error", "warning", "never"] = "error"
    """The severity of findings that stops the stage."""

    @model_validator(mode="after")
    def _join_root(self) -> "DatasetParams":
        """Put `root` before every path, in this one place."""
        joined = {
            name: given.model_copy(
                update={
                    "annotations": self.root / given.annotations,
                    "images": self.root / given.images if given.images else None,
                }
            )
            for name, given in self
            if isinstance(given, SetParams)
        }
        for name, value in joined.items():
            object.__setattr__(self, name, value)
        if self.split is not None and self.split.assigned is not None:
            object.__setattr__(
                self,
                "split",
                self.split.model_copy(update={"assigned": self.root / self.split.assigned}),
            )
        return self
