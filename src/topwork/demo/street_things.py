"""Drawn things that stand about a street: trees, signs, benches and what people carry or drop."""

import math
from dataclasses import replace
from random import Random

from topwork.demo.canvas import Brush, Colour, arc, shade
from topwork.demo.people import CLOTHES

STEEL: Colour = (108, 112, 118)


def draw_tree(b: Brush, rng: Random) -> None:
    """A leafy tree of round tufts, or a fir of stacked triangles."""
    leaf = rng.choice(((58, 120, 56), (84, 140, 60), (40, 96, 64), (150, 130, 50), (176, 96, 40)))
    b.shadow(0.9, 0.14)
    b.limb([(0, 0), (rng.uniform(-0.1, 0.1), 1.7)], [0.36, 0.22], (98, 72, 50))
    if rng.random() < 0.3:
        leaf = shade(leaf, 0.8)
        for step in range(4):
            wide, low = 1.35 - step * 0.28, 0.8 + step * 0.72
            b.poly([(-wide, low), (wide, low), (0, low + 1.25)], shade(leaf, 0.8 + 0.09 * step))
        return
    tufts = [
        (rng.uniform(-0.9, 0.9), rng.uniform(1.9, 3.1), rng.uniform(0.5, 0.85)) for _ in range(8)
    ]
    for x, y, radius in [(0.0, 2.4, 1.0), *sorted(tufts, key=lambda tuft: tuft[1])]:
        b.oval(x, y, radius, radius * 0.85, shade(leaf, 0.72 + 0.12 * (y - 1.5)))
        b.oval(
            x - radius * 0.2,
            y + radius * 0.2,
            radius * 0.6,
            radius * 0.5,
            shade(leaf, 0.85 + 0.12 * (y - 1.5)),
        )


def draw_traffic_light(b: Brush, rng: Random) -> None:
    """A three-lamp head on a post; only the head belongs to the object."""
    post = b.at((0, 0), 0)
    post.shadow(0.25, 0.05)
    post.line([(0, 0), (0, 2.2)], 0.11, STEEL)
    b.rect(-0.27, 2.15, 0.27, 3.45, (34, 36, 36))
    b.rect(-0.27, 2.15, -0.21, 3.45, (214, 180, 40))
    b.rect(0.21, 2.15, 0.27, 3.45, (214, 180, 40))
    lit = rng.choice((0, 1, 2))
    for number, colour in enumerate(((240, 40, 30), (250, 190, 40), (50, 220, 110))):
        y = 3.22 - number * 0.42
        b.oval(0, y, 0.16, 0.16, colour if number == lit else shade(colour, 0.3))
        if number == lit:
            b.glow(0, y, 0.9, colour)


def draw_stop_sign(b: Brush, rng: Random) -> None:
    """A red octagon with a white rim and bar-like lettering; the post belongs to no object."""
    post = b.at((0, 0), 0)
    post.shadow(0.2, 0.05)
    post.line([(0, 0), (0, 2.1)], 0.08, STEEL)
    b, red = replace(b, flip=False), shade((200, 24, 32), rng.uniform(0.85, 1.1))
    octagon = [
        (math.cos(math.radians(22.5 + 45 * k)), math.sin(math.radians(22.5 + 45 * k)))
        for k in range(8)
    ]
    b.poly([(x * 0.48, 2.5 + y * 0.48) for x, y in octagon], (240, 238, 234))
    b.poly([(x * 0.43, 2.5 + y * 0.43) for x, y in octagon], red)
    white = (244, 242, 238)
    b.rect(-0.33, 2.38, -0.2, 2.62, white)  # S: a block with two notches
    b.rect(-0.29, 2.52, -0.2, 2.57, red)
    b.rect(-0.33, 2.43, -0.24, 2.48, red)
    b.rect(0.18, 2.38, 0.23, 2.62, white)  # P: a post and a ring
    b.rect(0.23, 2.46, 0.32, 2.62, white)
    b.rect(0.23, 2.51, 0.27, 2.57, red)
    b.rect(-0.16, 2.56, -0.02, 2.62, white)
    b.rect(-0.115, 2.38, -0.065, 2.62, white)
    b.ring(0.08, 2.5, 0.115, 0.045, white)


def draw_bench(b: Brush, rng: Random) -> None:
    """A park bench with slats; its seat is 0.45 m high."""
    wood = rng.choice(((140, 92, 52), (110, 70, 44), (60, 96, 70), (150, 60, 46)))
    b.shadow(0.95, 0.12)
    for x in (-0.72, 0.72):
        b.line([(x, 0.0), (x, 0.92)], 0.07, (50, 52, 56))
        b.line([(x + 0.1, 0.0), (x + 0.1, 0.42)], 0.07, (40, 42, 46))
    for y in (0.58, 0.71, 0.84):
        b.rect(-0.9, y, 0.9, y + 0.1, shade(wood, 0.9 + y * 0.15))
    b.rect(-0.94, 0.4, 0.94, 0.5, shade(wood, 1.15))
    b.rect(-0.94, 0.34, 0.94, 0.4, shade(wood, 0.7))


def draw_cone(b: Brush, rng: Random) -> None:
    """An orange traffic cone with white bands."""
    orange = shade((244, 100, 24), rng.uniform(0.85, 1.08))
    b.shadow(0.34, 0.06)
    b.rect(-0.3, 0.0, 0.3, 0.08, shade(orange, 0.75))
    b.poly([(-0.22, 0.08), (0.22, 0.08), (0.05, 0.78), (-0.05, 0.78)], orange)
    b.poly([(-0.165, 0.3), (0.165, 0.3), (0.13, 0.45), (-0.13, 0.45)], (244, 242, 238))
    b.poly([(-0.105, 0.55), (0.105, 0.55), (0.08, 0.66), (-0.08, 0.66)], (244, 242, 238))


def draw_hydrant(b: Brush, rng: Random) -> None:
    """A fire hydrant with a domed cap and side outlets."""
    red = rng.choice(((204, 30, 30), (216, 60, 30), (230, 190, 40)))
    b.shadow(0.32, 0.06)
    b.rect(-0.24, 0.0, 0.24, 0.08, shade(red, 0.7))
    b.rect(-0.16, 0.08, 0.16, 0.62, red)
    b.rect(-0.16, 0.08, -0.08, 0.62, shade(red, 0.78))
    b.rect(-0.3, 0.36, 0.3, 0.52, shade(red, 0.85))
    b.oval(0.0, 0.44, 0.11, 0.11, shade(red, 1.15))
    b.rect(-0.21, 0.6, 0.21, 0.67, shade(red, 0.8))
    b.poly(arc(0, 0.67, 0.18, 0.2, 0, 180), red)
    b.rect(-0.04, 0.84, 0.04, 0.93, shade(red, 0.8))


def draw_mailbox(b: Brush, rng: Random) -> None:
    """A round-topped letter box on four short feet."""
    paint = rng.choice(((28, 70, 150), (240, 196, 30), (190, 30, 36), (40, 110, 70)))
    b.shadow(0.42, 0.08)
    for x in (-0.28, 0.2):
        b.rect(x, 0.0, x + 0.08, 0.2, (40, 42, 46))
    b.rect(-0.33, 0.18, 0.33, 0.95, paint)
    b.poly(arc(0.0, 0.95, 0.33, 0.3, 0, 180), shade(paint, 1.1))
    b.rect(-0.33, 0.18, -0.2, 0.95, shade(paint, 0.8))
    b.rect(-0.22, 0.92, 0.22, 1.0, (30, 30, 34))
    b.rect(-0.2, 0.5, 0.2, 0.76, (236, 236, 230))
    b.line([(-0.16, 0.74), (0.0, 0.6), (0.16, 0.74)], 0.03, shade(paint, 0.7))


def draw_umbrella(b: Brush, rng: Random) -> None:
    """An open umbrella; the hand that holds it is at the origin."""
    cloth = rng.choice((*CLOTHES, (220, 40, 60), (250, 200, 40)))
    b.line([(0, -0.08), (0, 0.75)], 0.035, (50, 44, 40))
    edge = [
        point
        for k in range(4)
        for point in arc(0.5 - k * 0.333, 0.5, 0.1666, 0.06, 0, 180, steps=6)
    ]
    b.poly([*arc(0, 0.5, 0.667, 0.48, 180, 0), *edge], cloth)
    for k, factor in ((0, 0.8), (2, 1.12)):
        left = -0.667 + k * 0.333
        b.poly(
            [(left, 0.5), (left + 0.16, 0.56), (left + 0.333, 0.5), (0, 0.97)], shade(cloth, factor)
        )
    b.line([(0, 0.96), (0, 1.06)], 0.03, (50, 44, 40))


def draw_backpack(b: Brush, rng: Random) -> None:
    """A rucksack standing on the ground, about 0.6 m high."""
    cloth = rng.choice(
        ((40, 100, 160), (190, 60, 40), (60, 120, 70), (60, 60, 70), (220, 160, 40), (140, 70, 140))
    )
    b.poly(
        [
            (-0.2, 0.0),
            (0.2, 0.0),
            (0.23, 0.3),
            (0.19, 0.5),
            (0.1, 0.58),
            (-0.1, 0.58),
            (-0.19, 0.5),
            (-0.23, 0.3),
        ],
        cloth,
    )
    b.poly([(-0.16, 0.04), (0.16, 0.04), (0.17, 0.25), (-0.17, 0.25)], shade(cloth, 0.75))
    b.line([(-0.16, 0.37), (0.16, 0.37)], 0.03, shade(cloth, 0.55))
    b.line([(-0.1, 0.04), (-0.1, 0.5)], 0.035, (214, 190, 140))
    b.line([(0.1, 0.04), (0.1, 0.5)], 0.035, (214, 190, 140))
    b.line([(-0.06, 0.57), (0.0, 0.65), (0.06, 0.57)], 0.03, shade(cloth, 0.6))


def draw_ball(b: Brush, rng: Random) -> None:
    """A ball of about 0.4 m: football, beach ball or basketball."""
    kind = rng.choice(("football", "beach", "basket"))
    b.shadow(0.22, 0.05)
    base: Colour = {"football": (240, 240, 238), "beach": (250, 210, 50), "basket": (224, 116, 40)}[
        kind
    ]
    b.oval(0, 0.21, 0.21, 0.21, base)
    if kind == "football":
        for x, y in ((0, 0.21), (0.15, 0.3), (-0.15, 0.3), (0.1, 0.07), (-0.1, 0.07)):
            b.oval(x, y, 0.055, 0.055, (30, 30, 34))
    elif kind == "beach":
        b.poly([(0, 0.21), *arc(0, 0.21, 0.21, 0.21, 30, 90)], (210, 40, 50))
        b.poly([(0, 0.21), *arc(0, 0.21, 0.21, 0.21, 150, 210)], (40, 110, 200))
        b.poly([(0, 0.21), *arc(0, 0.21, 0.21, 0.21, 270, 330)], (50, 160, 90))
    else:
        b.line([(0, 0.0), (0, 0.42)], 0.02, (60, 36, 24))
        b.line([(-0.21, 0.21), (0.21, 0.21)], 0.02, (60, 36, 24))
