"""Segmentations against their boxes, areas and images: decoded in batches, measured a column at a
time.
"""

import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pycocotools import mask as coco_mask

from topwork.validation.checks.boxes import sizes_of
from topwork.validation.raw_split import Floats, Ints, RawSplit

BATCH = 20_000
BOX_TOLERANCE_PX = 2.0
BOX_TOLERANCE_SHARE = 0.05
AREA_TOLERANCE = 0.2
EDGE_PX = 1.0


class Rle(msgspec.Struct, gc=False):
    """Run lengths: `size` is (height, width); `counts` a list, or COCO's compressed text."""

    size: tuple[int, int]
    counts: list[int] | str


Polygons = list[list[float]]
_DECODER = msgspec.json.Decoder(list[Polygons | Rle | None])
_SINGLE = msgspec.json.Decoder(Polygons | Rle | None)


# coordinates may be anything; what overflows compares as false
@np.errstate(invalid="ignore", over="ignore", divide="ignore")
def check_segmentations(raw: RawSplit) -> None:
    """All rules on segmentations of one split."""
    if raw.segmentation is None or not len(raw.annotation_id):
        return
    image_width, image_height = sizes_of(raw, raw.image_rows())
    for rows, shapes in _batches(raw):
        polygons = [index for index, shape in enumerate(shapes) if type(shape) is list and shape]
        if polygons:
            _check_polygons(
                raw,
                rows[polygons],
                [shapes[index] for index in polygons],
                image_width,
                image_height,
            )
        for index, shape in enumerate(shapes):
            if isinstance(shape, Rle):
                row = int(rows[index])
                _check_rle(raw, row, shape, image_width[row], image_height[row])


def _batches(raw: RawSplit) -> Iterator[tuple[Ints, list[Any]]]:
    """Rows and their decoded segmentations; what can't be decoded is found and left out."""
    column = raw.segmentation
    assert column is not None
    for start in range(0, len(column), BATCH):
        piece = column.slice(start, BATCH)
        rows = np.flatnonzero(np.asarray(piece.is_valid())) + start
        piece = piece.drop_null()
        if not len(piece):
            continue
        whole = pa.ListArray.from_arrays(
            pa.array([0, len(piece)], pa.int32()), piece.cast(pa.string())
        )
        text = pc.binary_join(whole, ",")[0].as_buffer()
        try:
            yield rows, _DECODER.decode(b"[" + text.to_pybytes() + b"]")
        except (msgspec.DecodeError, RecursionError):
            kept, shapes = [], []
            for row, single in zip(rows.tolist(), piece.to_pylist(), strict=True):
                try:
                    shapes.append(_SINGLE.decode(single))
                    kept.append(row)
                except (msgspec.DecodeError, RecursionError) as error:
                    rule = "segmentation-nan" if "null" in single else "segmentation-malformed"
                    raw.find_annotation(
                        rule,
                        row,
                        f"segmentation: {error}; expected [[x, y, x, y, ...], ...] or {{size,"
                        " counts}",
                    )
            yield np.array(kept, np.int64), shapes


def _check_polygons(
    raw: RawSplit, rows: Ints, shapes: list[Polygons], image_width: Floats, image_height: Floats
) -> None:
    counts = np.fromiter(map(len, chain.from_iterable(shapes)), np.int64)
    rings_of = np.fromiter(map(len, shapes), np.int64, len(shapes))
    owner = np.repeat(np.arange(len(shapes)), rings_of)  # ring -> index into rows
    odd = counts % 2 == 1
    short = ~odd & (counts < 6)
    for ring in np.flatnonzero(odd):
        raw.find_annotation(
            "polygon-odd",
            int(rows[owner[ring]]),
            f"a polygon has {counts[ring]} coordinates, expected an even number",
        )
    for ring in np.flatnonzero(short):
        points_text = (
            "four numbers, which pycocotools takes for a box"
            if counts[ring] == 4
            else f"{counts[ring] // 2} points"
        )
        raw.find_annotation(
            "polygon-short",
            int(rows[owner[ring]]),
            f"a polygon has {points_text}, expected three points or more",
        )
    flat = np.fromiter(
        chain.from_iterable(chain.from_iterable(shapes)), np.float64, int(counts.sum())
    )
    sound = ~(odd | short)
    if not sound.all():
        keep = np.repeat(sound, counts)
        flat, counts, owner = flat[keep], counts[sound], owner[sound]
    if not len(counts):
        return
    x, y, points = flat[0::2], flat[1::2], counts // 2
    starts = np.concatenate(([0], np.cumsum(points)[:-1]))
    following = np.arange(1, len(x) + 1)
    following[starts + points - 1] = starts
    twice = np.add.reduceat(x * y[following] - x[following] * y, starts)
    new_owner = np.concatenate(([True], owner[1:] != owner[:-1]))
    first = np.flatnonzero(new_owner)  # first ring of each shape that has one
    index = owner[first]
    left, right = (_over(kind, _over(kind, x, starts), first) for kind in (np.minimum, np.maximum))
    top, bottom = (_over(kind, _over(kind, y, starts), first) for kind in (np.minimum, np.maximum))
    area = np.add.reduceat(np.abs(twice) / 2, first)
    _hold(
        raw,
        rows[index],
        (left, top, right, bottom),
        area,
        np.diff(np.append(first, len(owner))),
        image_width,
        image_height,
    )


def _over(kind: Any, values: Floats, starts: Ints) -> Floats:
    reduced: Floats = kind.reduceat(values, starts)
    return reduced


def _hold(
    raw: RawSplit,
    rows: Ints,
    extent: tuple[Floats, Floats, Floats, Floats],
    area: Floats,
    rings: Ints,
    image_width: Floats,
    image_height: Floats,
) -> None:
    """Extents and areas of the polygons of `rows` against boxes, area fields and images."""
    left, top, right, bottom = extent
    box, declared = raw.box[rows], raw.area[rows]
    crowd = raw.crowd[rows]
    apart = np.max(
        np.abs(
            [
                left - box[:, 0],
                top - box[:, 1],
                right - box[:, 0] - box[:, 2],
                bottom - box[:, 1] - box[:, 3],
            ]
        ),
        axis=0,
    )
    limit = np.maximum(BOX_TOLERANCE_PX, BOX_TOLERANCE_SHARE * np.maximum(box[:, 2], box[:, 3]))
    differs = apart > limit
    beyond = np.max([-left, -top, right - image_width[rows], bottom - image_height[rows]], axis=0)
    outside = (image_width[rows] > 0) & (beyond > EDGE_PX)
    thin = area <= 0
    unequal = (
        ~thin
        & (declared > 0)
        & (rings == 1)
        & (np.abs(area - declared) > AREA_TOLERANCE * np.maximum(area, declared) + 2)
    )
    for at in np.flatnonzero(crowd):
        raw.find_annotation(
            "crowd-polygon",
            int(rows[at]),
            "iscrowd is 1 and the segmentation is polygons, expected run lengths",
        )
    for at in np.flatnonzero(differs):
        found = ", ".join(f"{edge[at]:.6g}" for edge in (left, top, right - left, bottom - top))
        raw.find_annotation(
            "segmentation-box-differs",
            int(rows[at]),
            f"the polygons' extent is [{found}], {apart[at]:.3g} px off the box",
        )
    for at in np.flatnonzero(outside):
        raw.find_annotation(
            "segmentation-outside",
            int(rows[at]),
            f"a polygon reaches {beyond[at]:.4g} px beyond the image",
        )
    for at in np.flatnonzero(thin):
        raw.find_annotation("polygon-flat", int(rows[at]), "the polygons enclose no area")
    for at in np.flatnonzero(unequal):
        raw.find_annotation(
            "segmentation-area-differs",
            int(rows[at]),
            f"the polygon encloses {area[at]:.6g} px, the area field has {declared[at]:.6g}",
        )


def _check_rle(
    raw: RawSplit, row: int, shape: Rle, image_width: float, image_height: float
) -> None:
    height, width = shape.size
    if image_width > 0 and (width, height) != (image_width, image_height):
        raw.find_annotation(
            "rle-size-differs",
            row,
            f"run lengths are for {width}x{height}, the image is"
            f" {image_width:.0f}x{image_height:.0f}",
        )
        return
    if not 0 < width * height <= 1 << 31:
        raw.find_annotation("rle-counts", row, f"run lengths for {width}x{height} pixels")
        return
    counts = shape.counts if isinstance(shape.counts, list) else uncompress(shape.counts)
    if counts is None or any(count < 0 for count in counts) or sum(counts) != width * height:
        total = "can't be decoded" if counts is None else f"add up to {sum(counts)}"
        raw.find_annotation(
            "rle-counts", row, f"run lengths {total}, expected {width * height} ({width}x{height})"
        )
        return
    encoded = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    found = coco_mask.toBbox(encoded)
    box = raw.box[row]
    if not coco_mask.area(encoded):
        raw.find_annotation("polygon-flat", row, "the run lengths mark no pixel")
        return
    apart = max(
        abs(found[0] - box[0]),
        abs(found[1] - box[1]),
        abs(found[0] + found[2] - box[0] - box[2]),
        abs(found[1] + found[3] - box[1] - box[3]),
    )
    if math.isfinite(apart) and apart > max(
        BOX_TOLERANCE_PX, BOX_TOLERANCE_SHARE * max(box[2], box[3])
    ):
        extent = ", ".join(f"{value:.6g}" for value in found)
        raw.find_annotation(
            "segmentation-box-differs",
            row,
            f"the mask's extent is [{extent}], {apart:.3g} px off the box",
        )


def uncompress(text: str) -> list[int] | None:
    """COCO's compressed run lengths as numbers; None where the text isn't such.

    Source: rleFrString in cocoapi's maskApi.c (LEB128-like, six bits a character from '0',
    differences from the third count on).
    """
    counts: list[int] = []
    place = 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            if place >= len(text) or not 48 <= ord(text[place]) < 112 or shift > 60:
                return None
            chunk = ord(text[place]) - 48
            value |= (chunk & 31) << shift
            more = bool(chunk & 32)
            place, shift = place + 1, shift + 5
            if not more and chunk & 16:
                value |= -1 << shift
        if len(counts) > 2:
            value += counts[-2]
        counts.append(value)
    return counts
