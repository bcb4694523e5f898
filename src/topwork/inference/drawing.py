"""Boxes on pictures: class and score next to each, a colour a class, legible on light and dark."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from topwork.files import atomic_path

_PALETTE = (
    "#e6550d",
    "#3182bd",
    "#31a354",
    "#c51b8a",
    "#756bb1",
    "#b8860b",
    "#00868b",
    "#cb181d",
    "#5254a3",
    "#637939",
)


def colour_of(name: str) -> str:
    """A class's colour: the same everywhere and always."""
    return _PALETTE[int(hashlib.sha256(name.encode()).hexdigest(), 16) % len(_PALETTE)]


def draw_boxes(image: Image.Image, boxes: Iterable[Mapping[Any, Any]]) -> Image.Image:
    """A copy of the image with boxes on it, the surest on top.

    Args:
        image: RGB.
        boxes: of each name, x, y, width, height; maybe score.
    """
    picture = image.convert("RGB")
    if picture is image:
        picture = image.copy()
    draw = ImageDraw.Draw(picture)
    size = max(11, min(picture.size) // 40)
    font = ImageFont.load_default(size)
    line = max(2, size // 6)
    for row in sorted(boxes, key=lambda row: float(row.get("score", 0))):
        x, y, right, bottom = row["x"], row["y"], row["x"] + row["width"], row["y"] + row["height"]
        colour = colour_of(str(row["name"]))
        draw.rectangle((x, y, max(x, right), max(y, bottom)), outline=colour, width=line)
        text = f"{row['name']} {row['score']:.2f}" if "score" in row else str(row["name"])
        left, top, text_right, text_bottom = draw.textbbox((0, 0), text, font=font)
        width, height = text_right - left + 6, text_bottom - top + 6
        tag_x = min(max(0.0, x), max(0.0, picture.width - width))
        tag_y = y - height if y >= height else min(y, max(0.0, picture.height - height))
        draw.rectangle((tag_x, tag_y, tag_x + width, tag_y + height), fill=colour)
        draw.text((tag_x + 3 - left, tag_y + 3 - top), text, fill="white", font=font)
    return picture


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG whole or not at all."""
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")
