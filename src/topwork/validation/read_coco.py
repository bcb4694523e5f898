"""COCO instances JSON -> a RawSplit.

Every record ends in the split's columns, in its findings, or in both.
"""

import json
import math
from collections import Counter
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from topwork.validation.decode import (
    BoxFile,
    Buffer,
    CategoryRecord,
    ImageFields,
    ImageRecord,
    LooseAnnotations,
    LooseFile,
    MaskFile,
    MaskRecord,
    Unreadable,
    decode,
    duplicate_keys,
    load_bytes,
    to_utf8,
    without_nan,
)
from topwork.validation.findings import Box, Findings
from topwork.validation.raw_split import RawSplit, texts

INT64 = 1 << 63
SMALL_BYTES = 64 << 20
_MISSING = object()


def read_coco(
    path: Path,
    split: str,
    root: str,
    findings: Findings,
    *,
    segmentation: bool = True,
    fields: bool = False,
    file: str | None = None,
) -> RawSplit:
    """Read a COCO instances file; faults become findings, and a file that can't be read at all
    gives a split that isn't `readable`.

    Args:
        path: the JSON file.
        split: name of the split it is for.
        root: the images' folder or archive, as written in params.yaml.
        findings: where faults go.
        segmentation: False skips the segmentations unread.
        fields: also keep the image records' other fields, for grouping.
        file: the path as messages should show it.
    """
    raw = RawSplit(split, file or path.as_posix(), root, findings)
    try:
        data, encoding = to_utf8(load_bytes(path))
        if encoding:
            raw.find("file-encoding", f"begins with {encoding}; read, but plain UTF-8 is better")
        _fill(raw, data, segmentation)
        if fields and raw.readable:
            data, _ = without_nan(data)
            raw.fields = _image_fields(data)
    except Unreadable as error:
        raw.find(error.rule, str(error))
        raw.readable = False
    return raw


def _fill(raw: RawSplit, data: Buffer, segmentation: bool) -> None:
    kind = MaskFile if segmentation else BoxFile
    found: Any
    try:
        try:
            found = decode(data, kind)
        except Unreadable as error:
            if isinstance(error.__cause__, RecursionError):
                # not caused by NaN; looking for one would read all of a file of perhaps gigabytes
                raise
            data, count = _without_nan(raw, data)
            if not count:
                raise
            found = decode(data, kind)
        _columns(raw, found, segmentation)
        _read_rotation(raw, data)
        _find_duplicate_keys(raw, data, len(found.images), len(found.annotations))
    except (msgspec.ValidationError, OverflowError):
        _fill_loosely(raw, data, segmentation)


def _without_nan(raw: RawSplit, data: Buffer) -> tuple[Buffer, int]:
    """NaN and Infinity as null, with a finding where there were some, and their number."""
    data, count = without_nan(data)
    if count:
        message = (
            f"NaN or Infinity occurs {count} times where JSON has numbers; each is taken as 'no"
            " number'"
        )
        raw.find("file-nan-token", message)
    return data, count


def _fill_loosely(raw: RawSplit, data: Buffer, segmentation: bool) -> None:
    """Record by record, where some don't fit."""
    data = _without_nan(raw, data)[0]
    loose = _loose(raw, data)
    if loose is None:
        return
    _find_duplicate_keys(
        raw, data, len(loose.images), len(loose.annotations), closely=len(data) < SMALL_BYTES
    )
    _columns(raw, _salvage(raw, loose), segmentation)
    _read_rotation(raw, data)


def _loose(raw: RawSplit, data: Buffer) -> LooseFile | None:
    """The three lists with unread records, or a finding that names the list that is missing or
    isn't a list.
    """
    try:
        found: LooseFile = decode(data, LooseFile)
        return found
    except msgspec.ValidationError as error:
        hint = ""
        if data[:1] == b"[":
            hint = " (a bare list may be detection results or another format)"
        raw.find(
            "file-not-coco",
            f"{error}; expected an object with the lists images, annotations and categories{hint}",
        )
        raw.readable = False
        return None


def _columns(raw: RawSplit, found: Any, segmentation: bool) -> None:
    """Records into columns.

    Raises:
        OverflowError: a number is beyond int64.
        Unreadable: a segmentation isn't UTF-8.
    """
    images, annotations, categories = found.images, found.annotations, found.categories
    raw.image_id = np.array([record.id for record in images], np.int64)
    raw.file_name = [record.file_name for record in images]
    raw.image_width = np.array([record.width for record in images], np.int64)
    raw.image_height = np.array([record.height for record in images], np.int64)
    raw.category_id = np.array([record.id for record in categories], np.int64)
    raw.category_name = [record.name for record in categories]
    count = len(annotations)
    raw.annotation_id, raw.annotated, raw.category, flags = (
        np.fromiter(map(attrgetter(name), annotations), np.int64, count)
        for name in ("id", "image_id", "category_id", "iscrowd")
    )
    raw.box = np.fromiter(
        chain.from_iterable(map(attrgetter("bbox"), annotations)), np.float64, 4 * count
    ).reshape(count, 4)
    raw.area = np.array(list(map(attrgetter("area"), annotations)), np.float64)
    raw.crowd = flags != 0
    if segmentation:
        try:
            raw.segmentation = texts(list(map(attrgetter("segmentation"), annotations)))
        except pa.ArrowInvalid as error:
            raise Unreadable(
                "file-not-json", f"isn't JSON: a text within isn't UTF-8 ({error})"
            ) from error
    for row in np.flatnonzero((flags != 0) & (flags != 1)):
        raw.find_annotation(
            "crowd-flag", int(row), f"iscrowd is {flags[row]}, expected 0 or 1; taken as a crowd"
        )


def _read_rotation(raw: RawSplit, data: Buffer) -> None:
    """Angles of boxes, as CVAT (`attributes: {rotation: 30}`) and others write them; looked for
    only where the word occurs.
    """
    if data.find(b'"rotation"') < 0:
        return
    angles: dict[int, float] = {}
    for unread in decode(data, LooseAnnotations).annotations:
        if b'"rotation"' not in bytes(unread):
            continue
        record = _any(unread)
        if not isinstance(record, dict):
            continue
        attributes = record.get("attributes")
        value = record.get("rotation")
        if isinstance(attributes, dict):
            value = attributes.get("rotation", value)
        key = _whole(record.get("id"))
        if key is not None and value is not None and _is_number(value) and value != 0:
            angles[key] = float(value)
    if angles:
        raw.rotation = np.array([angles.get(key, 0.0) for key in raw.annotation_id.tolist()])


def _salvage(raw: RawSplit, loose: LooseFile) -> MaskFile:
    """Typed records one by one; what can't be one becomes a finding."""
    images, categories, annotations = [], [], []
    for index, unread in enumerate(loose.images):
        image = _typed(unread, ImageRecord) or _salvage_image(raw, index, _any(unread))
        if image is not None:
            images.append(image)
    for index, unread in enumerate(loose.categories):
        category = _typed(unread, CategoryRecord) or _salvage_category(raw, index, _any(unread))
        if category is not None:
            categories.append(category)
    nameless = []
    for index, unread in enumerate(loose.annotations):
        annotation = _typed(unread, MaskRecord)
        if annotation is None:
            annotation, has_id = _salvage_annotation(raw, index, _any(unread))
            if annotation is not None and not has_id:
                nameless.append(annotation)
        if annotation is not None:
            annotations.append(annotation)
    following = max((record.id for record in annotations), default=0) + 1
    for offset, record in enumerate(nameless):
        record.id = following + offset
        raw.find(
            "annotation-id-missing",
            f"has no id in the file; given {record.id}",
            image_id=record.image_id,
            annotation_id=record.id,
        )
    return MaskFile(images, annotations, categories)


def _typed(unread: msgspec.Raw, kind: type[Any]) -> Any:
    """The record, or None where it isn't of that kind or has a number beyond int64."""
    try:
        record = msgspec.json.decode(unread, type=kind)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return None
    numbers = [
        getattr(record, name, 0)
        for name in ("id", "image_id", "category_id", "width", "height", "iscrowd")
    ]
    return record if all(-INT64 <= number < INT64 for number in numbers) else None


def _any(unread: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(unread)
    except (msgspec.DecodeError, RecursionError, ValueError):
        pass
    try:
        return json.loads(bytes(unread))  # numbers beyond a float, which become infinite here
    except (RecursionError, ValueError) as error:
        return f"(unreadable: {error})"


def _salvage_image(raw: RawSplit, index: int, value: Any) -> ImageRecord | None:
    where = f"images[{index}]"
    if not isinstance(value, dict):
        raw.find(
            "record-malformed",
            f"{where}: found {_shown(value)}, expected an object with id, file_name, width and"
            " height",
        )
        return None
    number, name = _id(raw, value, "id", where), value.get("file_name")
    if number is None or not isinstance(name, str):
        if number is not None:
            raw.find(
                "record-malformed",
                f"{where}: file_name is {_shown(name)}, expected text",
                image_id=number,
            )
        return None
    width, height = (_whole(value.get(key)) for key in ("width", "height"))
    return ImageRecord(number, name, width or 0, height or 0)  # 0 is found as image-size-missing


def _salvage_category(raw: RawSplit, index: int, value: Any) -> CategoryRecord | None:
    where = f"categories[{index}]"
    if not isinstance(value, dict):
        raw.find(
            "record-malformed",
            f"{where}: found {_shown(value)}, expected an object with id and name",
        )
        return None
    number, name = _id(raw, value, "id", where), value.get("name")
    if number is None:
        return None
    return CategoryRecord(
        number, name if isinstance(name, str) else "" if name is None else str(name)
    )


def _salvage_annotation(raw: RawSplit, index: int, value: Any) -> tuple[MaskRecord | None, bool]:
    where = f"annotations[{index}]"
    if not isinstance(value, dict):
        raw.find(
            "record-malformed",
            f"{where}: found {_shown(value)}, expected an object with id, image_id, category_id and"
            " bbox",
        )
        return None, False
    box, complaint = _salvage_box(value.get("bbox", _MISSING))
    has_id = value.get("id") is not None
    number = _id(raw, value, "id", where, box) if has_id else 0
    image, category = (_id(raw, value, key, where, box) for key in ("image_id", "category_id"))
    if number is None or image is None or category is None:
        return None, has_id
    if complaint:
        raw.find(
            "box-missing" if complaint == "missing" else "box-nan",
            f"bbox is {complaint}, expected four numbers",
            image_id=image,
            annotation_id=number,
            box=box,
        )
    area, crowd, shape = (
        value.get("area"),
        value.get("iscrowd", 0),
        value.get("segmentation", _MISSING),
    )
    if area is not None and not _is_number(area):
        raw.find(
            "area-bad",
            f"area is {_shown(area)}, expected a number",
            image_id=image,
            annotation_id=number,
            box=box,
        )
        area = None
    flag = _whole(crowd) if not isinstance(crowd, bool) else int(crowd)
    if flag is None:
        raw.find(
            "crowd-flag",
            f"iscrowd is {_shown(crowd)}, expected 0 or 1; taken as 0",
            image_id=image,
            annotation_id=number,
            box=box,
        )
        flag = 0
    polygons = msgspec.Raw(
        b"" if shape is _MISSING or shape is None else msgspec.json.encode(shape)
    )
    return MaskRecord(number, image, category, box or (math.nan,) * 4, area, flag, polygons), has_id


def _salvage_box(value: Any) -> tuple[Box | None, str | None]:
    """(box, complaint): NaN where a coordinate is no number; the complaint is None where the checks
    of boxes report it.
    """
    if value is _MISSING or value is None or value == []:
        return None, "missing"
    if not isinstance(value, list) or len(value) != 4:
        return None, _shown(value)
    x, y, width, height = (float(number) if _is_number(number) else math.nan for number in value)
    return (x, y, width, height), None


def _id(
    raw: RawSplit, record: dict[str, Any], key: str, where: str, box: Box | None = None
) -> int | None:
    """A whole number, if necessary from text that spells it; None, with a finding, where it's
    neither.
    """
    value = record.get(key)
    number = _whole(value)
    if number is None and isinstance(value, str):
        try:
            number = int(value)
        except ValueError:
            number = None
        if number is not None and -INT64 <= number < INT64:
            raw.find(
                "id-text", f"{where}: {key} is the text {value[:40]!r}, read as {number}", box=box
            )
            return number
    if number is None or not -INT64 <= number < INT64:
        others = {name: _whole(record.get(name)) for name in ("image_id", "id")}
        raw.find(
            "record-malformed",
            f"{where}: {key} is {_shown(value)}, expected a whole number below 2^63",
            annotation_id=(
                others["id"] if where.startswith("annotations") and _small(others["id"]) else None
            ),
            image_id=others["image_id"] if _small(others["image_id"]) else None,
            box=box,
        )
        return None
    return number


def _small(value: int | None) -> bool:
    return value is not None and -INT64 <= value < INT64


def _whole(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value if isinstance(value, int) and -INT64 <= value < INT64 else None


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _shown(value: Any) -> str:
    if value is None:
        return "missing"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _image_fields(data: Buffer) -> dict[int, dict[str, Any]]:
    try:
        records = decode(data, ImageFields).images
    except (msgspec.ValidationError, Unreadable):
        return {}
    return {record["id"]: record for record in records if isinstance(record.get("id"), int)}


def first_names(path: Path, count: int) -> list[str]:
    """The first file names that a COCO file lists; none where it can't be read."""
    try:
        data, _ = without_nan(to_utf8(load_bytes(path))[0])
        records = decode(data, ImageFields).images[:count]
    except (msgspec.ValidationError, Unreadable):
        return []
    return [
        record["file_name"]
        for record in records
        if isinstance(record.get("file_name"), str) and "\0" not in record["file_name"]
    ]


def _find_duplicate_keys(
    raw: RawSplit, data: Buffer, images: int, annotations: int, *, closely: bool = False
) -> None:
    """Look for keys written twice; one by one only where a count of the known keys shows that there
    may be some.
    """
    expected = {b'"annotations"': 1, b'"images"': 1, b'"categories"': 1, b'"file_name"': images}
    expected |= dict.fromkeys((b'"image_id"', b'"category_id"', b'"bbox"'), annotations)
    if (
        not closely
        and all(_count(data, key) <= count for key, count in expected.items())
        and (data.find(b"\\") < 0 or _count(data, b"\\u00") == 0)
    ):
        return
    for (where, key), times in Counter(duplicate_keys(data)).items():
        raw.find(
            "file-key-twice",
            f"{where}: the key {key!r} occurs {times + 1} times; only one is read",
        )


def _count(data: Buffer, key: bytes) -> int:
    if isinstance(data, bytes):
        return data.count(key)
    count, place = 0, data.find(key)
    while place >= 0:
        count, place = count + 1, data.find(key, place + 1)
    return count
