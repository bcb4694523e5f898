"""YOLO -> a RawSplit: data.yaml, images/ and labels/ side by side, one text file an image.

A row is `class x_centre y_centre width height`, or `class x y x y x y ...` for a polygon, in shares
of the image; they become pixels by the size in the image's header. Class numbers stay as they are,
from 0. Image ids number the images in order of name; annotation ids are image id x 10,000 + line.
"""

import math
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
from PIL import Image

from topwork.dataset.images import IMAGE_SUFFIXES
from topwork.params.dataset import SetParams
from topwork.project.names import CUSTOM_SPLITS
from topwork.validation.findings import Box, Findings
from topwork.validation.raw_split import RawSplit, Rows

MAX_YAML_BYTES = 4 << 20
MAX_LABEL_BYTES = 32 << 20
PER_IMAGE = 10_000


class _NotYolo(Exception):
    """What was found instead of a data.yaml."""


def read_yolo(path: Path, split: str, base: Path, entry: SetParams, findings: Findings) -> RawSplit:
    """Read one list (train, val, test) of a YOLO set; file names are relative to the folder of
    data.yaml.
    """
    folder = path.parent
    root = entry.annotations.parent if entry.annotations.suffix else entry.annotations
    raw = RawSplit(split, entry.annotations.as_posix(), root.as_posix(), findings)
    try:
        names, images = _content(path, entry.subset or split)
    except _NotYolo as error:
        raw.find("file-not-yolo", str(error))
        raw.readable = False
        return raw
    rows = Rows(categories=sorted(names.items()))
    labels: set[Path] = set()
    for number, image in enumerate(images, 1):
        name = image.relative_to(folder).as_posix()
        width, height = _size(image)
        rows.images.append((number, name, width, height))
        label = _label_of(image)
        labels.add(label)
        for line, text in _lines(raw, label, number, name):
            _row(
                raw,
                rows,
                text,
                (number * PER_IMAGE + line, number),
                name,
                label.name,
                (width, height),
            )
    for place in sorted({label.parent for label in labels}):
        for other in sorted(place.glob("*.txt")):
            if other not in labels and other.name != "classes.txt":
                raw.find(
                    "label-without-image", f"{other.relative_to(folder).as_posix()} has no image"
                )
    rows.put(raw)
    return raw


def yolo_lists(path: Path) -> list[str]:
    """Which of train, val and test a data.yaml has; ["train"] where it can't be read, so that
    the reader reports why.
    """
    try:
        document = _yaml(path)
    except _NotYolo:
        return ["train"]
    return [
        name
        for name in CUSTOM_SPLITS
        if document.get(name) or (name == "val" and document.get("valid"))
    ] or ["train"]


def _yaml(path: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        if path.exists() and not path.is_file():
            raise _NotYolo("is a folder, a pipe or a device, expected a short data.yaml")
        if path.stat().st_size > MAX_YAML_BYTES:
            raise _NotYolo(f"has {path.stat().st_size} bytes, expected a short data.yaml")
        document = YAML(typ="safe", pure=True).load(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise _NotYolo("no such file") from error
    except (
        OSError,
        UnicodeDecodeError,
        YAMLError,
        ValueError,
        RecursionError,
        TypeError,
        AttributeError,
        KeyError,
        IndexError,
    ) as error:
        raise _NotYolo(f"not readable as YAML: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(document, dict):
        raise _NotYolo(
            f"found {type(document).__name__}, expected `names:` and the lists train, val and test"
        )
    return document


def _content(path: Path, subset: str) -> tuple[dict[int, str], list[Path]]:
    """Class names by number and the images of one list."""
    document = _yaml(path)
    names = document.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if (
        not isinstance(names, dict)
        or not names
        or not all(isinstance(key, int) and 0 <= key < 1 << 31 for key in names)
    ):
        raise _NotYolo("`names` is neither a list of names nor numbers with names")
    key = next(
        (key for key in ((subset, "valid") if subset == "val" else (subset,)) if document.get(key)),
        None,
    )
    if key is None:
        raise _NotYolo(f"has no `{subset}:`; name another list by `subset` in params.yaml")
    entries = document[key] if isinstance(document[key], list) else [document[key]]
    images = sorted(
        {
            image
            for entry in entries
            for image in _images(path.parent, document.get("path"), entry, key)
        }
    )
    return {int(number): str(name) for number, name in names.items()}, images


def _images(folder: Path, prefix: Any, entry: Any, key: str) -> list[Path]:
    """Images of a folder or of a text file that lists them; nothing outside the set's own folder is
    read.
    """
    if not isinstance(entry, str):
        raise _NotYolo(f"`{key}:` is {entry!r}, expected a folder or a text file")
    # Roboflow writes ../train/images for train/images
    plain = entry.removeprefix("../").removeprefix("./")
    below = [str(prefix)] if isinstance(prefix, str) and prefix not in (".", "") else []
    for place in [folder.joinpath(*below, entry), folder / entry, folder / plain]:
        try:
            inside = place.resolve().is_relative_to(folder.resolve())
            if inside and place.is_dir():
                place = folder / place.resolve().relative_to(folder.resolve())
                return [
                    file
                    for file in place.rglob("*")
                    if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
                ]
            if inside and place.is_file():
                return _listed(folder, place)
        except (OSError, ValueError):
            continue
    raise _NotYolo(f"`{key}: {entry}` is no folder or text file below the folder of data.yaml")


def _listed(folder: Path, file: Path) -> list[Path]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _NotYolo(f"{file.name}: can't be read ({error})") from error
    found = []
    for line in filter(None, map(str.strip, lines)):
        name = PurePosixPath(line.removeprefix("./"))
        if name.is_absolute() or ".." in name.parts or "\0" in line:
            raise _NotYolo(f"{file.name}: {line!r} leads out of the set's folder; it's never read")
        nearby = file.parent / name
        found.append(nearby if nearby.exists() else folder / name)
    return found


def _label_of(image: Path) -> Path:
    """labels/ in place of the last images/ of its path; next to the image where there is none."""
    steps = list(image.parts)
    for index in range(len(steps) - 2, -1, -1):
        if steps[index] == "images":
            steps[index] = "labels"
            break
    return Path(*steps).with_suffix(".txt")


def _size(image: Path) -> tuple[int, int]:
    """Width and height from the header; 0 where it can't be read, which the image checks
    report.
    """
    try:
        if not image.is_file():
            return 0, 0  # opening a pipe would wait forever
        with Image.open(image) as opened:
            return opened.size
    except Exception:  # noqa: BLE001 - Pillow's plugins raise almost anything on broken data
        return 0, 0


def _lines(raw: RawSplit, label: Path, number: int, name: str) -> list[tuple[int, str]]:
    try:
        if label.exists() and not label.is_file():
            raise ValueError("a folder, a pipe or a device")
        if label.stat().st_size > MAX_LABEL_BYTES:
            raise ValueError(f"{label.stat().st_size} bytes, at most {MAX_LABEL_BYTES} are read")
        text = label.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return []  # an image without a label file is background, as YOLO has it
    except (OSError, ValueError) as error:
        raw.find(
            "record-malformed",
            f"{label.name}: can't be read ({error})",
            image_id=number,
            image=name,
        )
        return []
    return [(line, row.strip()) for line, row in enumerate(text.split("\n"), 1) if row.strip()]


def _row(
    raw: RawSplit,
    rows: Rows,
    text: str,
    ids: tuple[int, int],
    name: str,
    label: str,
    size: tuple[int, int],
) -> None:
    key, number = ids
    try:
        values = [float(value) for value in text.split()]
        category = int(values[0])
        if (
            category != values[0]
            or not 0 <= category < 1 << 31
            or (len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0))
        ):
            raise ValueError
    except (ValueError, OverflowError):
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        message = (
            f"{label}: line {key % PER_IMAGE}: found {shown!r}, expected `class x_centre y_centre"
            " width height` or `class x y x y x y ...`"
        )
        raw.find("record-malformed", message, image_id=number, annotation_id=key, image=name)
        return
    width, height = size if min(size) > 0 else (math.nan, math.nan)
    box: Box
    if len(values) == 5:
        _, x, y, w, h = values
        box = ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height)
        rows.add((key, number, category), box)
        return
    xs, ys = [x * width for x in values[1::2]], [y * height for y in values[2::2]]
    finite = all(map(math.isfinite, xs + ys))
    box = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)) if finite else (math.nan,) * 4
    flat = [value for point in zip(xs, ys, strict=True) for value in point]
    rows.add(
        (key, number, category), box, segmentation=msgspec.json.encode([flat]) if finite else b""
    )
