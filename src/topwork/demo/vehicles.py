"""Drawn vehicles: the street's cars, trucks, buses and cycles, and the yard's forklift.

Facing +x, centred on 0.
"""

from random import Random

from topwork.demo.canvas import Brush, Colour, arc, shade

PAINTS: tuple[Colour, ...] = (
    (190, 32, 36),
    (28, 80, 160),
    (236, 236, 234),
    (40, 42, 46),
    (150, 156, 164),
    (30, 110, 70),
    (226, 180, 40),
    (108, 60, 40),
    (96, 160, 196),
    (214, 110, 40),
)
TYRE: Colour = (28, 28, 30)
GLASS: Colour = (132, 168, 190)
STEEL: Colour = (120, 124, 130)
LAMP: Colour = (255, 240, 190)
TAIL: Colour = (210, 30, 30)


def wheel(b: Brush, x: float, radius: float, rim: Colour = (168, 170, 176)) -> None:
    """A road wheel resting on the ground."""
    b.oval(x, radius, radius, radius, TYRE)
    b.oval(x, radius, radius * 0.6, radius * 0.6, rim)
    b.oval(x, radius, radius * 0.2, radius * 0.2, shade(rim, 0.6))


def _headlight(b: Brush, x: float, y: float, rx: float = 0.07, ry: float = 0.09) -> None:
    b.oval(x, y, rx, ry, LAMP)
    b.glow(x, y, 1.1, (255, 236, 180))


def draw_car(b: Brush, rng: Random) -> None:
    """A sedan, hatchback or estate from the side, or a car from the front or back."""
    paint = shade(rng.choice(PAINTS), rng.uniform(0.85, 1.1))
    if rng.random() < 0.25:
        _car_end_on(b, paint, front=rng.random() < 0.5)
        return
    b.shadow(2.2, 0.22)
    tail, roof_back = rng.choice(((-2.15, -0.95), (-1.85, -1.6), (-2.1, -1.85)))
    b.poly([(roof_back - 0.35, 0.9), (roof_back, 1.44), (0.35, 1.46), (1.05, 0.92)], paint)
    b.poly(
        [(roof_back - 0.18, 0.92), (roof_back + 0.07, 1.36), (-0.38, 1.38), (-0.38, 0.92)], GLASS
    )
    b.poly([(-0.28, 0.92), (-0.28, 1.38), (0.31, 1.38), (0.86, 0.92)], shade(GLASS, 1.1))
    body = [
        (tail, 0.34),
        (tail - 0.05, 0.8),
        (tail + 0.15, 0.98),
        (1.0, 0.96),
        (1.95, 0.8),
        (2.16, 0.6),
        (2.16, 0.34),
    ]
    b.poly(body, paint)
    b.poly([(tail, 0.34), (tail - 0.03, 0.56), (2.16, 0.52), (2.16, 0.34)], shade(paint, 0.78))
    b.line([(-0.33, 0.42), (-0.33, 0.9)], 0.025, shade(paint, 0.6))
    b.line([(0.85, 0.42), (0.85, 0.9)], 0.025, shade(paint, 0.6))
    b.rect(-0.62, 0.76, -0.42, 0.8, shade(paint, 0.55))
    for x in (-1.3, 1.32):
        b.poly(arc(x, 0.32, 0.42, 0.42, 0, 180), shade(paint, 0.4))
        wheel(b, x, 0.33)
    b.rect(tail - 0.05, 0.68, tail + 0.12, 0.84, TAIL)
    _headlight(b, 2.03, 0.68)


def _car_end_on(b: Brush, paint: Colour, front: bool) -> None:
    b.shadow(0.98, 0.2)
    for x in (-0.68, 0.68):
        b.rect(x - 0.14, 0.0, x + 0.14, 0.45, TYRE)
    b.poly([(-0.66, 1.45), (0.66, 1.45), (0.86, 0.9), (-0.86, 0.9)], paint)
    b.poly(
        [(-0.58, 1.38), (0.58, 1.38), (0.74, 0.95), (-0.74, 0.95)],
        GLASS if front else shade(GLASS, 0.8),
    )
    b.poly(
        [(-0.88, 0.94), (0.88, 0.94), (0.93, 0.6), (0.9, 0.26), (-0.9, 0.26), (-0.93, 0.6)], paint
    )
    b.rect(-0.9, 0.26, 0.9, 0.42, shade(paint, 0.6))
    b.rect(-0.45, 0.5, 0.45, 0.66, (40, 42, 46) if front else shade(paint, 0.8))
    b.rect(-0.24, 0.34, 0.24, 0.45, (240, 240, 230))
    for x in (-0.7, 0.7):
        if front:
            _headlight(b, x, 0.7, 0.14, 0.09)
        else:
            b.rect(x - 0.15, 0.62, x + 0.15, 0.8, TAIL)


def draw_truck(b: Brush, rng: Random) -> None:
    """A lorry from the side: cab and box, tank, tipper or flatbed; sometimes from the front."""
    paint, load = shade(rng.choice(PAINTS), rng.uniform(0.85, 1.1)), rng.choice(PAINTS)
    if rng.random() < 0.15:
        _truck_front(b, paint, load)
        return
    b.shadow(3.6, 0.3)
    b.rect(-3.3, 0.55, 3.1, 0.8, (58, 60, 66))
    kind = rng.choice(("box", "box", "tank", "tipper", "flatbed"))
    if kind == "box":
        b.rect(-3.4, 0.8, 1.35, 3.2, load)
        b.rect(-3.4, 0.8, 1.35, 1.05, shade(load, 0.75))
        for x in (-2.45, -1.5, -0.55, 0.4):
            b.line([(x, 1.05), (x, 3.15)], 0.04, shade(load, 0.82))
        if rng.random() < 0.5:
            b.rect(-2.4, 1.7, 0.3, 2.4, rng.choice(PAINTS))
    elif kind == "tank":
        b.poly(
            [*arc(-2.5, 1.7, 0.9, 0.85, 90, 270), *arc(0.5, 1.7, 0.8, 0.85, -90, 90)],
            (206, 210, 214),
        )
        b.rect(-2.9, 1.0, 0.9, 1.3, (150, 156, 162))
        b.rect(-1.2, 2.5, -0.7, 2.7, (150, 156, 162))
    elif kind == "tipper":
        b.poly([(-3.4, 1.0), (-3.7, 2.4), (1.4, 2.4), (1.2, 0.9)], load)
        for x in (-2.6, -1.6, -0.6, 0.4):
            b.line([(x, 1.0), (x, 2.4)], 0.1, shade(load, 0.75))
        b.poly([(-3.2, 2.4), (-2.0, 2.9), (-0.6, 2.65), (0.9, 2.4)], (134, 104, 74))
    else:
        b.rect(-3.4, 0.8, 1.3, 1.0, (120, 92, 60))
        for x in (-3.0, -1.7, -0.4):
            b.rect(x, 1.0, x + 1.15, 1.9, shade((164, 126, 82), rng.uniform(0.8, 1.1)))
    _truck_cab(b, paint)
    for x in (-2.5, -1.45, 2.2):
        wheel(b, x, 0.5)


def _truck_cab(b: Brush, paint: Colour) -> None:
    b.poly([(1.55, 0.5), (1.55, 2.75), (2.75, 2.75), (3.1, 1.75), (3.2, 0.5)], paint)
    b.poly([(2.05, 1.7), (2.05, 2.5), (2.68, 2.5), (2.95, 1.7)], GLASS)
    b.poly([(1.55, 0.5), (1.55, 0.95), (3.18, 0.95), (3.2, 0.5)], shade(paint, 0.72))
    b.line([(1.95, 0.95), (1.95, 2.6)], 0.04, shade(paint, 0.6))
    b.rect(1.62, 2.75, 2.5, 3.0, shade(paint, 0.9))
    b.poly(arc(2.2, 0.5, 0.62, 0.62, 0, 180), shade(paint, 0.35))
    _headlight(b, 3.12, 0.8, 0.08, 0.12)


def _truck_front(b: Brush, paint: Colour, load: Colour) -> None:
    b.shadow(1.35, 0.25)
    b.rect(-1.25, 0.7, 1.25, 3.25, load)
    for x in (-0.95, 0.95):
        b.rect(x - 0.2, 0, x + 0.2, 0.8, TYRE)
    b.rect(-1.15, 0.4, 1.15, 2.8, paint)
    b.poly([(-1.0, 2.6), (1.0, 2.6), (1.05, 1.75), (-1.05, 1.75)], GLASS)
    b.rect(-0.8, 0.9, 0.8, 1.45, (44, 46, 50))
    for y in (1.05, 1.25):
        b.rect(-0.75, y, 0.75, y + 0.07, STEEL)
    b.rect(-1.2, 0.4, 1.2, 0.7, shade(paint, 0.6))
    for x in (-0.92, 0.92):
        _headlight(b, x, 0.8, 0.14, 0.1)
        b.rect(x * 1.32 - 0.1, 1.8, x * 1.32 + 0.1, 2.4, (40, 40, 44))


def draw_bus(b: Brush, rng: Random) -> None:
    """A long bus from the side: a row of windows, doors, a coloured band."""
    paint, band = rng.choice(PAINTS), rng.choice(PAINTS)
    b.shadow(4.4, 0.3)
    body = [
        (-4.2, 0.35),
        (-4.25, 2.8),
        (-4.0, 3.0),
        (3.95, 3.0),
        (4.2, 2.6),
        (4.3, 1.2),
        (4.25, 0.35),
    ]
    b.poly(body, paint)
    b.rect(-4.2, 0.35, 4.25, 0.75, shade(paint, 0.7))
    b.rect(-4.22, 1.15, 4.27, 1.4, band)
    for step in range(6):
        x = -3.95 + step * 1.15
        b.rect(x, 1.55, x + 1.02, 2.6, shade(GLASS, 0.85 + 0.05 * (step % 3)))
    b.poly([(3.3, 1.4), (3.3, 2.6), (4.1, 2.6), (4.22, 1.4)], shade(GLASS, 1.1))
    for x in (-0.3, 2.55):
        b.rect(x, 0.5, x + 0.75, 2.6, (60, 66, 72))
        b.rect(x + 0.06, 0.65, x + 0.34, 2.5, GLASS)
        b.rect(x + 0.41, 0.65, x + 0.69, 2.5, GLASS)
    b.rect(2.7, 2.68, 4.0, 2.92, (250, 170, 30))
    for x in (-2.7, 1.9):
        b.poly(arc(x, 0.5, 0.6, 0.6, 0, 180), shade(paint, 0.35))
        wheel(b, x, 0.48)
    b.rect(-4.24, 0.85, -4.1, 1.15, TAIL)
    _headlight(b, 4.15, 0.85, 0.1, 0.12)


def draw_bicycle(b: Brush, rng: Random) -> None:
    """A bicycle from the side; its saddle is 0.95 m high at x = -0.2."""
    paint = rng.choice(PAINTS)
    b.shadow(0.85, 0.08)
    for x in (-0.52, 0.52):
        b.ring(x, 0.34, 0.34, 0.055, TYRE)
        for end in ((0.0, 0.3), (0.26, 0.15), (0.26, -0.15)):
            b.line(
                [(x - end[0], 0.34 - end[1]), (x + end[0], 0.34 + end[1])], 0.012, (150, 150, 154)
            )
    crank, saddle, stem = (-0.1, 0.3), (-0.24, 0.82), (0.36, 0.86)
    b.line([(-0.52, 0.34), crank, saddle, (-0.52, 0.34)], 0.045, paint)
    b.line([crank, stem, (0.52, 0.34)], 0.05, paint)
    b.line([(-0.22, 0.74), (0.38, 0.78)], 0.045, paint)
    b.line([saddle, (-0.27, 0.92)], 0.04, STEEL)
    b.oval(-0.27, 0.94, 0.14, 0.04, (36, 30, 28))
    b.line([stem, (0.33, 1.0), (0.46, 1.03)], 0.04, (40, 40, 42))
    b.oval(*crank, 0.09, 0.09, STEEL)


def draw_motorcycle(b: Brush, rng: Random) -> None:
    """A motorcycle from the side; its saddle is 0.85 m high."""
    paint = rng.choice(PAINTS)
    b.shadow(1.05, 0.12)
    for x in (-0.7, 0.72):
        wheel(b, x, 0.33)
    b.line([(0.72, 0.33), (0.42, 0.98)], 0.08, STEEL)
    b.poly([(-0.45, 0.3), (0.3, 0.28), (0.42, 0.62), (-0.35, 0.66)], (70, 72, 78))
    b.oval(-0.02, 0.42, 0.17, 0.15, STEEL)
    b.poly([(-0.1, 0.66), (0.0, 0.92), (0.38, 0.98), (0.52, 0.72), (0.3, 0.6)], paint)
    b.poly([(-0.95, 0.85), (-0.9, 0.7), (-0.05, 0.62), (0.05, 0.78), (-0.4, 0.82)], (36, 32, 32))
    b.poly([(-1.0, 0.88), (-0.6, 0.72), (-0.5, 0.62), (-0.98, 0.76)], paint)
    b.line([(-0.95, 0.26), (0.05, 0.28)], 0.1, (176, 178, 182))
    b.poly(arc(0.72, 0.36, 0.42, 0.42, 40, 130), paint)
    b.line([(0.42, 0.96), (0.3, 1.12), (0.2, 1.12)], 0.05, (40, 40, 42))
    _headlight(b, 0.56, 0.92, 0.1, 0.11)
    b.rect(-1.02, 0.8, -0.94, 0.88, TAIL)


def draw_forklift(b: Brush, rng: Random) -> None:
    """A forklift from the side: counterweight, guard, mast, forks, sometimes a load.

    Its seat is at (-0.35, 1.05).
    """
    paint = shade(
        rng.choice(
            (
                (244, 176, 20),
                (228, 96, 20),
                (206, 40, 36),
                (40, 130, 80),
                (52, 110, 180),
                (226, 226, 220),
            )
        ),
        rng.uniform(0.9, 1.08),
    )
    raised, mast_top = rng.choice((0.08, 0.12, 0.5, 1.1)), rng.uniform(2.2, 2.8)
    dark: Colour = (50, 52, 58)
    b.shadow(1.9, 0.2, 0.3)
    cabin = rng.random() < 0.35
    if cabin:
        b.rect(-0.85, 1.0, 0.45, 2.05, shade(GLASS, 0.95))
    b.poly(
        [
            (-1.35, 0.3),
            (-1.4, 0.95),
            (-1.2, 1.12),
            (-0.75, 1.15),
            (-0.7, 0.85),
            (0.3, 0.85),
            (0.4, 0.6),
            (0.75, 0.6),
            (0.75, 0.3),
        ],
        paint,
    )
    b.poly([(-1.35, 0.3), (-1.38, 0.6), (-0.9, 0.6), (-0.9, 0.3)], dark)
    b.rect(-0.9, 0.3, 0.75, 0.42, shade(paint, 0.65))
    b.poly(
        [(-0.62, 0.85), (-0.72, 1.5), (-0.58, 1.5), (-0.5, 1.05), (-0.08, 1.05), (-0.05, 0.85)],
        (36, 34, 36),
    )
    b.line([(0.35, 0.8), (0.15, 1.2)], 0.05, dark)
    b.line([(0.05, 1.15), (0.26, 1.28)], 0.05, dark)
    for line in ([(-0.98, 1.1), (-0.82, 2.1)], [(0.5, 0.6), (0.4, 2.1)]):
        b.line(line, 0.08, dark)
    b.rect(-0.95, 2.04, 0.6, 2.16, dark if rng.random() < 0.6 else paint)
    wheel(b, -0.95, 0.3, shade(paint, 0.8))
    wheel(b, 0.5, 0.36, shade(paint, 0.8))
    b.line([(0.92, 0.12), (0.92, mast_top)], 0.09, dark)
    b.line([(1.06, 0.12), (1.06, mast_top)], 0.09, shade(dark, 1.3))
    for y in (0.5, 1.3, mast_top - 0.05):
        b.rect(0.88, y, 1.1, y + 0.09, STEEL)
    b.rect(1.08, raised, 1.18, raised + 0.75, shade(dark, 0.8))
    b.poly(
        [(1.08, raised), (2.05, raised + 0.02), (2.05, raised + 0.05), (1.08, raised + 0.1)],
        (92, 94, 100),
    )
    if rng.random() < 0.5:
        b.glow(-0.9, 2.25, 0.8, (255, 150, 30))
        b.rect(-0.96, 2.16, -0.82, 2.3, (250, 140, 20))
    if rng.random() < 0.45:
        _pallet(b.at((1.2, raised + 0.08), 0), rng)


def _pallet(b: Brush, rng: Random) -> None:
    wood, crate = (176, 138, 90), rng.choice(((164, 90, 66), (190, 160, 110), (150, 156, 160)))
    b.rect(0, 0, 0.8, 0.04, wood)
    b.rect(0, 0.09, 0.8, 0.13, shade(wood, 0.85))
    rows = rng.choice((1, 2, 3))
    for row in range(rows):
        for column in range(2):
            x, y = 0.02 + column * 0.39, 0.13 + row * 0.27
            b.rect(x, y, x + 0.37, y + 0.25, shade(crate, 0.9 + 0.08 * ((row + column) % 2)))
