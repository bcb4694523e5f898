"""Boxes, areas and crowds, a column at a time."""

import numpy as np

from topwork.validation.raw_split import Bools, Floats, Ints, RawSplit

ROUNDING_PX = 1.0
TINY_PX = 2.0
SLIM = 50.0
WHOLE = 0.995
TWIN_PX = 0.5
NEAR_TWIN_IOU = 0.95
AREA_SLACK = 1.02
MAX_LAG = 40


# coordinates may be anything; what overflows compares as false
@np.errstate(invalid="ignore", over="ignore", divide="ignore")
def check_boxes(raw: RawSplit) -> None:
    """All rules on boxes, areas and crowds of one split."""
    if not len(raw.annotation_id):
        return
    reported = {
        row.annotation_id
        for row in raw.findings
        if row.split == raw.split and row.rule in ("box-missing", "box-nan")
    }
    sound = np.isfinite(raw.box).all(axis=1)
    for row in np.flatnonzero(~sound):
        if int(raw.annotation_id[row]) not in reported:
            raw.find_annotation(
                "box-nan",
                int(row),
                f"bbox {_shown(raw.box[row])} has a coordinate that isn't a finite number",
            )
    width, height = raw.box[:, 2], raw.box[:, 3]
    negative = sound & ((width < 0) | (height < 0))
    zero = sound & ~negative & ((width == 0) | (height == 0))
    for row in np.flatnonzero(negative):
        raw.find_annotation(
            "box-negative",
            int(row),
            f"bbox width {width[row]:g}, height {height[row]:g}, must be > 0",
        )
    for row in np.flatnonzero(zero):
        raw.find_annotation(
            "box-zero", int(row), f"bbox width {width[row]:g}, height {height[row]:g}, must be > 0"
        )
    usable = sound & ~negative & ~zero
    rows = raw.image_rows()
    # taken as pixels, normalised boxes would all be tiny, and twins of each other
    if not _check_normalised(raw, usable, rows):
        _check_places(raw, usable, rows)
        _check_shapes(raw, usable, rows)
        _check_twins(raw, usable & (rows >= 0))
    _check_areas(raw, usable)
    _check_crowds(raw)


def _check_places(raw: RawSplit, usable: Bools, rows: Ints) -> None:
    """Against the image's edges, where the image and its size are known."""
    image_width, image_height = sizes_of(raw, rows)
    usable = usable & (image_width > 0) & (image_height > 0)
    x, y, width, height = raw.box.T
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
        raw.find(
            "box-xyxy",
            f"{int(corner.sum())} of {int(usable.sum())} boxes leave their image as (x, y, width,"
            " height) and fit as (x1, y1, x2, y2)",
        )
    for row in np.flatnonzero(gone):
        size = f"{image_width[row]:.0f}x{image_height[row]:.0f}"
        raw.find_annotation(
            "box-outside",
            int(row),
            f"bbox {_shown(raw.box[row])} lies wholly outside the image ({size})",
        )
    for row in np.flatnonzero(far):
        size = f"{image_width[row]:.0f}x{image_height[row]:.0f}"
        raw.find_annotation(
            "box-beyond",
            int(row),
            f"bbox {_shown(raw.box[row])} reaches {beyond[row]:.6g} px beyond the image ({size})",
        )
    for row in np.flatnonzero(near):
        raw.find_annotation(
            "box-rounding",
            int(row),
            f"bbox {_shown(raw.box[row])} reaches {beyond[row]:.2g} px beyond the image",
        )


def _check_normalised(raw: RawSplit, usable: Bools, rows: Ints) -> bool:
    image_width, image_height = sizes_of(raw, rows)
    usable = usable & (image_width > 0) & (image_height > 0)
    boxes = raw.box[usable]
    large = (image_width[usable] > 8) & (image_height[usable] > 8)
    if len(boxes) and large.all() and (boxes >= 0).all() and (boxes <= 1).all():
        raw.find(
            "box-normalised",
            f"all {len(boxes)} boxes have coordinates between 0 and 1, expected pixels: multiply by"
            " the image's width and height",
        )
        return True
    return False


def _check_shapes(raw: RawSplit, usable: Bools, rows: Ints) -> None:
    width, height = raw.box[:, 2], raw.box[:, 3]
    tiny = usable & (np.minimum(width, height) < TINY_PX)
    slim = usable & ~tiny & (np.maximum(width, height) > SLIM * np.minimum(width, height))
    image_width, image_height = sizes_of(raw, rows)
    share = width * height / np.maximum(image_width * image_height, 1)
    whole = usable & (image_width > 0) & (share >= WHOLE)
    for row in np.flatnonzero(tiny):
        raw.find_annotation(
            "box-tiny", int(row), f"bbox is {width[row]:.4g} x {height[row]:.4g} px"
        )
    for row in np.flatnonzero(slim):
        raw.find_annotation(
            "box-slim", int(row), f"bbox is {width[row]:.4g} x {height[row]:.4g} px"
        )
    for row in np.flatnonzero(whole):
        raw.find_annotation(
            "box-whole-image", int(row), f"bbox covers {share[row]:.1%} of its image"
        )


def _check_twins(raw: RawSplit, usable: Bools) -> None:
    """Pairs of boxes within an image: those of one image are neighbours after sorting, and are
    compared at growing distance.
    """
    rows = np.flatnonzero(usable & ~raw.crowd)
    rows = rows[np.argsort(raw.annotated[rows], kind="stable")]
    image, label, box = raw.annotated[rows], raw.category[rows], raw.box[rows]
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
            exact = bool((np.abs(raw.box[one] - raw.box[two]) <= TWIN_PX).all())
            alike = label[first[pair]] == label[second[pair]]
            other = f"annotation {raw.annotation_id[one]}"
            if alike and exact:
                raw.find_annotation("box-twin", two, f"has the box and class of {other}")
            elif alike and overlap[pair] > NEAR_TWIN_IOU:
                raw.find_annotation(
                    "box-near-twin",
                    two,
                    f"overlaps {other} of the same class with IoU {overlap[pair]:.3f}",
                )
            elif exact:
                raw.find_annotation(
                    "box-two-classes",
                    two,
                    f"category {raw.category[two]} has the box of {other}, category"
                    f" {raw.category[one]}",
                )


def _check_areas(raw: RawSplit, usable: Bools) -> None:
    missing = np.isnan(raw.area)
    if missing.any():
        raw.find("area-missing", f"{int(missing.sum())} of {len(missing)} annotations have no area")
    bad = ~missing & (~np.isfinite(raw.area) | (raw.area <= 0))
    box_area = raw.box[:, 2] * raw.box[:, 3]
    larger = usable & ~bad & (raw.area > box_area * AREA_SLACK + 1)
    for row in np.flatnonzero(bad):
        raw.find_annotation("area-bad", int(row), f"area is {raw.area[row]:g}, must be > 0")
    for row in np.flatnonzero(larger):
        raw.find_annotation(
            "area-beyond-box",
            int(row),
            f"area {raw.area[row]:g} is larger than the box's {box_area[row]:g}",
        )


def _check_crowds(raw: RawSplit) -> None:
    names = dict(zip(raw.category_id.tolist(), raw.category_name, strict=True))
    for category in np.unique(raw.category[raw.crowd]).tolist():
        of_class = raw.category == category
        crowds, count = int((of_class & raw.crowd).sum()), int(of_class.sum())
        counted = (
            f"category {category} ({names.get(category, 'unknown')!r}): {crowds} of {count}"
            " annotations are crowds"
        )
        if raw.split == "train" and crowds == count:
            marked = "`difficult`" if raw.format == "voc" else "`iscrowd: 1`"
            raw.find("crowd-all", f"{counted} ({marked}), so that training leaves the class out")
        elif 2 * crowds >= count:
            raw.find("crowd-many", counted)


def sizes_of(raw: RawSplit, rows: Ints) -> tuple[Floats, Floats]:
    """Width and height of the image of each annotation; 0 where the image is dangling or its size
    unknown.
    """
    width, height = (
        np.append(values, 0).astype(np.float64)[rows]
        for values in (raw.image_width, raw.image_height)
    )
    sound = (width > 0) & (height > 0)
    return np.where(sound, width, 0.0), np.where(sound, height, 0.0)


def _shown(box: Floats) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in box) + "]"
