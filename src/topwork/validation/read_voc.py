"""Pascal VOC -> a RawSplit.

Boxes: VOC counts pixels from 1 and includes the last one, so x = xmin - 1 and width = xmax - xmin +
1 (as detectron2 reads it). A set in which
some xmin or ymin is below 1 counts from 0, as many tools do, and is read that way.
`difficult` objects become crowds: left out of training and AP. Image ids number the folder's XML
files in order of name; annotation ids are image id x 10,000 + place in its file.
"""

import math
from pathlib import Path
from xml.etree import ElementTree

from topwork.dataset.images import IMAGE_SUFFIXES
from topwork.params.dataset import SetParams
from topwork.validation.findings import Box, Findings
from topwork.validation.raw_split import RawSplit, Rows

MAX_BYTES = 32 << 20
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
    raw = RawSplit(split, entry.annotations.as_posix(), root.as_posix(), findings)
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".xml")
    if not files:
        raw.find("file-not-voc", f"no *.xml in {folder.name}/")
        raw.readable = False
        return raw
    chosen = _subset(path, split, entry.subset, raw)
    if not raw.readable:
        return raw
    images = _Images(base / root)
    rows, names, zero_based = Rows(), [], False
    corners: list[tuple[Box, bool]] = []
    for number, file in enumerate(files, 1):
        if chosen is not None and file.stem not in chosen:
            continue
        try:
            tree = _tree(file)
        except _NotVoc as error:
            raw.find("file-not-voc", f"{file.name}: {error}", image_id=number)
            continue
        name = images.name_of(tree.findtext("filename"), file.stem)
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
            zero_based |= box[0] < 1 or box[1] < 1
            names.append(label)
            corners.append((box, (thing.findtext("difficult") or "0").strip() == "1"))
            rows.annotations.append((key, number, 0))
    if chosen is not None:
        for lost in sorted(chosen - {file.stem for file in files})[:1000]:
            raw.find("file-not-voc", f"ImageSets names {lost!r}, and Annotations has no {lost}.xml")
    known = list(VOC_NAMES) if set(names) <= set(VOC_NAMES) else sorted(set(names))
    rows.categories = [(index, name) for index, name in enumerate(known, 1)] if names else []
    label_of = {name: index for index, name in rows.categories}
    first = 0 if zero_based else 1
    ids, rows.annotations = rows.annotations, []
    for (key, number, _), name, (box, difficult) in zip(ids, names, corners, strict=True):
        left, top, right, bottom = box
        rows.add(
            (key, number, label_of[name]),
            (left - first, top - first, right - left + 1, bottom - top + 1),
            difficult,
        )
    rows.put(raw)
    return raw


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
        self.by_stem = {Path(name).stem: name for name in sorted(self.names, reverse=True)}

    def name_of(self, filename: str | None, stem: str) -> str:
        name = (filename or "").strip()
        if name and (name in self.names or stem not in self.by_stem):
            return name
        return self.by_stem.get(stem, f"{stem}.jpg")
