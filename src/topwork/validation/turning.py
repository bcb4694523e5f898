"""Boxes into the frame of the upright picture: EXIF orientations, and boxes with an angle.

The decoder turns every picture as its EXIF orientation asks, so the tables' boxes are in pixels of
the upright picture. Labels may have been made on it or on the stored one; that's decided once a
data set, by what fits, and where nothing decides, `dataset.exif` has to.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from pycocotools import mask as coco_mask

from topwork.dataset.images import UPRIGHT
from topwork.validation.probe import Probe
from topwork.validation.raw_split import Bools, Floats, RawSplit, texts

Frame = Literal["turned", "stored"]
SWAPPING = (5, 6, 7, 8)
EDGE_PX = 1.0


def straighten(raw: RawSplit, choice: Literal["hull", "unturned"] | None) -> None:
    """Boxes with an angle: the upright hull, the box as if it had none, or a finding each."""
    if raw.rotation is None or choice == "unturned":
        return
    turned = np.isfinite(raw.rotation) & (np.abs(np.mod(raw.rotation + 90, 180) - 90) > 1e-6)
    if choice is None:
        for row in np.flatnonzero(turned).tolist():
            raw.find_annotation(
                "box-rotated",
                row,
                f"is turned by {raw.rotation[row]:g} degrees, and its bbox isn't; write"
                " `dataset.rotated: hull` for the upright box around it, or `unturned` for the box"
                " as it is",
            )
        return
    angle = np.radians(raw.rotation[turned])
    x, y, width, height = raw.box[turned].T
    cos, sin = np.abs(np.cos(angle)), np.abs(np.sin(angle))
    wide, high = width * cos + height * sin, width * sin + height * cos
    raw.box[turned] = np.stack(
        [x + (width - wide) / 2, y + (height - high) / 2, wide, high], axis=1
    )


def labelled_frame(
    raw_splits: Sequence[RawSplit],
    probes: Mapping[str, Mapping[str, Probe]],
    choice: Frame | None,
) -> Frame | None:
    """Whether labels of one data set were made on turned or on stored pictures; None, with a
    finding, where nothing decides; `stored` where no labelled picture is turned.

    Declared sizes decide, and boxes in pixels that fit only one of the two; all images of a set
    have to agree.
    """
    if choice is not None:
        return choice
    votes: dict[Frame, list[str]] = {"turned": [], "stored": []}
    mute: list[tuple[RawSplit, int]] = []
    for raw in raw_splits:
        known = probes.get(raw.root, {})
        rows = _rows_by_image(raw, known)
        for row, name in enumerate(raw.file_name):
            found = known.get(name)
            if found is None or found.orientation == 1 or found.state != "fine":
                continue
            vote = _vote(raw, row, found, rows.get(int(raw.image_id[row]), []))
            if vote is not None:
                votes[vote].append(name)
            elif int(raw.image_id[row]) in rows:
                mute.append((raw, row))
    decided: list[Frame] = [frame for frame, names in votes.items() if names]
    if len(decided) == 1:
        return decided[0]
    if not decided and not mute:
        return "stored"
    raw, row = mute[0] if mute else _where(raw_splits, votes["turned"][0])
    total = len(mute) + len(votes["turned"]) + len(votes["stored"])
    reason = (
        f"{votes['turned'][0]} was labelled turned, {votes['stored'][0]} as stored"
        if decided
        else "neither sizes nor boxes say whether labels were made on the turned or on the stored"
        " picture"
    )
    # about the set, not the image: dropping one image would mend nothing
    raw.find(
        "exif-undecided",
        f"{total} labelled images have an EXIF orientation, such as {raw.file_name[row]};"
        f" {reason}. Write"
        " `dataset.exif: turned` if the labelling tool showed them upright (most do), else"
        " `dataset.exif: stored`",
    )
    return None


def turn(raw: RawSplit, probes: Mapping[str, Probe], frame: Frame | None) -> None:
    """Put sizes, boxes and segmentations into pixels of the upright picture; where the frame is
    undecided, from those of the stored one.
    """
    turned = [
        (row, probes[name])
        for row, name in enumerate(raw.file_name)
        if name in probes and probes[name].orientation != 1
    ]
    if not turned:
        return
    stored_boxes = frame != "turned"
    rows_of: dict[int, list[int]] = {}
    if stored_boxes:
        wanted = {int(raw.image_id[row]) for row, _ in turned}
        for index in np.flatnonzero(np.isin(raw.annotated, sorted(wanted))).tolist():
            rows_of.setdefault(int(raw.annotated[index]), []).append(index)
    shapes: dict[int, bytes] = {}
    for row, found in turned:
        width, height = found.width, found.height
        if stored_boxes:
            for index in rows_of.get(int(raw.image_id[row]), ()):
                raw.box[index] = turned_box(raw.box[index], found.orientation, width, height)
                shape = None if raw.segmentation is None else raw.segmentation[index].as_py()
                if shape is not None:
                    shapes[index] = _turned_shape(shape, found.orientation, width, height)
            _turn_findings(raw, int(raw.image_id[row]), found)
        # an image of another size than declared keeps the finding on it
        size = (int(raw.image_width[row]), int(raw.image_height[row]))
        if found.orientation in SWAPPING and size in ((width, height), (height, width)):
            raw.image_width[row], raw.image_height[row] = height, width
    if shapes and raw.segmentation is not None:
        pieces = [
            shapes.get(index, b"" if text is None else text.encode())
            for index, text in enumerate(raw.segmentation.to_pylist())
        ]
        raw.segmentation = texts(pieces)


def _turn_findings(raw: RawSplit, image_id: int, found: Probe) -> None:
    """Findings on an image keep their boxes in the frame that pictures are shown in."""
    for place, finding in enumerate(raw.findings.rows):
        if (finding.split, finding.image_id) == (raw.split, image_id) and finding.box is not None:
            x, y, width, height = turned_box(
                np.array(finding.box), found.orientation, found.width, found.height
            ).tolist()
            raw.findings.rows[place] = finding._replace(box=(x, y, width, height))


def size_in(found: Probe, frame: Frame | None) -> tuple[int, int]:
    """An image's width and height in the frame that was labelled."""
    if frame == "turned" and found.orientation in SWAPPING:
        return found.height, found.width
    return found.width, found.height


def turned_points(points: Floats, orientation: int, width: int, height: int) -> Floats:
    """Points (N x 2) of a stored picture of that size, in pixels of the upright one."""
    x, y = points[:, 0], points[:, 1]
    if orientation in (2, 3, 7, 8):
        x = width - x
    if orientation in (3, 4, 6, 7):
        y = height - y
    return np.stack((y, x) if orientation in SWAPPING else (x, y), axis=1)


def turned_box(box: Floats, orientation: int, width: int, height: int) -> Floats:
    """A box (x, y, width, height) of a stored picture of that size, in pixels of the upright
    one.
    """
    x, y, wide, high = (float(value) for value in box)
    ends = turned_points(np.array([[x, y], [x + wide, y + high]]), orientation, width, height)
    low = ends.min(axis=0)
    size = (high, wide) if orientation in SWAPPING else (wide, high)
    return np.array([low[0], low[1], *size])


def _turned_shape(text: str, orientation: int, width: int, height: int) -> bytes:
    """A segmentation's JSON text in pixels of the upright picture; empty where it can't be read,
    which the checks have reported.
    """
    shape: Any = msgspec.json.decode(text)
    try:
        if isinstance(shape, list):
            return msgspec.json.encode(
                [
                    turned_points(
                        np.array(ring, np.float64).reshape(-1, 2), orientation, width, height
                    )
                    .ravel()
                    .tolist()
                    for ring in shape
                ]
            )
        if isinstance(shape["counts"], list):
            shape = coco_mask.frPyObjects(shape, *shape["size"])
        mask: Bools = coco_mask.decode(shape)
        if mask.shape != (height, width):
            return b""
        encoded = coco_mask.encode(np.asfortranarray(_turned_mask(mask, orientation)))
    except (ValueError, TypeError, KeyError, IndexError):
        return b""
    return msgspec.json.encode(
        {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
    )


def _turned_mask(mask: Any, orientation: int) -> Any:
    if orientation in (2, 3, 7, 8):
        mask = mask[:, ::-1]
    if orientation in (3, 4, 6, 7):
        mask = mask[::-1]
    return mask.T if orientation in SWAPPING else mask


def _rows_by_image(raw: RawSplit, known: Mapping[str, Probe]) -> dict[int, list[int]]:
    """Annotations of each image that has an orientation, by its id."""
    wanted = [
        int(image_id)
        for image_id, name in zip(raw.image_id, raw.file_name, strict=True)
        if name in known and known[name].orientation in UPRIGHT
    ]
    rows: dict[int, list[int]] = {}
    for index in np.flatnonzero(np.isin(raw.annotated, wanted)).tolist():
        rows.setdefault(int(raw.annotated[index]), []).append(index)
    return rows


def _vote(raw: RawSplit, row: int, found: Probe, rows: Sequence[int]) -> Frame | None:
    """What one image says of the frame; None where it fits both or neither."""
    stored, upright = (found.width, found.height), (found.height, found.width)
    if found.orientation not in SWAPPING or stored == upright:
        return None
    declared = (int(raw.image_width[row]), int(raw.image_height[row]))
    if raw.sizes_declared and min(declared) > 0:
        return {stored: "stored", upright: "turned"}.get(declared)  # type: ignore[return-value]
    if raw.format == "yolo":
        return None  # shares fit any picture
    ends = raw.box[list(rows), :2] + raw.box[list(rows), 2:]
    ends = ends[np.isfinite(ends).all(axis=1)]
    fits = Counter[Frame]()
    for frame, size in (("stored", stored), ("turned", upright)):
        fits[frame] = int(bool((ends <= np.array(size) + EDGE_PX).all()))  # type: ignore[index]
    if fits["stored"] == fits["turned"]:
        return None
    return "stored" if fits["stored"] else "turned"


def _where(raw_splits: Sequence[RawSplit], name: str) -> tuple[RawSplit, int]:
    return next((raw, raw.file_name.index(name)) for raw in raw_splits if name in raw.file_name)
