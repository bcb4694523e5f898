"""What lies behind the objects: sky, houses, parks and roads for the street; mud, scaffolds and
containers for the yard.
"""

from random import Random

from topwork.demo.canvas import Brush, Canvas, Colour, mix, shade
from topwork.demo.street_things import draw_cone, draw_tree
from topwork.demo.vehicles import draw_truck

SKIES: tuple[tuple[Colour, Colour], ...] = (
    ((96, 152, 214), (206, 226, 240)),
    ((150, 166, 184), (214, 218, 222)),
    ((110, 140, 190), (244, 214, 176)),
    ((176, 186, 196), (226, 224, 216)),
    ((74, 128, 196), (186, 214, 236)),
)


def gradient(canvas: Canvas, top: float, bottom: float, first: Colour, second: Colour) -> None:
    """Fill the rows from `top` to `bottom` (canvas pixels) with a vertical blend."""
    width, height = canvas.size
    low, high = max(0, int(top)), min(height, int(bottom))
    if high <= low:
        return
    for row in range(low, high):
        canvas.paint.line((0, row, width, row), fill=mix(first, second, (row - low) / (high - low)))


def _ground_line(
    canvas: Canvas, horizon: float, x: float, near: float, wide: float, colour: Colour, end: float
) -> None:
    """A stripe on the ground from the bottom edge towards the vanishing point."""
    width, height = canvas.size
    vanish = width / 2
    share = (end - horizon) / (height - horizon)
    far_x = vanish + (x - vanish) * share
    canvas.paint.polygon(
        [
            (x - wide, height * near),
            (x + wide, height * near),
            (far_x + wide * share, end),
            (far_x - wide * share, end),
        ],
        fill=colour,
    )


def _speckle(
    canvas: Canvas, rng: Random, horizon: float, colours: tuple[Colour, ...], count: int
) -> None:
    """Flat blots on the ground, smaller towards the horizon."""
    width, height = canvas.size
    for _ in range(count):
        depth = rng.random() ** 0.7
        x, y = rng.uniform(0, width), horizon + (height - horizon) * depth
        rx, ry = rng.uniform(6, 60) * depth + 2, rng.uniform(1, 9) * depth + 1
        canvas.paint.ellipse((x - rx, y - ry, x + rx, y + ry), fill=rng.choice(colours))


def _house(canvas: Canvas, rng: Random, left: float, right: float, base: float, top: float) -> None:
    wall = rng.choice(
        (
            (176, 150, 130),
            (150, 96, 80),
            (196, 186, 168),
            (128, 132, 140),
            (206, 190, 150),
            (120, 110, 104),
        )
    )
    wall = mix(wall, canvas.haze_colour, 0.25)
    canvas.paint.rectangle((left, top, right, base), fill=wall)
    pane, lit = mix((86, 104, 122), canvas.haze_colour, 0.2), (248, 214, 130)
    columns, step = max(1, int((right - left) // 44)), rng.uniform(46, 66)
    pitch, y = (right - left) / columns, top + 16
    while y + 30 < base - 24:
        for column in range(columns):
            x = left + pitch * (column + 0.28)
            is_lit = rng.random() < 0.18
            canvas.paint.rectangle((x, y, x + pitch * 0.44, y + 30), fill=lit if is_lit else pane)
        y += step
    if rng.random() < 0.6:
        canvas.paint.rectangle(
            (left, base - 34, right, base - 26),
            fill=rng.choice(((150, 50, 46), (46, 90, 80), (60, 70, 110))),
        )
    canvas.paint.rectangle((left, top, right, top + 6), fill=shade(wall, 0.75))


def street_backdrop(canvas: Canvas, rng: Random, horizon: float) -> None:
    """Sky, then houses or a park, then pavement, road or lawn."""
    width, _ = canvas.size
    gradient(canvas, 0, horizon + 2, *rng.choice(SKIES))
    kind = rng.choice(("town", "town", "town", "park", "open"))
    if kind == "town":
        x = -rng.uniform(0, 60)
        while x < width:
            wide = rng.uniform(90, 240)
            _house(canvas, rng, x, x + wide, horizon + 4, horizon * rng.uniform(-0.2, 0.6))
            x += wide
    else:
        hill = mix((96, 130, 84), canvas.haze_colour, 0.35)
        for _ in range(7):
            x, r = rng.uniform(0, width), rng.uniform(40, 150)
            canvas.paint.ellipse(
                (x - r, horizon - r * 0.5, x + r, horizon + r * 0.5),
                fill=shade(hill, rng.uniform(0.85, 1.1)),
            )
    if kind == "park":
        _lawn(canvas, rng, horizon)
    else:
        _road(canvas, rng, horizon)


def _lawn(canvas: Canvas, rng: Random, horizon: float) -> None:
    _, height = canvas.size
    green = rng.choice(((96, 142, 70), (118, 148, 78), (130, 134, 76)))
    gradient(canvas, horizon, height, mix(green, canvas.haze_colour, 0.3), shade(green, 0.9))
    _speckle(canvas, rng, horizon, (shade(green, 0.88), shade(green, 1.1)), 60)
    if rng.random() < 0.7:
        _ground_line(
            canvas,
            horizon,
            rng.uniform(0.1, 0.9) * canvas.size[0],
            1.0,
            rng.uniform(60, 150),
            (190, 176, 150),
            horizon,
        )


def _road(canvas: Canvas, rng: Random, horizon: float) -> None:
    width, height = canvas.size
    pave = rng.choice(((178, 172, 164), (160, 160, 160), (190, 176, 156)))
    asphalt = rng.choice(((92, 94, 98), (76, 78, 84), (112, 110, 108)))
    gradient(canvas, horizon, height, mix(pave, canvas.haze_colour, 0.3), pave)
    if rng.random() < 0.5:  # a road that crosses the view
        top, bottom = (
            horizon + (height - horizon) * rng.uniform(0.1, 0.3),
            horizon + (height - horizon) * rng.uniform(0.6, 0.9),
        )
        gradient(canvas, top, bottom, mix(asphalt, canvas.haze_colour, 0.15), asphalt)
        middle, x = (top + bottom) / 2 - 5, rng.uniform(0, 80)
        canvas.paint.rectangle((0, bottom, width, bottom + 8), fill=shade(pave, 0.7))
        while x < width:
            canvas.paint.rectangle((x, middle, x + 60, middle + 7), fill=(226, 222, 206))
            x += 130
    else:  # a road towards the vanishing point
        _ground_line(
            canvas,
            horizon,
            width * rng.uniform(0.35, 0.65),
            1.0,
            width * rng.uniform(0.4, 0.7),
            asphalt,
            horizon,
        )
        centre, y = width * rng.uniform(0.45, 0.55), float(height)
        while y > horizon + 14:
            step = (y - horizon) * 0.22
            wide = (y - horizon) * 0.018
            canvas.paint.rectangle(
                (centre - wide, y - step * 0.6, centre + wide, y), fill=(226, 222, 206)
            )
            y -= step
    _speckle(canvas, rng, horizon, (shade(asphalt, 0.92), shade(pave, 0.95)), 14)


def yard_backdrop(canvas: Canvas, rng: Random, horizon: float) -> None:
    """Hazy sky, a shell of bricks, scaffolding or containers, mud with puddles, and things of the
    street without a label.
    """
    width, height = canvas.size
    first, second = rng.choice(SKIES[1:4])
    gradient(
        canvas, 0, horizon + 2, mix(first, (200, 176, 140), 0.3), mix(second, (226, 206, 170), 0.4)
    )
    mud = rng.choice(((138, 110, 80), (156, 132, 100), (120, 104, 88), (150, 140, 128)))
    gradient(canvas, horizon, height, mix(mud, canvas.haze_colour, 0.3), shade(mud, 0.92))
    _speckle(
        canvas,
        rng,
        horizon,
        (shade(mud, 0.82), shade(mud, 1.12), shade(mud, 0.7), (124, 130, 134)),
        80,
    )
    for _ in range(rng.choice((1, 2))):
        left = rng.uniform(-0.2, 0.7) * width
        rng.choice((_brick_shell, _scaffold, _containers))(canvas, rng, left, horizon + 10)
    if rng.random() < 0.4:
        _crane(canvas, rng, horizon)
    _distractors(canvas, rng, horizon)


def _brick_shell(canvas: Canvas, rng: Random, left: float, base: float) -> None:
    brick, rows = rng.choice(((166, 90, 66), (150, 104, 84), (176, 160, 144))), rng.randint(7, 13)
    wide = rng.uniform(220, 420)
    canvas.paint.rectangle((left, base - rows * 18, left + wide, base), fill=shade(brick, 0.72))
    for row in range(rows):
        x = left - (20 if row % 2 else 0)
        while x < left + wide - 10:
            canvas.paint.rectangle(
                (max(x, left), base - row * 18 - 16, min(x + 37, left + wide), base - row * 18 - 1),
                fill=shade(brick, rng.uniform(0.88, 1.1)),
            )
            x += 40
    for _ in range(rng.randint(1, 3)):
        x = left + rng.uniform(0.05, 0.75) * wide
        canvas.paint.rectangle((x, base - 110, x + 58, base - 36), fill=(60, 58, 60))


def _scaffold(canvas: Canvas, rng: Random, left: float, base: float) -> None:
    wide, high, pitch = rng.uniform(240, 460), rng.uniform(180, 300), 74.0
    wall = rng.choice(((176, 172, 166), (196, 180, 150), (140, 144, 150)))
    canvas.paint.rectangle((left, base - high, left + wide, base), fill=wall)
    pole, plank = (104, 108, 112), (172, 138, 92)
    y = base - 80
    while y > base - high:
        canvas.paint.rectangle((left - 10, y, left + wide + 10, y + 9), fill=plank)
        canvas.paint.line((left - 10, y - 34, left + wide + 10, y - 34), fill=pole, width=4)
        y -= 80
    x, leg = left, 0
    while x < left + wide:
        canvas.paint.line((x, base, x, base - high - 14), fill=pole, width=6)
        if leg % 2 == 0:
            canvas.paint.line((x, base, x + pitch, base - 80), fill=pole, width=4)
        x, leg = x + pitch, leg + 1


def _containers(canvas: Canvas, rng: Random, left: float, base: float) -> None:
    for level in range(rng.choice((1, 2))):
        colour = rng.choice(
            ((40, 90, 130), (160, 60, 44), (60, 110, 80), (196, 150, 50), (130, 134, 138))
        )
        x, wide, y = left + level * rng.uniform(-20, 50), rng.uniform(260, 380), base - level * 112
        canvas.paint.rectangle((x, y - 112, x + wide, y), fill=colour)
        rib = x + 8
        while rib < x + wide - 6:
            canvas.paint.rectangle((rib, y - 104, rib + 6, y - 8), fill=shade(colour, 0.82))
            rib += 16
        canvas.paint.rectangle((x, y - 112, x + wide, y - 106), fill=shade(colour, 1.15))


def _crane(canvas: Canvas, rng: Random, horizon: float) -> None:
    width, _ = canvas.size
    x, top, steel = rng.uniform(0.1, 0.9) * width, horizon * rng.uniform(0.05, 0.3), (214, 168, 40)
    canvas.paint.line((x, horizon, x, top), fill=steel, width=8)
    canvas.paint.line((x - 70, top + 14, x + 260, top + 14), fill=steel, width=7)
    canvas.paint.line((x, top - 12, x + 200, top + 14), fill=steel, width=3)
    canvas.paint.rectangle((x - 74, top + 12, x - 40, top + 34), fill=(120, 120, 124))
    canvas.paint.line((x + 180, top + 14, x + 180, top + 110), fill=(60, 60, 60), width=2)


def _distractors(canvas: Canvas, rng: Random, horizon: float) -> None:
    width, height = canvas.size
    if rng.random() < 0.3:
        draw_truck(
            Brush(
                canvas,
                rng.uniform(0, width),
                horizon + 26,
                rng.uniform(34, 48),
                flip=rng.random() < 0.5,
                haze=0.2,
            ),
            rng,
        )
    if rng.random() < 0.4:
        draw_tree(
            Brush(canvas, rng.uniform(0, width), horizon + 12, rng.uniform(36, 60), haze=0.2), rng
        )
    for _ in range(rng.choice((0, 1, 2))):
        x, y = rng.uniform(0, width), horizon + (height - horizon) * rng.uniform(0.15, 0.9)
        pile = Brush(canvas, x, y, rng.uniform(70, 110))
        if rng.random() < 0.5:
            draw_cone(pile, rng)
        else:
            _brick_pile(pile, rng)


def _brick_pile(b: Brush, rng: Random) -> None:
    colour = rng.choice(((170, 92, 68), (150, 150, 150), (186, 150, 100)))
    b.shadow(0.7, 0.1)
    rows = rng.randint(2, 4)
    for row in range(rows):
        for column in range(5 - row):
            x, y = -0.62 + column * 0.25 + row * 0.12, row * 0.14
            b.rect(x, y, x + 0.23, y + 0.12, shade(colour, rng.uniform(0.8, 1.1)))
