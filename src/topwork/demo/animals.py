"""Drawn animals of the street world, facing +x, feet at 0."""

from random import Random

from topwork.demo.canvas import Brush, Colour, shade

COATS: tuple[Colour, ...] = (
    (120, 80, 48),
    (60, 46, 38),
    (206, 170, 120),
    (236, 228, 214),
    (90, 90, 94),
    (36, 34, 36),
)


def _four_legs(
    b: Brush, xs: tuple[float, float], hip: float, width: float, coat: Colour, stride: float
) -> None:
    for x, swing, light in (
        (xs[0], -stride, 0.72),
        (xs[1], stride, 0.72),
        (xs[0] + 0.04, stride, 0.95),
        (xs[1] + 0.04, -stride, 0.95),
    ):
        b.limb(
            [(x, hip), (x + swing * 0.5 - 0.02, hip * 0.5), (x + swing, width * 0.35)],
            [width * 1.5, width, width * 0.8],
            shade(coat, light),
        )


def draw_dog(b: Brush, rng: Random) -> None:
    """A dog about 0.75 m high with a snout, a hanging ear and a raised tail."""
    coat = rng.choice(COATS)
    b.shadow(0.5, 0.07)
    _four_legs(b, (-0.33, 0.22), 0.36, 0.09, coat, rng.uniform(-0.12, 0.12))
    b.limb([(-0.36, 0.48), (-0.56, rng.uniform(0.55, 0.75))], [0.1, 0.04], coat)
    b.limb([(-0.3, 0.44), (0.26, 0.46)], [0.26, 0.3], coat)
    b.limb([(0.26, 0.5), (0.42, 0.68)], [0.24, 0.18], coat)
    b.oval(0.46, 0.72, 0.14, 0.12, coat)
    b.limb([(0.5, 0.69), (0.68, 0.66)], [0.15, 0.09], shade(coat, 1.1))
    b.oval(0.71, 0.68, 0.03, 0.03, (20, 18, 18))
    b.oval(0.5, 0.75, 0.02, 0.022, (16, 14, 14))
    b.poly([(0.36, 0.82), (0.44, 0.83), (0.4, 0.6), (0.32, 0.62)], shade(coat, 0.65))
    b.line([(0.3, 0.56), (0.4, 0.5)], 0.05, rng.choice(((200, 30, 40), (30, 80, 180))))


def draw_cat(b: Brush, rng: Random) -> None:
    """A sitting cat about 0.55 m high: pear-shaped body, pointed ears, curled tail."""
    coat = rng.choice(
        ((230, 140, 60), (60, 58, 60), (190, 186, 180), (240, 236, 230), (120, 104, 88))
    )
    b.shadow(0.3, 0.06)
    b.limb([(-0.12, 0.06), (-0.36, 0.08), (-0.42, 0.28)], [0.08, 0.07, 0.05], shade(coat, 0.85))
    b.oval(-0.02, 0.17, 0.2, 0.17, coat)
    b.oval(0.06, 0.27, 0.12, 0.18, coat)
    for x in (0.05, 0.14):
        b.limb([(x, 0.22), (x + 0.02, 0.03)], [0.07, 0.06], shade(coat, 0.92))
    for x in (-0.1, 0.06):
        b.poly(
            [(0.12 + x - 0.07, 0.5), (0.12 + x + 0.0, 0.66), (0.12 + x + 0.07, 0.52)],
            shade(coat, 0.85),
        )
    b.oval(0.1, 0.47, 0.13, 0.11, coat)
    for x in (0.06, 0.16):
        b.oval(x, 0.49, 0.022, 0.028, (150, 190, 60))
        b.oval(x, 0.49, 0.009, 0.026, (10, 10, 10))
    b.oval(0.115, 0.445, 0.018, 0.013, (220, 120, 120))
    if rng.random() < 0.5:
        for y in (0.14, 0.22, 0.3):
            b.line([(-0.15, y), (-0.04, y + 0.03)], 0.025, shade(coat, 0.6))


def draw_bird(b: Brush, rng: Random, flying: bool = False) -> None:
    """A stout bird about 0.5 m long, standing, or with spread wings."""
    coat = rng.choice(
        (
            (110, 118, 132),
            (60, 60, 66),
            (236, 236, 232),
            (150, 104, 70),
            (60, 100, 150),
            (180, 60, 50),
        )
    )
    if not flying:
        b.shadow(0.22, 0.04)
        for x in (-0.02, 0.06):
            b.line([(x, 0.14), (x + 0.02, 0.0), (x + 0.07, 0.0)], 0.025, (220, 130, 50))
    b.poly([(-0.16, 0.2), (-0.42, 0.14), (-0.4, 0.22), (-0.12, 0.3)], shade(coat, 0.7))
    b.oval(0.0, 0.25, 0.22, 0.14, coat, turn=0.3)
    b.oval(0.19, 0.39, 0.09, 0.09, shade(coat, 0.9))
    b.poly([(0.26, 0.42), (0.37, 0.38), (0.26, 0.36)], (236, 160, 40))
    b.oval(0.215, 0.41, 0.017, 0.017, (16, 14, 14))
    if flying:
        b.poly([(-0.12, 0.28), (-0.3, 0.78), (-0.05, 0.62), (0.12, 0.3)], shade(coat, 0.75))
        b.poly([(-0.08, 0.24), (-0.38, -0.12), (-0.12, 0.0), (0.12, 0.22)], shade(coat, 0.6))
    else:
        b.poly([(-0.28, 0.18), (-0.08, 0.34), (0.1, 0.3), (0.0, 0.18)], shade(coat, 0.72))


def draw_horse(b: Brush, rng: Random) -> None:
    """A horse about 2 m high with mane and tail."""
    coat = rng.choice(((122, 74, 44), (70, 44, 30), (226, 220, 210), (44, 38, 38), (176, 120, 70)))
    hair = shade(coat, 0.5)
    b.shadow(1.2, 0.14)
    _four_legs(b, (-0.72, 0.56), 0.86, 0.15, coat, rng.uniform(-0.3, 0.3))
    b.limb([(-0.86, 1.32), (-1.08, 1.1), (-1.1, 0.6)], [0.12, 0.2, 0.1], hair)
    b.limb([(-0.62, 1.16), (0.0, 1.12), (0.55, 1.18)], [0.64, 0.56, 0.6], coat)
    drop = rng.choice((0.0, 0.0, 0.55))
    poll = (1.08, 1.98 - drop * 1.2)
    b.limb([(0.6, 1.28), poll], [0.5, 0.26], coat)
    b.limb([(0.46, 1.48), (poll[0] - 0.13, poll[1] + 0.08)], [0.16, 0.12], hair)
    b.limb([poll, (poll[0] + 0.42, poll[1] - 0.32)], [0.26, 0.15], shade(coat, 1.06))
    b.poly(
        [
            (poll[0] - 0.08, poll[1] + 0.08),
            (poll[0] - 0.02, poll[1] + 0.27),
            (poll[0] + 0.08, poll[1] + 0.08),
        ],
        coat,
    )
    b.oval(poll[0] + 0.14, poll[1] - 0.03, 0.025, 0.03, (14, 12, 12))
    b.oval(poll[0] + 0.44, poll[1] - 0.33, 0.03, 0.025, shade(coat, 0.45))
