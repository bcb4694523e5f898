"""Compose a building yard: workers with and without helmets, forklifts, helmets left lying
about.
"""

from dataclasses import replace
from random import Random

from topwork.demo.backdrops import yard_backdrop
from topwork.demo.canvas import SUPERSAMPLING, Brush, Canvas, shade
from topwork.demo.people import HELMETS, draw_helmet, draw_person, seated_pose, yard_look, yard_pose
from topwork.demo.scene import Camera, Scene, yard_light
from topwork.demo.vehicles import draw_forklift

YARD_CLASSES: tuple[str, ...] = ("person", "helmet", "forklift")
SIZES: tuple[tuple[int, int], ...] = ((320, 320), (360, 320), (400, 300))


def yard_scene(rng: Random) -> Scene:
    """One yard scene, drawn; the caller develops it and asks for its annotations."""
    width, height = rng.choice(SIZES)
    light = replace(
        yard_light(rng), blur=rng.choice((0.0, 0.0, 0.6)), noise=rng.choice((2.0, 4.0, 6.0))
    )
    canvas = Canvas(width, height, light.haze_colour)
    camera = Camera(canvas.size[1] * rng.uniform(0.3, 0.45), rng.uniform(1.9, 3.0))
    scene = Scene(canvas, camera, light)
    yard_backdrop(canvas, rng, camera.horizon)
    plan = (
        ["person"] * rng.randint(1, 3)
        + ["forklift"] * rng.choice((0, 1, 1, 1))
        + ["helmet"] * rng.choice((0, 1, 1, 2))
    )
    rng.shuffle(plan)
    lanes = _lanes(rng, len(plan), canvas.size[0])
    spots = [(name, x, _row(rng, scene, name)) for name, x in zip(plan, lanes, strict=True)]
    for name, x, (y, scale) in sorted(spots, key=lambda spot: spot[2][0]):
        brush = scene.brush(x, y, scene.number(), flip=rng.random() < 0.5, scale=scale)
        if name == "person":
            _worker(scene, rng, brush)
        elif name == "forklift":
            _forklift(scene, rng, brush)
        else:
            _loose_helmet(scene, rng, brush)
    return scene


def _lanes(rng: Random, count: int, width: float) -> list[float]:
    """One x a spot: evenly spread with a wobble, so that objects overlap sometimes."""
    pitch = width / count
    return [pitch * (lane + 0.5) + rng.uniform(-0.25, 0.25) * pitch for lane in range(count)]


def _row(rng: Random, scene: Scene, name: str) -> tuple[float, float]:
    """Ground row and extra scale for a drawn size that suits the class."""
    low, high, metres = {
        "person": (150, 260, 1.75),
        "forklift": (150, 260, 3.2),
        "helmet": (44, 76, 0.42),
    }[name]
    drawn = SUPERSAMPLING * rng.uniform(low, high)
    unit = drawn / metres
    bottom = scene.canvas.size[1] * rng.uniform(0.86, 0.99)
    if name == "person":  # who stands near is cut off below, not above
        bottom = max(bottom, scene.canvas.size[1] * rng.uniform(0.05, 0.1) + drawn)
    y = max(min(scene.camera.row(unit), bottom), scene.camera.horizon + 20)
    return y, unit / scene.camera.unit(y)


def _worker(scene: Scene, rng: Random, brush: Brush) -> None:
    look, pose = yard_look(rng), yard_pose(rng)
    brush.shadow(0.36, 0.08)
    helmet = scene.number() if look.helmet is not None else None
    figure = draw_person(brush, pose, look, helmet)
    if pose.facing == "side" and 20 < pose.shoulders[0] < 40 and pose.elbows[0] > 50:
        _load(brush.at(figure.hands[0], 0), rng)
    _register(scene, brush.identity, helmet)


def _register(scene: Scene, person: int, helmet: int | None) -> None:
    """A worn helmet is an object of its own and lies inside its wearer's box."""
    scene.add(person, 1, worn=() if helmet is None else (helmet,))
    if helmet is not None:
        scene.add(helmet, 2)


def _load(b: Brush, rng: Random) -> None:
    """What a worker carries: a plank, a bucket, a pipe or a stack of bricks; part of no object."""
    kind = rng.choice(("plank", "box", "pipe", "bricks"))
    if kind == "plank":
        b.rect(-0.75, 0.0, 0.85, 0.09, (186, 146, 92))
        b.rect(-0.75, 0.0, 0.85, 0.03, (150, 112, 70))
    elif kind == "pipe":
        b.line([(-0.6, -0.04), (0.8, 0.1)], 0.08, (130, 136, 142))
    else:
        colour = (176, 140, 96) if kind == "box" else (166, 88, 64)
        b.rect(-0.14, -0.04, 0.26, 0.26, colour)
        for y in (0.06, 0.16):
            b.rect(-0.14, y, 0.26, y + 0.02, shade(colour, 0.7))


def _forklift(scene: Scene, rng: Random, brush: Brush) -> None:
    """A forklift, most with a driver."""
    draw_forklift(brush, rng)
    scene.add(brush.identity, 3)
    if rng.random() < 0.5:
        driver = brush.at((-0.32, 0.0), scene.number())
        look = yard_look(rng)
        helmet = scene.number() if look.helmet is not None else None
        draw_person(driver, seated_pose(rng, 1.12), look, helmet)
        _register(scene, driver.identity, helmet)


def _loose_helmet(scene: Scene, rng: Random, brush: Brush) -> None:
    """A helmet on the ground or on a stack of boards."""
    lift = 0.03
    if rng.random() < 0.5:
        stack = Brush(brush.canvas, brush.x, brush.y, brush.unit, 0, brush.flip, brush.haze)
        for level in range(3):
            stack.rect(
                -0.5,
                level * 0.07,
                0.5,
                level * 0.07 + 0.06,
                shade((176, 138, 90), 0.8 + 0.12 * level),
            )
        lift = 0.24
    else:
        brush.shadow(0.26, 0.05)
    draw_helmet(brush.at((0, lift)), rng.choice(HELMETS), side=True, tilt=rng.uniform(-0.2, 0.2))
    scene.add(brush.identity, 2)
