"""YOLO -> a RawSplit: images/ and labels/ side by side, one text file an image; `yolo_set` has the
file that names classes and lists.

A row is `class x_centre y_centre width height`, in shares of the image. More numbers are corners
(`class x y x y x y ...`: a polygon, or four of an oriented box, of which the upright hull is
taken), or, where data.yaml declares `kpt_shape`, a box and its keypoints, which are left out.
Shares become pixels by the size in the image's header. Class numbers stay as they are, from 0.
Image ids number the images in order of name; annotation ids are image id x 10,000 + line.
"""

import math
from pathlib import Path, PurePosixPath

import msgspec

from topwork.dataset.images import IMAGE_SUFFIXES, header_size
from topwork.params.dataset import SetParams
from topwork.validation.findings import Box, Findings
from topwork.validation.raw_split import RawSplit, Rows
from topwork.validation.yolo_set import (
    MAX_LABEL_BYTES,
    OTHER_NAME,
    NotYolo,
    YoloSet,
    is_file,
    load_yolo,
    nearest,
    text_lines,
)

MAX_NAME_BYTES = 255
PER_IMAGE = 10_000
POSE_ROWS = 3  # rows of one length from which undeclared keypoints are distinguished from polygons
POSE_FILL = 0.3  # share of a box's sides that its keypoints span at least, in the median
VISIBILITY = {0.0, 1.0, 2.0}
"""The third number of a keypoint: not marked, hidden, visible."""


def read_yolo(
    path: Path, split: str, entry: SetParams, findings: Findings, *, upright: bool = False
) -> RawSplit:
    """Read one list (train, val, test) of a YOLO set; file names are relative to its folder.

    Boxes are in pixels of the stored picture, or with `upright` of the one that its EXIF
    orientation asks for.
    """
    root = entry.annotations if path.is_dir() else entry.annotations.parent
    raw = RawSplit(split, entry.annotations.as_posix(), root.as_posix(), findings, format="yolo")
    raw.sizes_declared = False
    try:
        found = load_yolo(path)
        images = _content(raw, found, entry.subset or split)
    except NotYolo as error:
        raw.find("file-not-yolo", str(error))
        raw.readable = False
        return raw
    if found.count is not None and found.count != len(found.names):
        raw.find(
            "yolo-class-count",
            f"declares {found.count} classes and names {len(found.names)}"
            f" ({', '.join(list(found.names.values())[:20])}); mend `nc` or `names`",
        )
    rows = Rows(categories=sorted(found.names.items()))
    labels: dict[Path, str] = {}
    lengths = _Lengths(found)
    for number, image in enumerate(images, 1):
        name = image.relative_to(found.folder).as_posix()
        width, height = header_size(image, upright=upright)
        rows.images.append((number, name, width, height))
        label = _label_of(image)
        if label in labels and label.is_file():
            raw.find(
                "label-shared",
                f"{label.relative_to(found.folder).as_posix()} is the label file of both"
                f" {labels[label]} and {name}; rename one image and give it its own",
                image_id=number,
                image=name,
            )
        labels[label] = name
        for line, text in _lines(raw, label, number, name):
            _row(
                raw,
                rows,
                text,
                (number * PER_IMAGE + line, number),
                name,
                label.name,
                (width, height),
                lengths,
            )
    lengths.check(raw)
    if images and not any(label.is_file() for label in labels):
        raw.looked_for = next(iter(labels)).relative_to(found.folder).as_posix()
    for place in sorted({label.parent for label in labels}):
        for other in sorted(place.iterdir()) if place.is_dir() else ():
            if (
                other.suffix.lower() == ".txt"
                and other not in labels
                and other.name not in ("classes.txt", "train.txt", "val.txt", "test.txt")
            ):
                raw.find(
                    "label-without-image",
                    f"{other.relative_to(found.folder).as_posix()} has no image",
                )
    rows.put(raw)
    return raw


def yolo_images(path: Path, subset: str) -> list[Path]:
    """The images of one list; none where it can't be read."""
    try:
        return _content(None, load_yolo(path), subset)
    except NotYolo:
        return []


def _content(raw: RawSplit | None, found: YoloSet, subset: str) -> list[Path]:
    """The images of one list, by name."""
    key = found.list_name(subset)
    if key is None:
        raise NotYolo(f"has no `{subset}:`; name another list by `subset` in params.yaml")
    return sorted(
        {image for entry in found.lists[key] for image in _images(raw, found, entry, key)}
    )


def _images(raw: RawSplit | None, found: YoloSet, entry: str, key: str) -> list[Path]:
    """Images of a folder or of a text file that lists them; nothing outside the set's own folder is
    read.
    """
    folder = found.folder
    # Roboflow writes ../train/images for train/images
    plain = entry.removeprefix("../").removeprefix("./")
    swapped = [
        PurePosixPath(*(other if part == name else part for part in PurePosixPath(plain).parts))
        for name, others in OTHER_NAME.items()
        for other in others
        if name in PurePosixPath(plain).parts
    ]
    for place in [
        folder.joinpath(found.prefix, entry) if found.prefix else folder / entry,
        folder / entry,
        folder / plain,
        *(folder / other for other in swapped),
    ]:
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
                return _listed(raw, folder, place)
        except (OSError, ValueError):
            continue
    listed = nearest(folder, entry) if entry.lower().endswith(".txt") else None
    if listed is not None:
        return _listed(raw, folder, listed)
    raise NotYolo(f"`{key}: {entry}` is no folder or text file below the folder of the set")


def _listed(raw: RawSplit | None, folder: Path, file: Path) -> list[Path]:
    found = []
    matched: list[tuple[str, str]] = []
    for line in text_lines(file):
        given = line if is_file(file.parent / line) else line.replace("\\", "/")
        name = PurePosixPath(given.removeprefix("./"))
        if not name.parts or any(len(part.encode()) > MAX_NAME_BYTES for part in name.parts):
            raise NotYolo(f"{file.name}: {line[:60]!r} is no name of an image")
        away = name.is_absolute() or ":" in name.parts[0] or ".." in name.parts or "\0" in line
        places = [] if away else [file.parent / name, folder / name]
        place = next((place for place in places if is_file(place)), None)
        if place is None and (place := nearest(folder, given)) is not None:
            matched.append((line, place.relative_to(folder).as_posix()))
        if place is None and away:
            raise NotYolo(
                f"{file.name}: {line!r} leads out of the set's folder, which has no such image;"
                " it's never read"
            )
        found.append(place or folder / name)
    if matched and raw is not None:
        raw.find(
            "list-path-matched",
            f"{len(matched)} lines of {file.name} are of another place, such as {matched[0][0]!r},"
            f" read as {matched[0][1]}",
        )
    return found


def _label_of(image: Path) -> Path:
    """labels/ in place of the last images/ of its path; next to the image where there is none;
    .TXT where that's how it's written.
    """
    steps = list(image.parts)
    for index in range(len(steps) - 2, -1, -1):
        if steps[index] == "images":
            steps[index] = "labels"
            break
    label = Path(*steps).with_suffix(".txt")
    upper = label.with_suffix(".TXT")
    return upper if not label.exists() and upper.is_file() else label


class _Lengths:
    """How many numbers rows have: what was declared, and what was seen."""

    def __init__(self, found: YoloSet) -> None:
        self.pose = 5 + found.keypoints if found.keypoints else None
        self.task = found.task
        self.kinds: dict[str, list[str]] = {"a box": [], "corners": []}
        self.rows: list[list[float]] = []

    def kind(self, values: list[float], where: str) -> str | None:
        """`box` or `corners`; None where a row of that length can't be in the set."""
        count = len(values)
        if self.pose is not None:
            return "box" if count in (5, self.pose) else None
        if count == 5:
            self.kinds["a box"].append(where)
            return "box"
        corners = {"detect": False, "obb": count == 9}.get(
            self.task or "", count >= 7 and count % 2 == 1
        )
        if not corners:
            return None
        self.kinds["corners"].append(where)
        if self.task is None and count > 9:
            self.rows.append(values)
        return "corners"

    def expected(self) -> str:
        """What a row should be, for messages."""
        box = "`class x_centre y_centre width height`"
        if self.pose is not None:
            return f"{box} and {self.pose - 5} numbers of keypoints (`kpt_shape`)"
        if self.task == "detect":
            return f"{box} (`task: detect`)"
        if self.task == "obb":
            return "`class x y x y x y x y` (`task: obb`)"
        return (
            f"{box} or `class x y x y x y ...`; keypoints are read where data.yaml declares"
            " `kpt_shape`"
        )

    def check(self, raw: RawSplit) -> None:
        """Rules on the rows of a set together."""
        boxes, corners = self.kinds["a box"], self.kinds["corners"]
        if boxes and corners:
            few, many = sorted((boxes, corners), key=len)
            what = "corners" if few is corners else "a box"
            other = "corners" if few is boxes else "a box"
            shown = f"{', '.join(few[:10])}{', ...' if len(few) > 10 else ''}"
            raw.find(
                "yolo-rows-mixed",
                f"{len(few)} rows are {what} and {len(many)} are {other}: {shown}",
            )
        if shape := self._undeclared():
            raw.find(
                "yolo-pose-undeclared",
                f"all {len(self.rows)} long rows have {len(self.rows[0])} numbers and read as a box"
                f" with {shape[0]} keypoints in it; write `kpt_shape: [{shape[0]}, {shape[1]}]`"
                " into data.yaml, or `task: segment` if they are polygons",
            )

    def _undeclared(self) -> tuple[int, int] | None:
        """Keypoints a row and numbers of each, where rows are poses that nothing declares."""
        lengths = {len(row) for row in self.rows}
        if len(lengths) != 1:
            return None
        further = lengths.pop() - 5
        seen = [value for row in self.rows for value in row[7::3]]
        if further % 3 == 0 and set(seen) <= VISIBILITY:
            step = 3
        elif further % 2 == 0:
            step = 2
        else:
            return None
        # a share of 2 is no corner; else it takes several rows to tell
        if len(self.rows) < POSE_ROWS and not (step == 3 and 2.0 in seen):
            return None
        fills = [_fill(row[1:5], row[5::step], row[6::step]) for row in self.rows]
        known = [fill for fill in fills if fill is not None]
        if len(known) < len(fills) or sorted(known)[len(known) // 2] < POSE_FILL:
            return None
        return further // step, step


def _fill(box: list[float], xs: list[float], ys: list[float]) -> float | None:
    """The share of a box's longer-filled side that keypoints span; None where one is outside of it
    (0, 0 means that it isn't marked).
    """
    x, y, width, height = box
    points = [point for point in zip(xs, ys, strict=True) if point != (0.0, 0.0)]
    if not points or not (width > 0 and height > 0):
        return None
    if any(abs(px - x) > width / 2 + 0.01 or abs(py - y) > height / 2 + 0.01 for px, py in points):
        return None
    wide = max(px for px, _ in points) - min(px for px, _ in points)
    high = max(py for _, py in points) - min(py for _, py in points)
    return max(wide / width, high / height)


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
    lengths: _Lengths,
) -> None:
    key, number = ids
    where = f"{label} line {key % PER_IMAGE}"
    try:
        values = [float(value) for value in text.split()]
        category = int(values[0])
        if category != values[0] or not 0 <= category < 1 << 31:
            raise ValueError
        kind = lengths.kind(values, where)
        if kind is None:
            raise ValueError
    except (ValueError, OverflowError):
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        numbers = len(text.split())
        message = (
            f"{label}: line {key % PER_IMAGE}: found {shown!r} ({numbers} numbers), expected"
            f" {lengths.expected()}"
        )
        raw.find("record-malformed", message, image_id=number, annotation_id=key, image=name)
        return
    width, height = size if min(size) > 0 else (math.nan, math.nan)
    box: Box
    if kind == "box":
        x, y, w, h = values[1:5]
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
