"""A canvas that paints a picture and records which object each pixel belongs to.

Everything is a polygon in the object's own metres (x right, y up, the ground at 0); the brush turns
it into pixels. The same polygon goes into the picture and into the identity mask, so that an
annotation is exactly what can be seen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

SUPERSAMPLING = 2
"""Pictures are drawn this many times larger in each direction and then averaged down."""


def shade(colour: Colour, factor: float) -> Colour:
    """Darken (factor < 1) or lighten (factor > 1) a colour, clipped to 0..255."""
    r, g, b = colour
    return (
        min(255, max(0, round(r * factor))),
        min(255, max(0, round(g * factor))),
        min(255, max(0, round(b * factor))),
    )


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Blend two colours; `share` in 0..1 is the second one's part."""
    keep = 1.0 - share
    return (
        round(first[0] * keep + second[0] * share),
        round(first[1] * keep + second[1] * share),
        round(first[2] * keep + second[2] * share),
    )


@dataclass(frozen=True)
class Glow:
    """A light that shines at dusk and night: centre and radius in canvas pixels."""

    x: float
    y: float
    radius: float
    colour: Colour


@dataclass
class Canvas:
    """A supersampled RGB picture, its identity mask (0: nothing labelled) and its lights."""

    width: int
    height: int
    haze_colour: Colour = (200, 205, 210)
    picture: Image.Image = field(init=False)
    identity: Image.Image = field(init=False)
    glows: list[Glow] = field(init=False, default_factory=list)
    paint: ImageDraw.ImageDraw = field(init=False)
    mark: ImageDraw.ImageDraw = field(init=False)

    def __post_init__(self) -> None:
        size = (self.width * SUPERSAMPLING, self.height * SUPERSAMPLING)
        self.picture = Image.new("RGB", size)
        self.identity = Image.new("L", size, 0)
        self.paint = ImageDraw.Draw(self.picture)
        self.mark = ImageDraw.Draw(self.identity)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in canvas (supersampled) pixels."""
        return self.picture.size

    def colour_at(self, x: float, y: float) -> Colour:
        """The colour painted so far at a pixel, the nearest one inside where the point lies
        outside.
        """
        width, height = self.size
        pixel = self.picture.getpixel(
            (min(max(int(x), 0), width - 1), min(max(int(y), 0), height - 1))
        )
        assert isinstance(pixel, tuple)
        return int(pixel[0]), int(pixel[1]), int(pixel[2])


@dataclass(frozen=True)
class Brush:
    """Paints one object: where it stands on the canvas, how large, which way it faces, how far off
    in the haze.

    `x`, `y` is the ground contact in canvas pixels, `unit` the pixels a metre, `identity` the
    object's number in the mask.
    """

    canvas: Canvas
    x: float
    y: float
    unit: float
    identity: int = 0
    flip: bool = False
    haze: float = 0.0
    tilt: float = 0.0

    def pixel(self, point: Point) -> Point:
        """Metres (y up) to canvas pixels (y down)."""
        px, py = (-point[0] if self.flip else point[0]), point[1]
        if self.tilt:
            cos, sin = math.cos(self.tilt), math.sin(self.tilt)
            px, py = px * cos - py * sin, px * sin + py * cos
        return self.x + px * self.unit, self.y - py * self.unit

    def at(self, point: Point, identity: int | None = None, scale: float = 1.0) -> "Brush":
        """The same brush with its origin moved to `point`, perhaps for another object."""
        x, y = self.pixel(point)
        number = self.identity if identity is None else identity
        return Brush(self.canvas, x, y, self.unit * scale, number, self.flip, self.haze, self.tilt)

    def poly(self, points: Sequence[Point], colour: Colour) -> None:
        """Fill a polygon given in metres."""
        pixels = [self.pixel(point) for point in points]
        tone = mix(colour, self.canvas.haze_colour, self.haze) if self.haze else colour
        self.canvas.paint.polygon(pixels, fill=tone)
        self.canvas.mark.polygon(pixels, fill=self.identity)

    def rect(self, left: float, bottom: float, right: float, top: float, colour: Colour) -> None:
        """Fill an upright rectangle."""
        self.poly([(left, bottom), (right, bottom), (right, top), (left, top)], colour)

    def oval(
        self, cx: float, cy: float, rx: float, ry: float, colour: Colour, turn: float = 0.0
    ) -> None:
        """Fill an ellipse, turned by `turn` radians."""
        self.poly(arc(cx, cy, rx, ry, 0.0, 360.0, turn), colour)

    def limb(self, points: Sequence[Point], widths: Sequence[float], colour: Colour) -> None:
        """Fill a thick jointed line; `widths` gives the thickness at each point."""
        for (ax, ay), (bx, by), wa, wb in zip(points, points[1:], widths, widths[1:], strict=False):
            length = math.hypot(bx - ax, by - ay) or 1e-6
            nx, ny = -(by - ay) / length / 2, (bx - ax) / length / 2
            quad = [(ax + nx * wa, ay + ny * wa), (bx + nx * wb, by + ny * wb)]
            self.poly([*quad, (bx - nx * wb, by - ny * wb), (ax - nx * wa, ay - ny * wa)], colour)
        for (px, py), width in zip(points, widths, strict=True):
            if width * self.unit > 2.0:
                self.oval(px, py, width / 2, width / 2, colour)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """Fill a jointed line of one thickness."""
        self.limb(points, [width] * len(points), colour)

    def ring(self, cx: float, cy: float, radius: float, width: float, colour: Colour) -> None:
        """Draw a circle's outline, leaving what lies inside it as it was."""
        outer, inner = (
            arc(cx, cy, radius, radius, 0, 360),
            arc(cx, cy, radius - width, radius - width, 0, 360),
        )
        self.poly([*outer, outer[0], inner[0], *reversed(inner)], colour)

    def glow(self, cx: float, cy: float, radius: float, colour: Colour) -> None:
        """Remember a light; the scene adds its shine at dusk and night."""
        x, y = self.pixel((cx, cy))
        self.canvas.glows.append(Glow(x, y, radius * self.unit, colour))

    def shadow(self, half_width: float, depth: float, centre: float = 0.0) -> None:
        """Darken the ground under the object; belongs to no object."""
        x, y = self.pixel((centre, 0.0))
        tone = shade(self.canvas.colour_at(x, y), 0.68)
        points = [
            (x + px * self.unit, y - py * self.unit)
            for px, py in arc(0, 0, half_width, depth, 0, 360)
        ]
        self.canvas.paint.polygon(points, fill=tone)
        self.canvas.mark.polygon(points, fill=0)


def arc(
    cx: float,
    cy: float,
    rx: float,
    ry: float,
    start: float,
    stop: float,
    turn: float = 0.0,
    steps: int = 20,
) -> list[Point]:
    """Points along an ellipse from `start` to `stop` degrees, counter-clockwise, both ends
    included.
    """
    circle = _unit_arc(start, stop, steps)
    if not turn:
        return [(cx + rx * x, cy + ry * y) for x, y in circle]
    cos, sin = math.cos(turn), math.sin(turn)
    return [(cx + rx * x * cos - ry * y * sin, cy + rx * x * sin + ry * y * cos) for x, y in circle]


@lru_cache(maxsize=512)
def _unit_arc(start: float, stop: float, steps: int) -> tuple[Point, ...]:
    angles = [math.radians(start + (stop - start) * step / steps) for step in range(steps + 1)]
    return tuple((math.cos(angle), math.sin(angle)) for angle in angles)
