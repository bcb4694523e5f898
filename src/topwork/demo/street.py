"""Compose a street scene: who stands where, who rides, sits, holds or carries what."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from topwork.demo import animals, street_things, vehicles
from topwork.demo.backdrops import street_backdrop
from topwork.demo.canvas import SUPERSAMPLING, Brush, Canvas
from topwork.demo.people import draw_person, riding_pose, seated_pose, street_look, street_pose
from topwork.demo.scene import Camera, Scene, street_light

STREET_CLASSES: tuple[str, ...] = (
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "bus",
    "truck",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "backpack",
    "umbrella",
    "ball",
    "tree",
    "cone",
    "mailbox",
)
SIZES: tuple[tuple[int, int], ...] = (
    (320, 320),
    (320, 320),
    (320, 320),
    (400, 300),
    (384, 320),
    (300, 360),
)


@dataclass(frozen=True)
class Kind:
    """How one class enters a scene: how often, its rough size in metres, its size range in picture
    pixels (longer side).
    """

    weight: float
    width: float
    height: float
    pixels: tuple[float, float]
    draw: Callable[[Brush, Random], None] | None = None


KINDS: dict[str, Kind] = {
    "person": Kind(6.0, 0.7, 1.75, (58, 210)),
    "bicycle": Kind(1.3, 1.7, 1.05, (70, 180), vehicles.draw_bicycle),
    "car": Kind(2.4, 4.3, 1.5, (80, 280), vehicles.draw_car),
    "motorcycle": Kind(1.3, 2.1, 1.15, (75, 190), vehicles.draw_motorcycle),
    "bus": Kind(1.1, 8.5, 3.0, (130, 330), vehicles.draw_bus),
    "truck": Kind(1.7, 6.8, 3.2, (110, 310), vehicles.draw_truck),
    "traffic light": Kind(1.1, 0.55, 3.5, (110, 260), street_things.draw_traffic_light),
    "fire hydrant": Kind(1.0, 0.6, 0.93, (36, 110), street_things.draw_hydrant),
    "stop sign": Kind(1.0, 1.0, 3.0, (90, 260), street_things.draw_stop_sign),
    "bench": Kind(1.1, 1.9, 0.95, (70, 180), street_things.draw_bench),
    "bird": Kind(1.2, 0.8, 0.5, (34, 90), animals.draw_bird),
    "cat": Kind(1.0, 0.6, 0.66, (38, 110), animals.draw_cat),
    "dog": Kind(1.2, 1.3, 0.85, (52, 150), animals.draw_dog),
    "horse": Kind(1.0, 2.6, 2.2, (90, 230), animals.draw_horse),
    "backpack": Kind(1.0, 0.5, 0.65, (36, 100), street_things.draw_backpack),
    "umbrella": Kind(1.0, 1.4, 2.4, (110, 220)),
    "ball": Kind(1.0, 0.42, 0.42, (24, 70), street_things.draw_ball),
    "tree": Kind(1.4, 2.6, 3.6, (90, 260), street_things.draw_tree),
    "cone": Kind(1.2, 0.6, 0.78, (36, 110), street_things.draw_cone),
    "mailbox": Kind(1.0, 0.7, 1.25, (46, 140), street_things.draw_mailbox),
}


@dataclass(frozen=True)
class Spot:
    """A place for an object: class, ground contact in canvas pixels, extra scale, and the room it
    takes (xyxy).
    """

    name: str
    x: float
    y: float
    scale: float
    room: tuple[float, float, float, float]


def street_scene(rng: Random) -> Scene:
    """One street scene, drawn; the caller develops it and asks for its annotations."""
    width, height = rng.choice(SIZES)
    light = street_light(rng)
    canvas = Canvas(width, height, light.haze_colour)
    camera = Camera(canvas.size[1] * rng.uniform(0.3, 0.5), rng.uniform(1.7, 3.2))
    scene = Scene(canvas, camera, light)
    street_backdrop(canvas, rng, camera.horizon)
    for spot in _spots(rng, scene):
        _place(scene, rng, spot)
    return scene


def _spots(rng: Random, scene: Scene) -> list[Spot]:
    """Up to ten places with bounded overlap, the far ones first."""
    names, weights = list(KINDS), [kind.weight for kind in KINDS.values()]
    wanted = rng.choices(names, weights, k=rng.randint(4, 10))
    taken: list[Spot] = []
    for name in wanted:
        for _ in range(6):
            spot = _propose(rng, scene, name)
            if all(_overlap(spot.room, other.room) < 0.32 for other in taken):
                taken.append(spot)
                break
    return sorted(taken, key=lambda spot: spot.y)


def _propose(rng: Random, scene: Scene, name: str) -> Spot:
    kind, camera = KINDS[name], scene.camera
    width, height = scene.canvas.size
    low, high = kind.pixels
    target = SUPERSAMPLING * low * (high / low) ** rng.random()
    unit = target / max(kind.width, kind.height)
    # a small thing close by would need a row below the picture: keep its feet in view and enlarge
    # it there instead
    lowest = height * (
        1.06
        if name in ("person", "car", "bus", "truck") and rng.random() < 0.25
        else rng.uniform(0.86, 0.99)
    )
    y = min(camera.row(unit), lowest)
    y = max(y, camera.horizon + 14)
    scale = unit / camera.unit(y)
    x = rng.uniform(0.02, 0.98) * width
    half, tall = kind.width * unit / 2, kind.height * unit
    if rng.random() < 0.75:  # most objects are whole
        x = min(max(x, half * 1.05), width - half * 1.05) if half * 2.1 < width else width / 2
    return Spot(name, x, y, scale, (x - half, y - tall, x + half, y))


def _overlap(
    first: tuple[float, float, float, float], second: tuple[float, float, float, float]
) -> float:
    """Intersection over the smaller of two boxes (xyxy)."""
    wide = min(first[2], second[2]) - max(first[0], second[0])
    tall = min(first[3], second[3]) - max(first[1], second[1])
    if wide <= 0 or tall <= 0:
        return 0.0
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return wide * tall / smaller


def _category(name: str) -> int:
    return STREET_CLASSES.index(name) + 1


def _place(scene: Scene, rng: Random, spot: Spot) -> None:
    """Draw one spot's object, with its rider, sitter or umbrella."""
    brush = scene.brush(spot.x, spot.y, scene.number(), flip=rng.random() < 0.5, scale=spot.scale)
    if spot.name == "person":
        _person(scene, rng, brush, rng.choices(("plain", "backpack"), (8, 1))[0])
        return
    if spot.name == "umbrella":
        _person(scene, rng, brush, "umbrella")
        return
    if spot.name == "bird" and rng.random() < 0.35:
        sky = Brush(
            scene.canvas,
            spot.x,
            scene.camera.horizon * rng.uniform(0.15, 0.9),
            brush.unit,
            brush.identity,
            brush.flip,
        )
        animals.draw_bird(sky, rng, flying=True)
    else:
        draw = KINDS[spot.name].draw
        assert draw is not None
        draw(brush, rng)
    scene.add(brush.identity, _category(spot.name))
    _rider(scene, rng, brush, spot.name)


def _rider(scene: Scene, rng: Random, brush: Brush, name: str) -> None:
    """Sometimes somebody sits on the bicycle, motorcycle, horse or bench just drawn."""
    seats = {
        "bicycle": (-0.27, 0.93, 0.55),
        "motorcycle": (-0.4, 0.86, 0.5),
        "horse": (0.0, 1.42, 0.4),
        "bench": (0.2, 0.5, 0.5),
    }
    if name not in seats:
        return
    x, seat, chance = seats[name]
    if rng.random() > chance:
        return
    rider = brush.at((x, 0.0), scene.number())
    look = street_look(rng)
    draw_person(rider, seated_pose(rng, seat) if name == "bench" else riding_pose(seat), look)
    scene.add(rider.identity, _category("person"))


def _person(scene: Scene, rng: Random, brush: Brush, kind: str) -> None:
    """A person on foot, perhaps with a backpack (behind, in profile) or an umbrella."""
    pose, look = street_pose(rng), street_look(rng)
    half = 0.22 * look.girth
    brush.shadow(half * 1.6, half * 0.35)
    figure = draw_person(brush, pose, look)
    scene.add(brush.identity, _category("person"))
    if kind == "backpack" and pose.facing != "front":
        back = -0.27 * look.girth if pose.facing == "side" else 0.0
        low = figure.pelvis[1] + 0.02
        pack = brush.at((back * figure.scale, low), scene.number(), scale=0.85 * figure.scale)
        street_things.draw_backpack(pack, rng)
        scene.add(pack.identity, _category("backpack"))
    if kind == "umbrella":
        hand = (figure.head[0] + 0.14, figure.neck[1] - 0.1)
        umbrella = brush.at(hand, scene.number(), scale=max(figure.scale, 0.8))
        street_things.draw_umbrella(umbrella, rng)
        scene.add(umbrella.identity, _category("umbrella"))
