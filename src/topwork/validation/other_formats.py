"""Formats of labelled images that are known and not read: what to export instead."""

import re
from pathlib import Path

import msgspec

from topwork.validation.decode import Unreadable, load_bytes, to_utf8

_VIA = "which isn't read; choose Annotation, Export Annotations (COCO format) in VIA."
_BY_START = (
    (
        "*.xml",
        rb"<annotations",
        ("CVAT's own XML, which isn't read; export `COCO 1.0` or `PASCAL VOC 1.1` from CVAT."),
    ),
    ("*.csv", rb"region_shape_attributes", f"a table of VIA, {_VIA}"),
    (
        "*.csv",
        rb"(?i)xmin\b",
        (
            "a table of boxes (as of TensorFlow or Open Images), which isn't read; export COCO or"
            " Pascal VOC from the tool that wrote it."
        ),
    ),
    (
        "*.tfrecord*",
        rb"",
        "TensorFlow's records, which aren't read; export COCO from the tool that wrote them.",
    ),
    (
        "metadata.jsonl",
        rb"file_name",
        (
            "a list of Hugging Face's image folders, which isn't read; write a COCO JSON from it"
            " (docs/data.md says what that holds)."
        ),
    ),
    (
        "*.txt",
        rb"^\S+( -?[\d.]+){14}",
        "KITTI's labels, which aren't read; convert them to COCO or YOLO.",
    ),
)
"""Files by name, what they begin with (a pattern), and what that is."""


def refusal(folder: Path) -> str:
    """Why nothing was found: a format that isn't read, or what would be."""
    for file in _near(folder, "*.json"):
        if others := other_format(file):
            return f"{file.relative_to(folder).as_posix()} {others}"
    for pattern, start, what in _BY_START:
        for file in _near(folder, pattern):
            if re.search(start, _head(file)):
                return f"{file.relative_to(folder).as_posix()} is {what}"
    return (
        "no data set found: no COCO JSON (here, in annotations/, or in train/, valid/, test/), no"
        " Annotations/*.xml (Pascal VOC), no data.yaml, obj.data or classes.txt with labels/"
        " (YOLO). Name its annotation file."
    )


def _near(folder: Path, pattern: str) -> list[Path]:
    """The first files of that name here and one and two folders down."""
    places = (folder.glob(f"{depth}{pattern}") for depth in ("", "*/", "*/*/"))
    return [file for place in places for file in sorted(place) if file.is_file()][:20]


def other_format(file: Path) -> str:
    """What to export instead, where a JSON file is of a known format that isn't read; else
    empty.
    """
    try:
        data, _ = to_utf8(load_bytes(file))
        found = msgspec.json.decode(data)
    except (Unreadable, msgspec.MsgspecError, ValueError, RecursionError):
        return ""
    if isinstance(found, dict) and {"shapes", "imagePath"} <= set(found):
        return (
            "is LabelMe's own JSON, a file an image, which isn't read; convert the folder to COCO"
            " by labelme's labelme2coco.py, or to Pascal VOC by labelme2voc.py."
        )
    if isinstance(found, dict) and "_via_img_metadata" in found:
        return f"is a project of VIA, {_VIA}"
    if isinstance(found, dict) and {"objects", "size", "tags"} <= set(found):
        return (
            "is Supervisely's own JSON, a file an image, which isn't read; export COCO (its app"
            " `Export to COCO`)."
        )
    if isinstance(found, dict) and {"items", "categories"} <= set(found):
        return (
            "is Datumaro's own format, which isn't read; run `datum convert -if datumaro -f"
            " coco_instances -i . -o coco -- --save-media`."
        )
    if isinstance(found, dict) and {"samples"} <= set(found):
        return "is FiftyOne's own format, which isn't read; export COCODetectionDataset."
    first = found[0] if isinstance(found, list) and found else None
    if isinstance(first, dict) and {"image", "annotations"} <= set(first):
        return "is CreateML's own JSON, which isn't read; export COCO or Pascal VOC."
    if isinstance(first, dict) and ("annotations" in first or "completions" in first):
        return "is Label Studio's own JSON, which isn't read; export COCO or YOLO with images."
    if isinstance(found, dict) and found:
        value = next(iter(found.values()))
        if isinstance(value, dict) and {"regions", "filename"} <= set(value):
            return f"is VIA's own JSON, {_VIA}"
    return ""


def is_cvat_xml(folder: Path) -> bool:
    """CVAT's own XML, which has all images in one file."""
    files = sorted(folder.glob("*.xml"))
    return (
        len(files) == 1
        and b"<annotations" in _head(files[0])
        and not (folder / "Annotations").is_dir()
    )


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(4096)
    except OSError:
        return b""
