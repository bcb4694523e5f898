"""Pascal VOC -> a RawSplit.

Boxes: VOC counts pixels from 1 and includes the last one, so x = xmin - 1 and width = xmax - xmin +
1 (as detectron2 reads it). Many tools count from 0: a data set (train, val and test together) in
which some corner is 0 is read that way, and `dataset.voc_base` says it where none is. Corners that
aren't whole numbers are places between pixels, and are never shifted (nor are the whole ones of a
set in which most aren't whole).
`difficult` objects become crowds: left out of training and AP. Image ids number the folder's XML
files in order of name; annotation ids are image id x 10,000 + place in its file.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from topwork.dataset.images import IMAGE_SUFFIXES
from topwork.params.dataset import SetParams
from topwork.validation.findings import Box, Findings
from topwork.validation.raw_split import Bools, Floats, RawSplit, Rows

MAX_BYTES = 32 << 20
_CORNER = re.compile(rb"<(?:[a-zA-Z]*:)?([xy]min)>\s*([-+]?\d+(?:\.0*)?)\s*<")
PER_IMAGE = 10_000
VOC_NAMES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


class _NotVoc(Exception):
    """What was found instead of an annotation."""


def read_voc(path: Path, split: str, base: Path, entry: SetParams, findings: Findings) -> RawSplit:
    """Read a VOC folder: Annotations/*.xml, JPEGImages/, ImageSets/Main/SPLIT.txt where there is
    one; or a folder of XML files alone.
    """
    folder = path / "Annotations" if (path / "Annotations").is_dir() else path
    if entry.images is not None:
        root = entry.images
    else:
        root = (
            entry.annotations / "JPEGImages"
            if (path / "JPEGImages").is_dir()
            else entry.annotations
        )
    raw = RawSplit(split, entry.annotations.as_posix(), root.as_posix(), findings, format="voc")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".xml")
    if not files:
        raw.find("file-not-voc", f"no *.xml in {folder.name}/")
        raw.readable = False
        return raw
    chosen = _subset(path, split, entry.subset, raw)
    if not raw.readable:
        return raw
    images = _Images(base / root)
    rows, names = Rows(), []
    corners: list[tuple[Box, bool]] = []
    angles: list[float] = []
    for number, file in enumerate(files, 1):
        if chosen is not None and file.stem not in chosen:
            # it counts as the rest of its data set does
            raw.evidence = raw.evidence or _corner_below_one(file)
            continue
        try:
            tree = _tree(file)
        except _NotVoc as error:
            raw.find("file-not-voc", f"{file.name}: {error}", image_id=number)
            continue
        name = images.name_of(tree.findtext("filename"), file.stem)
        if len(alike := images.alike(tree.findtext("filename"), file.stem)) > 1:
            raw.find(
                "label-shared",
                f"{file.name} names no image that's there, and could be of {' or '.join(alike)};"
                " taken for the first. Write its <filename>, or rename one image",
                image_id=number,
                image=name,
            )
        rows.images.append(
            (
                number,
                name,
                _pixels(tree.findtext("size/width")),
                _pixels(tree.findtext("size/height")),
            )
        )
        for place, thing in enumerate(tree.findall("object"), 1):
            key = number * PER_IMAGE + place
            label = (thing.findtext("name") or "").strip()
            box = _corners(thing)
            if box is None:
                raw.find(
                    "box-missing",
                    f"{file.name}: object {place} ({label!r}) has no bndbox",
                    image_id=number,
                    annotation_id=key,
                    image=name,
                )
                box = (math.nan,) * 4
            if raw.evidence is None and not _fractional(box):
                raw.evidence = next(
                    (
                        f"{corner} {value:g} in {file.name}"
                        for corner, value in zip(("xmin", "ymin"), box[:2], strict=True)
                        if value < 1
                    ),
                    None,
                )
            angles.append(_angle(thing))
            names.append(label)
            corners.append((box, (thing.findtext("difficult") or "0").strip() == "1"))
            rows.annotations.append((key, number, 0))
    if chosen is not None:
        for lost in sorted(chosen - {file.stem for file in files})[:1000]:
            raw.find("file-not-voc", f"ImageSets names {lost!r}, and Annotations has no {lost}.xml")
    known = list(VOC_NAMES) if set(names) <= set(VOC_NAMES) else sorted(set(names))
    rows.categories = [(index, name) for index, name in enumerate(known, 1)] if names else []
    label_of = {name: index for index, name in rows.categories}
    ids, rows.annotations = rows.annotations, []
    for (key, number, _), name, (box, difficult) in zip(ids, names, corners, strict=True):
        rows.add((key, number, label_of[name]), box, difficult)
    rows.put(raw)
    raw.corners = True
    raw.rotation = np.array(angles, np.float64) if any(angles) else None
    return raw


# coordinates may be anything; what overflows compares as false
@np.errstate(invalid="ignore", over="ignore")
def settle_corners(raw_splits: Sequence[RawSplit], base: int | None) -> None:
    """Turn the corners of one data set's splits into boxes, all by one rule, and say which.

    Args:
        raw_splits: the splits that belong together.
        base: the first pixel's number, None to go by the data.
    """
    evidence = next((raw.evidence for raw in raw_splits if raw.evidence is not None), None)
    if base is None:
        base = 1 if evidence is None else 0
        reason = f"for {evidence}" if evidence is not None else "as VOC does: no corner is 0"
    else:
        reason = "by dataset.voc_base"
    whole = [_whole(raw.box) for raw in raw_splits]
    count = sum(len(flags) for flags in whole)
    between = count - sum(int(flags.sum()) for flags in whole)
    places = 2 * between > count
    for raw, flags in zip(raw_splits, whole, strict=True):
        shifted = (flags & (not places)).astype(np.float64)
        left, top, right, bottom = raw.box.T
        raw.box = np.stack(
            [
                left - base * shifted,
                top - base * shifted,
                right - left + shifted,
                bottom - top + shifted,
            ],
            axis=1,
        )
        area = raw.box[:, 2] * raw.box[:, 3]
        raw.area = np.where(area > 0, area, np.nan)
        raw.corners = False
        if count:
            raw.find(
                "voc-corners",
                "most corners aren't whole numbers: all are read as places between pixels, none is"
                " shifted"
                if places
                else f"pixels are counted from {base}, {reason}"
                + (
                    f"; {between} of {count} boxes aren't whole numbers, not shifted"
                    * bool(between)
                ),
            )


def _whole(box: Floats) -> Bools:
    """Whether all corners of a row are whole numbers (or none at all)."""
    return np.asarray((np.where(np.isfinite(box), box, 0) % 1 == 0).all(axis=1))


def _fractional(box: Box) -> bool:
    return any(math.isfinite(value) and value % 1 for value in box)


def _corner_below_one(file: Path) -> str | None:
    """The first whole xmin or ymin below 1 in a file of the set that isn't in the split's list."""
    try:
        if not file.is_file() or file.stat().st_size > MAX_BYTES:
            return None
        data = file.read_bytes()
    except OSError:
        return None
    for corner, value in _CORNER.findall(data):
        if float(value) < 1:
            return f"{corner.decode()} {float(value):g} in {file.name}"
    return None


def _angle(thing: ElementTree.Element) -> float:
    """Degrees by which a box is turned, as CVAT and Datumaro write it; 0 without."""
    for attribute in thing.findall("attributes/attribute"):
        if (attribute.findtext("name") or "").strip() == "rotation":
            value = _number(attribute.findtext("value"))
            return value if math.isfinite(value) else 0.0
    return 0.0


def _subset(path: Path, split: str, subset: str | None, raw: RawSplit) -> set[str] | None:
    """Stems that the list of the split names; None where there's no list, so that all are taken."""
    file = path / "ImageSets" / "Main" / f"{subset or split}.txt"
    try:
        return {
            line.split()[0]
            for line in file.read_text(encoding="utf-8").splitlines()
            if line.strip()
        }
    except FileNotFoundError:
        if subset is not None:
            raw.find(
                "file-unreadable",
                f"ImageSets/Main/{subset}.txt: no such file, and `subset` names it",
            )
            raw.readable = False
        return None
    except (OSError, UnicodeDecodeError) as error:
        raw.find("file-unreadable", f"ImageSets/Main/{file.name}: can't be read ({error})")
        raw.readable = False
        return None


def _tree(file: Path) -> ElementTree.Element:
    try:
        if not file.is_file():
            raise _NotVoc("is a folder, a pipe, a device or a link to nowhere")
        size = file.stat().st_size
        if not size:
            raise _NotVoc("has 0 bytes")
        if size > MAX_BYTES:
            raise _NotVoc(f"has {size} bytes, at most {MAX_BYTES} are read")
        data = file.read_bytes()
        if b"<!" in data.replace(b"<!--", b"").replace(b"\0", b""):
            raise _NotVoc(
                "declares a document type or entities, which VOC doesn't have; not parsed"
            )
        tree = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise _NotVoc(f"isn't XML ({error})") from error
    except (OSError, ValueError, LookupError) as error:
        raise _NotVoc(f"can't be read ({error})") from error
    if tree.tag != "annotation":
        raise _NotVoc(f"its outermost element is <{tree.tag[:40]}>, expected <annotation>")
    return tree


def _corners(thing: ElementTree.Element) -> Box | None:
    """(xmin, ymin, xmax, ymax) as written, NaN where one is no number; None without a bndbox."""
    box = thing.find("bndbox")
    if box is None:
        return None
    left, top, right, bottom = (
        _number(box.findtext(name)) for name in ("xmin", "ymin", "xmax", "ymax")
    )
    return left, top, right, bottom


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _pixels(text: str | None) -> int:
    value = _number(text)
    return int(value) if 0 < value < 1 << 31 else 0


class _Images:
    """Which file belongs to an annotation: the one it names, else the one with its own
    name.
    """

    def __init__(self, root: Path) -> None:
        self.names: set[str] = set()
        if root.is_dir():
            self.names = {
                file.name for file in root.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES
            }
        self.by_stem: dict[str, list[str]] = {}
        for name in sorted(self.names):
            self.by_stem.setdefault(Path(name).stem, []).append(name)

    def name_of(self, filename: str | None, stem: str) -> str:
        """The image that it names; where that isn't there, the one with the annotation's name."""
        name = (filename or "").strip()
        if name and (name in self.names or stem not in self.by_stem):
            return name
        return self.by_stem.get(stem, [f"{stem}.jpg"])[0]

    def alike(self, filename: str | None, stem: str) -> list[str]:
        """Images that it could be of, where its own name decides nothing."""
        return [] if (filename or "").strip() in self.names else self.by_stem.get(stem, [])
