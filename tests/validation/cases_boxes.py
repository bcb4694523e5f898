"""For each rule on boxes, areas, crowds and segmentations: what triggers it, and the nearest thing
that doesn't. The first box is [3, 5, 12, 14].
"""

from collections.abc import Callable
from typing import Any

from validation.scene import ABSENT, Scene

Case = Callable[[Scene], Scene]

# run lengths of a 100 x 80 image, by columns: the rectangle x 3..14, y 5..18
RUNS: list[int] = [3 * 80 + 5, *([14, 66] * 11), 14]
RUNS.append(100 * 80 - sum(RUNS))
RECTANGLE = [3, 5, 15, 5, 15, 19, 3, 19]


def rle(size: tuple[int, int] = (80, 100), counts: Any = None) -> dict[str, Any]:
    return {"size": list(size), "counts": RUNS if counts is None else counts}


def pair(box: list[float], other: list[float], classes: tuple[int, int] = (1, 1)) -> Case:
    """Two boxes in the first image."""

    def spoil(scene: Scene) -> Scene:
        for index, (numbers, category) in enumerate(zip((box, other), classes, strict=True)):
            scene.box(index, *numbers).annotation(index, category_id=category)
        return scene

    return spoil


def xyxy(scene: Scene, rows: int) -> Scene:
    """Boxes as corners, some of which leave the image when read as xywh."""
    for index in range(rows):
        x, y = 55 + index % 6, 45 + index // 6
        scene.box(index, x, y, x + 20, y + 15)
    return scene


def crowds(scene: Scene, count: int) -> Scene:
    rows = [row for row in scene.sets["train"]["annotations"] if row["category_id"] == 2]
    for row in rows[:count]:
        row["iscrowd"] = 1
    return scene


def shares(scene: Scene, largest: float) -> Scene:
    for index in range(24):
        scene.box(index, 0.01 * index, 0.1, 0.2, 0.3 + 0.01 * index)
    return scene.box(0, 0.1, 0.1, 0.2, largest)


BOX_CASES: dict[str, tuple[Case, Case]] = {
    "box-missing": (lambda s: s.annotation(0, bbox=ABSENT), lambda s: s),
    "box-nan": (
        lambda s: s.annotation(0, bbox=[3, None, 12, 14]),
        lambda s: s.box(0, 3, 5.0, 12, 1.4e1),
    ),
    "box-zero": (lambda s: s.box(0, 3, 5, 12, 0), lambda s: s.box(0, 3, 5, 12, 0.5)),
    "box-negative": (lambda s: s.box(0, 15, 19, -12, -14), lambda s: s.box(0, -0.5, 5, 12, 14)),
    "box-outside": (lambda s: s.box(0, 100, 5, 12, 14), lambda s: s.box(0, 97, 5, 12, 14)),
    "box-beyond": (lambda s: s.box(0, 90, 5, 12, 14), lambda s: s.box(0, 90, 5, 10.5, 14)),
    "box-rounding": (lambda s: s.box(0, 90, 5, 10.5, 14), lambda s: s.box(0, 90, 5, 10, 14)),
    "box-tiny": (lambda s: s.box(0, 3, 5, 12, 1.5), lambda s: s.box(0, 3, 5, 12, 2)),
    "box-whole-image": (lambda s: s.box(0, 0, 0, 100, 80), lambda s: s.box(0, 0, 0, 100, 79)),
    "box-slim": (
        lambda s: s.image(0, width=200).box(0, 0, 5, 105, 2),
        lambda s: s.image(0, width=200).box(0, 0, 5, 100, 2),
    ),
    "box-xyxy": (lambda s: xyxy(s, 24), lambda s: xyxy(s, 2)),
    "box-normalised": (lambda s: shares(s, 0.5), lambda s: shares(s, 1.5)),
    "box-twin": (
        pair([10, 10, 30, 30], [10.4, 10, 30, 30]),
        pair([10, 10, 30, 30], [11, 10, 30, 30]),
    ),
    "box-near-twin": (
        pair([10, 10, 60, 60], [11, 10, 60, 60]),
        pair([10, 10, 60, 60], [13, 10, 60, 60]),
    ),
    "box-two-classes": (
        pair([10, 10, 30, 30], [10, 10, 30, 30], (1, 2)),
        pair([10, 10, 30, 30], [12, 10, 30, 30], (1, 2)),
    ),
    "area-missing": (lambda s: s.annotation(0, area=ABSENT), lambda s: s),
    "area-bad": (lambda s: s.annotation(0, area=0), lambda s: s.annotation(0, area=0.5)),
    "area-beyond-box": (lambda s: s.annotation(0, area=180), lambda s: s.annotation(0, area=169)),
    "crowd-flag": (lambda s: s.annotation(0, iscrowd=2), lambda s: s.annotation(0, iscrowd=True)),
    "crowd-polygon": (
        lambda s: s.mask(0, [RECTANGLE], iscrowd=1),
        lambda s: s.mask(0, rle(), iscrowd=1),
    ),
    "crowd-many": (lambda s: crowds(s, 6), lambda s: crowds(s, 5)),
    "crowd-all": (lambda s: crowds(s, 12), lambda s: crowds(s, 11)),
    "box-rotated": (
        lambda s: s.annotation(0, attributes={"rotation": 30.0}),
        lambda s: s.annotation(0, attributes={"rotation": 180.0}),
    ),
    "segmentation-malformed": (lambda s: s.mask(0, "polygon"), lambda s: s.mask(0, [RECTANGLE])),
    "segmentation-nan": (lambda s: s.mask(0, [[3, 5, None, 5, 15, 19]]), lambda s: s.mask(0, None)),
    "polygon-odd": (lambda s: s.mask(0, [RECTANGLE[:7]]), lambda s: s.mask(0, [RECTANGLE])),
    "polygon-short": (
        lambda s: s.mask(0, [[3, 5, 15, 19]]),
        lambda s: s.mask(0, [[3, 5, 15, 19, 15, 5]]),
    ),
    "polygon-flat": (
        lambda s: s.mask(0, [[3, 5, 9, 12, 15, 19]]),
        lambda s: s.mask(0, [[3, 5, 15, 5, 15, 19]]),
    ),
    "segmentation-outside": (
        lambda s: s.box(0, -2, 5, 12, 14).mask(0, [[-2, 5, 10, 5, 10, 19, -2, 19]]),
        lambda s: s.box(0, -1, 5, 12, 14).mask(0, [[-1, 5, 11, 5, 11, 19, -1, 19]]),
    ),
    "segmentation-box-differs": (
        lambda s: s.mask(0, [[3, 5, 18, 5, 18, 19, 3, 19]]),
        lambda s: s.mask(0, [[3, 5, 16.9, 5, 16.9, 19, 3, 19]]),
    ),
    "segmentation-area-differs": (
        lambda s: s.mask(0, [RECTANGLE], area=100),
        lambda s: s.mask(0, [RECTANGLE], area=140),
    ),
    "rle-size-differs": (lambda s: s.mask(0, rle((100, 80))), lambda s: s.mask(0, rle((80, 100)))),
    "rle-counts": (
        lambda s: s.mask(0, rle(counts=RUNS[:-1])),
        lambda s: s.mask(0, rle(counts=RUNS)),
    ),
}
