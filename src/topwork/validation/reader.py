"""Which reader a set needs: COCO JSON, a Pascal VOC folder, or a YOLO set."""

from pathlib import Path
from typing import Literal

from topwork.params.dataset import SetParams
from topwork.project.names import CUSTOM_SPLITS
from topwork.validation.findings import Findings
from topwork.validation.raw_split import RawSplit
from topwork.validation.read_coco import read_coco
from topwork.validation.read_voc import read_voc
from topwork.validation.read_yolo import read_yolo
from topwork.validation.yolo_set import yolo_file, yolo_lists

Format = Literal["coco", "voc", "yolo"]


def format_of(path: Path) -> Format:
    """The format that a path looks like: a YAML file, obj.data, or a folder with such a file or
    with classes.txt next to labels/ is YOLO; a folder with Annotations or XML files is VOC;
    everything else COCO.
    """
    if path.suffix.lower() in (".yaml", ".yml", ".data") and not path.is_dir():
        return "yolo"
    if path.is_dir():
        voc = (path / "Annotations").is_dir() or next(path.glob("*.xml"), None) is not None
        if (path / "data.yaml").is_file() or (not voc and yolo_file(path) is not None):
            return "yolo"
        if voc:
            return "voc"
    return "coco"


def lists_of(path: Path, kind: Format) -> list[str]:
    """Which of train, val and test a VOC or YOLO set has; none for a VOC folder without lists."""
    if kind == "voc":
        return [
            name
            for name in CUSTOM_SPLITS
            if (path / "ImageSets" / "Main" / f"{name}.txt").is_file()
        ]
    return yolo_lists(path)


def read_split(
    entry: SetParams,
    split: str,
    base: Path,
    findings: Findings,
    *,
    segmentation: bool = True,
    fields: bool = False,
    upright: bool = False,
) -> RawSplit:
    """Read one split; paths of `entry` are relative to `base`, and findings show them so.

    `upright` says that labels were made on pictures turned as EXIF asks; it matters where boxes are
    shares of the image.
    """
    path, file = base / entry.annotations, entry.annotations.as_posix()
    kind = format_of(path)
    if kind == "voc":
        return read_voc(path, split, base, entry, findings)
    if kind == "yolo":
        return read_yolo(path, split, entry, findings, upright=upright)
    root = (
        entry.images.as_posix() if entry.images is not None else entry.annotations.parent.as_posix()
    )
    return read_coco(
        path, split, root, findings, segmentation=segmentation, fields=fields, file=file
    )
