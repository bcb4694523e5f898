"""Test images before and after, and pictures of findings: one JPEG an image, boxes drawn over it as
SVG.

The image's bytes stand in the page once, in the first panel; the other panels `use` it.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup
from PIL import Image

from topwork.dataset.images import rgb_upright
from topwork.errors import DataError
from topwork.report.run import Run
from topwork.report.svg import number, svg, text_width

BUDGET_BYTES = 3_300_000
"""What all pictures of a page may take as base64; smaller ones are written where this doesn't do.
"""
_SIZES = ((640, 82), (560, 78), (480, 74), (400, 70), (320, 64), (240, 58))
"""(longest side, JPEG quality), tried from the best."""


@dataclass(frozen=True)
class Box:
    """A box to draw; xywh in pixels of the image as stored; `kind` is `kept`, `new` or `other`."""

    x: float
    y: float
    width: float
    height: float
    name: str
    kind: str
    score: float | None = None


@dataclass(frozen=True)
class Panel:
    """One drawing of an image: its heading, and a count in words."""

    title: str
    drawing: Markup
    caption: str


@dataclass(frozen=True)
class Picture:
    """An image and its panels."""

    name: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class ChosenImage:
    """An image that was chosen: its id, file, size and the boxes of each panel."""

    key: str
    name: str
    image_root: str
    file_name: str
    width: int
    height: int
    panels: tuple[tuple[str, tuple[Box, ...]], ...]


def choose(scores: Mapping[int, float], count: int) -> list[int]:
    """Image ids spread evenly over a ranking, from the best to the worst; ties go by id.

    Example:
        >>> choose({1: 0.9, 2: 0.1, 3: 0.5, 4: 0.8, 5: 0.3}, 3)
        [1, 3, 2]
    """
    ranked = sorted(scores, key=lambda image_id: (-scores[image_id], image_id))
    if count <= 0 or not ranked:
        return []
    if count >= len(ranked):
        return ranked
    if count == 1:
        return [ranked[len(ranked) // 2]]
    return [ranked[round(index * (len(ranked) - 1) / (count - 1))] for index in range(count)]


def boxes_of(frame: pd.DataFrame, kinds: Callable[[str], str]) -> tuple[Box, ...]:
    """Boxes of one image's rows, with their scores where they have some."""
    scores = frame["score"] if "score" in frame else [None] * len(frame)
    return tuple(
        Box(
            float(x),
            float(y),
            float(width),
            float(height),
            str(name),
            kinds(str(name)),
            None if score is None else float(score),
        )
        for x, y, width, height, name, score in zip(
            frame["x"],
            frame["y"],
            frame["width"],
            frame["height"],
            frame["name"],
            scores,
            strict=True,
        )
    )


def draw(run: Run, chosen: Sequence[ChosenImage]) -> list[Picture]:
    """Open, shrink and draw the chosen images, in a size that keeps them all within
    BUDGET_BYTES.
    """
    if not chosen:
        return []
    opened = [_open(run, item) for item in chosen]
    share = BUDGET_BYTES // 2 if all(len(item.panels) == 1 for item in chosen) else BUDGET_BYTES
    for side, quality in _SIZES:
        uris = [_data_uri(image, side, quality) for image in opened]
        if sum(map(len, uris)) <= share:
            break
    return [_picture(item, uri) for item, uri in zip(chosen, uris, strict=True)]


def _open(run: Run, item: ChosenImage) -> Image.Image:
    try:
        return rgb_upright(run.files.image(item.image_root, item.file_name))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{item.image_root}/{item.file_name}: can't be drawn ({error}). It could be when"
            " evaluate ran; restore it (dvc checkout), or run `dvc repro`."
        ) from error


def _data_uri(image: Image.Image, side: int, quality: int) -> str:
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def _picture(item: ChosenImage, uri: str) -> Picture:
    panels = []
    for index, (title, boxes) in enumerate(item.panels):
        identity = f"{item.key}-i"
        size = f'width="{item.width}" height="{item.height}"'
        picture = (
            f'<image id="{identity}" href="{uri}" {size} preserveAspectRatio="none"/>'
            if index == 0
            else f'<use href="#{identity}"/>'
        )
        counts = _counts(boxes)
        body = picture + _overlay(boxes, item.width, item.height)
        drawing = svg(
            f"{item.key}-{index}",
            f"{title}: {item.name}",
            counts,
            body,
            (item.width, item.height),
            "photo",
        )
        panels.append(Panel(title, drawing, counts))
    return Picture(item.name, tuple(panels))


def _counts(boxes: Sequence[Box]) -> str:
    counts: dict[str, int] = {}
    for box in boxes:
        counts[box.name] = counts.get(box.name, 0) + 1
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "no boxes"


def _overlay(boxes: Sequence[Box], width: int, height: int) -> str:
    """Boxes, then their labels on top, each label where it covers no other."""
    unit = max(width, height) / 640  # labels keep their size on the page whatever the image's own
    font = 19 * unit
    drawn: list[str] = []
    labels: list[str] = []
    taken: list[tuple[float, float, float, float]] = []
    for box in sorted(boxes, key=lambda box: -box.width * box.height):
        place = (
            f'x="{number(box.x)}" y="{number(box.y)}" width="{number(box.width)}"'
            f' height="{number(box.height)}"'
        )
        drawn.append(f'<rect class="halo" {place}/><rect class="box {box.kind}" {place}/>')
        text = box.name if box.score is None else f"{box.name} {box.score:.2f}"
        room = (text_width(text, font) + 10 * unit, font * 1.3)
        x, y = _free_place(box, room, taken, width, height)
        taken.append((x, y, *room))
        labels.append(
            f'<rect class="label {box.kind}" x="{number(x)}" y="{number(y)}"'
            f' width="{number(room[0])}" height="{number(room[1])}" rx="{number(2 * unit)}"/><text'
            f' class="label-text {box.kind}" x="{number(x + 5 * unit)}"'
            f' y="{number(y + font * 0.98)}" font-size="{number(font)}"'
            f' textLength="{number(room[0] - 10 * unit)}"'
            f' lengthAdjust="spacingAndGlyphs">{Markup.escape(text)}</text>'
        )
    return "".join(drawn) + "".join(labels)


def _free_place(
    box: Box,
    room: tuple[float, float],
    taken: Sequence[tuple[float, float, float, float]],
    width: int,
    height: int,
) -> tuple[float, float]:
    right, under = box.x + box.width - room[0], box.y + box.height
    options = [
        (box.x, box.y - room[1]),
        (right, box.y - room[1]),
        (box.x, under),
        (right, under),
        (box.x, box.y),
        (box.x, under - room[1]),
        (right, under - room[1]),
        (box.x + box.width, box.y),
        (box.x - room[0], box.y),
        (box.x, box.y - 2 * room[1]),
        (box.x, under + room[1]),
    ]
    inside = [
        (min(max(x, 0.0), max(width - room[0], 0.0)), min(max(y, 0.0), height - room[1]))
        for x, y in options
    ]
    return min(
        inside,
        key=lambda place: (
            sum(_common(place, room, other) for other in taken),
            inside.index(place),
        ),
    )


def _common(
    place: tuple[float, float], room: tuple[float, float], other: tuple[float, float, float, float]
) -> float:
    across = min(place[0] + room[0], other[0] + other[2]) - max(place[0], other[0])
    down = min(place[1] + room[1], other[1] + other[3]) - max(place[1], other[1])
    return max(across, 0.0) * max(down, 0.0)
