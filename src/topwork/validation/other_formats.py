"""Formats of labelled images that are known and not read: what to export instead."""

from pathlib import Path

import msgspec

from topwork.validation.decode import Unreadable, load_bytes, to_utf8


def refusal(folder: Path) -> str:
    """Why nothing was found: a format that isn't read, or what would be."""
    for file in [*sorted(folder.glob("*.json")), *sorted(folder.glob("*/*.json"))][:20]:
        if others := other_format(file):
            return f"{file.relative_to(folder).as_posix()} {others}"
    for file in sorted(folder.glob("*.xml")):
        if b"<annotations" in _head(file):
            return (
                f"{file.name} is CVAT's own XML, which isn't read; export `COCO 1.0` or `PASCAL VOC"
                " 1.1` from CVAT."
            )
    for file in sorted(folder.glob("*.csv")):
        if b"region_shape_attributes" in _head(file):
            return (
                f"{file.name} is a table of VIA, which isn't read; choose Annotation, Export"
                " Annotations (COCO format) in VIA."
            )
    return (
        "no data set found: no COCO JSON (here, in annotations/, or in train/, valid/, test/), no"
        " Annotations/*.xml (Pascal VOC), no data.yaml, obj.data or classes.txt with labels/"
        " (YOLO). Name its annotation file."
    )


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
        return (
            "is a project of VIA, which isn't read; choose Annotation, Export Annotations (COCO"
            " format) in VIA."
        )
    if isinstance(found, dict) and {"items", "categories"} <= set(found):
        return (
            "is Datumaro's own format, which isn't read; run `datum convert -if datumaro -f"
            " coco_instances -i . -o coco -- --save-media`."
        )
    if isinstance(found, dict) and {"samples"} <= set(found):
        return "is FiftyOne's own format, which isn't read; export COCODetectionDataset."
    first = found[0] if isinstance(found, list) and found else None
    if isinstance(first, dict) and ("annotations" in first or "completions" in first):
        return "is Label Studio's own JSON, which isn't read; export COCO or YOLO with images."
    if isinstance(found, dict) and found:
        value = next(iter(found.values()))
        if isinstance(value, dict) and {"regions", "filename"} <= set(value):
            return (
                "is VIA's own JSON, which isn't read; choose Annotation, Export Annotations (COCO"
                " format) in VIA."
            )
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
