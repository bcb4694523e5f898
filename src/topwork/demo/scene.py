"""From painted objects to a picture with annotations: camera, light, occlusion, boxes."""

from dataclasses import dataclass
from random import Random
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from topwork.demo.canvas import SUPERSAMPLING, Brush, Canvas, Colour

MIN_VISIBLE = 0.25
"""An object of which less is visible (share of the pixels it would cover alone) isn't annotated."""
MIN_SIDE = 8.0
"""Shortest box side, in picture pixels, that is annotated."""


class Annotation(TypedDict):
    """One COCO annotation."""

    id: int
    image_id: int
    category_id: int
    bbox: list[float]
    area: float
    iscrowd: int
    segmentation: list[list[float]]


@dataclass(frozen=True)
class Camera:
    """A level camera: rows below `horizon` (canvas pixels) are ground, seen from `height`
    metres.
    """

    horizon: float
    height: float

    def unit(self, y: float) -> float:
        """Pixels a metre for what stands on row y."""
        return (y - self.horizon) / self.height

    def row(self, unit: float) -> float:
        """The ground row at which a metre is `unit` pixels."""
        return self.horizon + unit * self.height


@dataclass(frozen=True)
class Light:
    """How the finished picture is lit and spoilt."""

    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    glow: float = 0.0
    haze: float = 0.0
    haze_colour: Colour = (204, 210, 216)
    blur: float = 0.0
    noise: float = 4.0
    contrast: float = 1.0


@dataclass(frozen=True)
class Labelled:
    """An object in the mask: its number, its class, its pixels when drawn alone, and what it wears
    (counted as its own).
    """

    identity: int
    category_id: int
    alone: int
    worn: tuple[int, ...] = ()


class Scene:
    """A canvas, its camera and the objects put on it, back to front."""

    def __init__(self, canvas: Canvas, camera: Camera, light: Light) -> None:
        self.canvas, self.camera, self.light = canvas, camera, light
        self.objects: list[Labelled] = []
        self._numbers = 0

    def number(self) -> int:
        """The next unused identity (the 8-bit mask holds 255)."""
        self._numbers += 1
        assert self._numbers < 256, "more objects than the identity mask can hold"
        return self._numbers

    def brush(
        self, x: float, y: float, identity: int, flip: bool = False, scale: float = 1.0
    ) -> Brush:
        """A brush for an object standing at (x, y), as large and as hazy as its distance asks."""
        unit = self.camera.unit(y) * scale
        far = 1.0 / (1.0 + unit / 40.0)
        return Brush(
            self.canvas,
            x,
            y,
            unit,
            identity,
            flip,
            haze=min(0.85, self.light.haze * (0.25 + far * 1.6)),
        )

    def add(self, identity: int, category_id: int, worn: tuple[int, ...] = ()) -> None:
        """Register an object just drawn; counts its pixels before anything covers it."""
        mask = np.asarray(self.canvas.identity)
        alone = (
            int(np.isin(mask, (identity, *worn)).sum()) if worn else int((mask == identity).sum())
        )
        self.objects.append(Labelled(identity, category_id, alone, worn))

    def annotations(self, image_id: int, first_id: int) -> list[Annotation]:
        """Tight boxes of what is visible, in picture pixels; ids count up from `first_id`."""
        mask = np.asarray(self.canvas.identity)
        kept: list[Annotation] = []
        for item in self.objects:
            seen = mask == item.identity
            for other in item.worn:
                seen |= mask == other
            measured = _measure(seen)
            if measured is None:
                continue
            (x, y, width, height), pixels = measured
            if pixels < MIN_VISIBLE * item.alone or min(width, height) < MIN_SIDE:
                continue
            kept.append(
                Annotation(
                    id=first_id + len(kept),
                    image_id=image_id,
                    category_id=item.category_id,
                    bbox=[x, y, width, height],
                    area=pixels / SUPERSAMPLING**2,
                    iscrowd=0,
                    segmentation=[],
                )
            )
        return kept

    def develop(self, rng: Random) -> Image.Image:
        """Average down, light, blur and add noise."""
        picture = self.canvas.picture.reduce(SUPERSAMPLING)
        if self.light.blur > 0.2:
            picture = picture.filter(ImageFilter.GaussianBlur(self.light.blur))
        gain = np.asarray(self.light.gain, dtype=np.float32)
        # contrast about mid-grey, then the light's gain, in one multiply-add
        values = np.asarray(picture) * (gain * self.light.contrast) + gain * (
            128.0 * (1.0 - self.light.contrast)
        )
        if self.light.glow:
            _add_glows(values, self.canvas, self.light.glow)
        grain = np.random.default_rng(rng.getrandbits(64)).standard_normal(
            values.shape[:2], dtype=np.float32
        )
        values += grain[..., None] * self.light.noise
        return Image.fromarray(np.clip(values, 0.0, 255.0, out=values).astype(np.uint8))


def _measure(seen: NDArray[np.bool_]) -> tuple[tuple[float, float, float, float], int] | None:
    """Measure a mask: xywh in picture pixels and the count of canvas pixels; None where nothing is
    seen.
    """
    columns, rows = np.flatnonzero(seen.any(axis=0)), np.flatnonzero(seen.any(axis=1))
    if not len(columns):
        return None
    left, right, top, bottom = (
        int(columns[0]),
        int(columns[-1]) + 1,
        int(rows[0]),
        int(rows[-1]) + 1,
    )
    scale = float(SUPERSAMPLING)
    return (left / scale, top / scale, (right - left) / scale, (bottom - top) / scale), int(
        seen.sum()
    )


def _add_glows(values: NDArray[np.float32], canvas: Canvas, strength: float) -> None:
    """Add each light's soft disc, in place."""
    height, width, _ = values.shape
    for glow in canvas.glows:
        x, y, radius = (
            glow.x / SUPERSAMPLING,
            glow.y / SUPERSAMPLING,
            max(3.0, glow.radius / SUPERSAMPLING),
        )
        left, right = max(0, int(x - 2 * radius)), min(width, int(x + 2 * radius) + 1)
        top, bottom = max(0, int(y - 2 * radius)), min(height, int(y + 2 * radius) + 1)
        if left >= right or top >= bottom:
            continue
        dx = (np.arange(left, right, dtype=np.float32) - x) / radius
        dy = (np.arange(top, bottom, dtype=np.float32) - y) / radius
        disc = np.exp(-3.0 * (dy[:, None] ** 2 + dx[None, :] ** 2)) * strength
        values[top:bottom, left:right] += disc[..., None] * np.asarray(
            glow.colour, dtype=np.float32
        )


def street_light(rng: Random) -> Light:
    """Day, overcast, dusk, night or fog, with a lens that isn't always sharp."""
    blur = rng.choice((0.0, 0.0, 0.0, 0.5, 0.9, 1.3))
    noise = rng.choice((2.0, 3.0, 5.0, 8.0))
    kind = rng.choices(("day", "overcast", "dusk", "night", "fog"), (45, 20, 13, 12, 10))[0]
    bright = rng.uniform(0.88, 1.12)
    if kind == "overcast":
        return Light(
            (0.9 * bright, 0.92 * bright, 0.95 * bright),
            haze=0.12,
            blur=blur,
            noise=noise,
            contrast=0.86,
        )
    if kind == "dusk":
        return Light(
            (0.9 * bright, 0.68 * bright, 0.58 * bright), 0.45, 0.1, (226, 170, 130), blur, noise
        )
    if kind == "night":
        return Light(
            (0.36 * bright, 0.42 * bright, 0.56 * bright), 0.75, 0.08, (60, 66, 84), blur, noise + 3
        )
    if kind == "fog":
        return Light(
            (bright, bright, bright),
            haze=rng.uniform(0.35, 0.6),
            blur=blur,
            noise=noise,
            contrast=0.92,
        )
    return Light(
        (1.02 * bright, bright, 0.97 * bright), haze=0.05, blur=blur, noise=noise, contrast=1.05
    )


def yard_light(rng: Random) -> Light:
    """Low sun, dust, rain-grey or floodlit evening."""
    blur, noise = rng.choice((0.0, 0.0, 0.6, 1.0)), rng.choice((3.0, 5.0, 8.0))
    kind = rng.choices(("sun", "dust", "grey", "flood"), (40, 25, 20, 15))[0]
    bright = rng.uniform(0.88, 1.1)
    if kind == "dust":
        return Light(
            (1.02 * bright, 0.94 * bright, 0.8 * bright),
            0.0,
            0.3,
            (214, 190, 150),
            blur,
            noise,
            0.92,
        )
    if kind == "grey":
        return Light(
            (0.84 * bright, 0.88 * bright, 0.92 * bright),
            0.1,
            0.15,
            (180, 186, 192),
            blur,
            noise,
            0.88,
        )
    if kind == "flood":
        return Light(
            (0.62 * bright, 0.58 * bright, 0.5 * bright),
            0.6,
            0.1,
            (120, 110, 100),
            blur,
            noise + 3,
            1.1,
        )
    return Light(
        (1.1 * bright, 1.0 * bright, 0.86 * bright), 0.0, 0.06, (226, 210, 180), blur, noise, 1.06
    )
