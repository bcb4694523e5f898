"""Boxes, areas and crowds, a column at a time."""

import numpy as np

from topwork.validation.raw_split import Bools, Floats, Ints, Part

ROUNDING_PX = 1.0
TINY_PX = 2.0
SLIM = 50.0
WHOLE = 0.995
TWIN_PX = 0.5
NEAR_TWIN_IOU = 0.95
AREA_SLACK = 1.02
MAX_LAG = 40


@np.errstate(
    invalid="ignore", over="ignore", divide="ignore"
)  # coordinates may be anything; what overflows compares as false
def check_boxes(part: Part) -> None:
    """All rules on boxes, areas and crowds of one split."""
    if not len(part.annotation_id):
        return
    told = {
        row.annotation_id
        for row in part.findings
        if row.split == part.split and row.rule in ("box-missing", "box-nan")
    }
    sound = np.isfinite(part.box).all(axis=1)
    for row in np.flatnonzero(~sound):
        if int(part.annotation_id[row]) not in told:
            part.find_annotation(
                "box-nan",
                int(row),
                f"bbox {_say(part.box[row])} has a coordinate that isn't a finite number",
            )
    width, height = part.box[:, 2], part.box[:, 3]
    negative = sound & ((width < 0) | (height < 0))
    zero = sound & ~negative & ((width == 0) | (height == 0))
    for row in np.flatnonzero(negative):
        part.find_annotation(
            "box-negative",
            int(row),
            f"bbox width {width[row]:g}, height {height[row]:g}, must be > 0",
        )
    for row in np.flatnonzero(zero):
        part.find_annotation(
            "box-zero", int(row), f"bbox width {width[row]:g}, height {height[row]:g}, must be > 0"
        )
    usable = sound & ~negative & ~zero
    rows = part.image_rows()
    if not _check_normalised(
        part, usable, rows
    ):  # in pixels, all of these would be tiny, and twins of each other
        _check_places(part, usable, rows)
        _check_shapes(part, usable, rows)
        _check_twins(part, usable & (rows >= 0))
    _check_areas(part, usable)
    _check_crowds(part)


def _check_places(part: Part, usable: Bools, rows: Ints) -> None:
    """Against the image's edges, where the image and its size are known."""
    image_width, image_height = sizes_of(part, rows)
    usable = usable & (image_width > 0) & (image_height > 0)
    x, y, width, height = part.box.T
    beyond = np.max([-x, -y, x + width - image_width, y + height - image_height], axis=0)
    gone = usable & (
        (x >= image_width) | (y >= image_height) | (x + width <= 0) | (y + height <= 0)
    )
    far = usable & ~gone & (beyond > ROUNDING_PX)
    near = usable & ~gone & (beyond > 1e-6) & ~far
    corner = (
        far
        & (width > x)
        & (height > y)
        & (width <= image_width + ROUNDING_PX)
        & (height <= image_height + ROUNDING_PX)
    )
    if corner.sum() > max(3, 0.5 * (far.sum() + 1), 0.05 * usable.sum()):
        part.find(
            "box-xyxy",
            f"{int(corner.sum())} of {int(usable.sum())} boxes leave their image as (x, y, width,"
            " height) and fit as (x1, y1, x2, y2)",
        )
    for row in np.flatnonzero(gone):
        size = f"{image_width[row]:.0f}x{image_height[row]:.0f}"
        part.find_annotation(
            "box-outside",
            int(row),
            f"bbox {_say(part.box[row])} lies wholly outside the image ({size})",
        )
    for row in np.flatnonzero(far):
        size = f"{image_width[row]:.0f}x{image_height[row]:.0f}"
        part.find_annotation(
            "box-beyond",
            int(row),
            f"bbox {_say(part.box[row])} reaches {beyond[row]:.6g} px beyond the image ({size})",
        )
    for row in np.flatnonzero(near):
        part.find_annotation(
            "box-rounding",
            int(row),
            f"bbox {_say(part.box[row])} reaches {beyond[row]:.2g} px beyond the image",
        )


def _check_normalised(part: Part, usable: Bools, rows: Ints) -> bool:
    image_width, image_height = sizes_of(part, rows)
    usable = usable & (image_width > 0) & (image_height > 0)
    boxes = part.box[usable]
    large = (image_width[usable] > 8) & (image_height[usable] > 8)
    if len(boxes) and large.all() and (boxes >= 0).all() and (boxes <= 1).all():
        part.find(
            "box-normalised",
            f"all {len(boxes)} boxes have coordinates between 0 and 1, expected pixels: multiply by"
            " the image's width and height",
        )
        return True
    return False


def _check_shapes(part: Part, usable: Bools, rows: Ints) -> None:
    width, height = part.box[:, 2], part.box[:, 3]
    tiny = usable & (np.minimum(width, height) < TINY_PX)
    slim = usable & ~tiny & (np.maximum(width, height) > SLIM * np.minimum(width, height))
    image_width, image_height = sizes_of(part, rows)
    share = width * height / np.maximum(image_width * image_height, 1)
    whole = usable & (image_width > 0) & (share >= WHOLE)
    for row in np.flatnonzero(tiny):
        part.find_annotation(
            "box-tiny", int(row), f"bbox is {width[row]:.4g} x {height[row]:.4g} px"
        )
    for row in np.flatnonzero(slim):
        part.find_annotation(
            "box-slim", int(row), f"bbox is {width[row]:.4g} x {height[row]:.4g} px"
        )
    for row in np.flatnonzero(whole):
        part.find_annotation(
            "box-whole-image", int(row), f"bbox covers {share[row]:.1%} of its image"
        )


def _check_twins(part: Part, usable: Bools) -> None:
    """Pairs of boxes within an image: those of one image lie side by side after sorting, and are
    compared at growing distance.
    """
    rows = np.flatnonzero(usable & ~part.crowd)
    rows = rows[np.argsort(part.annotated[rows], kind="stable")]
    image, label, box = part.annotated[rows], part.category[rows], part.box[rows]
    right, bottom, area = box[:, 0] + box[:, 2], box[:, 1] + box[:, 3], box[:, 2] * box[:, 3]
    for lag in range(1, MAX_LAG + 1):
        first = (
            np.flatnonzero(image[lag:] == image[:-lag])
            if lag < len(rows)
            else np.empty(0, np.int64)
        )
        if not len(first):
            return
        second = first + lag
        across = np.minimum(right[first], right[second]) - np.maximum(box[first, 0], box[second, 0])
        down = np.minimum(bottom[first], bottom[second]) - np.maximum(box[first, 1], box[second, 1])
        both = np.maximum(across, 0) * np.maximum(down, 0)
        overlap = both / np.maximum(area[first] + area[second] - both, 1e-12)
        for pair in np.flatnonzero(overlap > 0.9):
            one, two = int(rows[first[pair]]), int(rows[second[pair]])
            exact = bool((np.abs(part.box[one] - part.box[two]) <= TWIN_PX).all())
            alike = label[first[pair]] == label[second[pair]]
            other = f"annotation {part.annotation_id[one]}"
            if alike and exact:
                part.find_annotation("box-twin", two, f"has the box and class of {other}")
            elif alike and overlap[pair] > NEAR_TWIN_IOU:
                part.find_annotation(
                    "box-near-twin",
                    two,
                    f"overlaps {other} of the same class with IoU {overlap[pair]:.3f}",
                )
            elif exact:
                part.find_annotation(
                    "box-two-classes",
                    two,
                    f"category {part.category[two]} has the box of {other}, category"
                    f" {part.category[one]}",
                )


def _check_areas(part: Part, usable: Bools) -> None:
    missing = np.isnan(part.area)
    if missing.any():
        part.find(
            "area-missing", f"{int(missing.sum())} of {len(missing)} annotations have no area"
        )
    bad = ~missing & (~np.isfinite(part.area) | (part.area <= 0))
    box_area = part.box[:, 2] * part.box[:, 3]
    larger = usable & ~bad & (part.area > box_area * AREA_SLACK + 1)
    for row in np.flatnonzero(bad):
        part.find_annotation("area-bad", int(row), f"area is {part.area[row]:g}, must be > 0")
    for row in np.flatnonzero(larger):
        part.find_annotation(
            "area-beyond-box",
            int(row),
            f"area {part.area[row]:g} is larger than the box's {box_area[row]:g}",
        )


def _check_crowds(part: Part) -> None:
    names = dict(zip(part.category_id.tolist(), part.category_name, strict=True))
    for category in np.unique(part.category[part.crowd]).tolist():
        of_class = part.category == category
        crowds, count = int((of_class & part.crowd).sum()), int(of_class.sum())
        if count >= 4 and 2 * crowds > count:
            part.find(
                "crowd-many",
                f"category {category} ({names.get(category, 'unknown')!r}): {crowds} of {count}"
                " annotations are crowds",
            )


def sizes_of(part: Part, rows: Ints) -> tuple[Floats, Floats]:
    """Width and height of the image of each annotation; 0 where the image is dangling or its size
    unknown.
    """
    width, height = (
        np.append(values, 0).astype(np.float64)[rows]
        for values in (part.image_width, part.image_height)
    )
    sound = (width > 0) & (height > 0)
    return np.where(sound, width, 0.0), np.where(sound, height, 0.0)


def _say(box: Floats) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in box) + "]"
