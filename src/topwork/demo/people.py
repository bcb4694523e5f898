"""Drawn people: a jointed skeleton, a pose, a look.

The street's people and the yard's share bones, not clothes.
"""

import math
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from topwork.demo.canvas import Brush, Colour, Point, arc, shade

Facing = Literal["front", "back", "side"]

SKINS: tuple[Colour, ...] = (
    (250, 218, 190),
    (236, 190, 152),
    (205, 150, 108),
    (160, 108, 72),
    (112, 72, 48),
    (80, 52, 38),
)
HAIRS: tuple[Colour, ...] = (
    (32, 26, 24),
    (70, 46, 30),
    (120, 80, 44),
    (200, 160, 90),
    (150, 150, 150),
    (140, 60, 36),
)
CLOTHES: tuple[Colour, ...] = (
    (196, 48, 52),
    (40, 92, 168),
    (44, 130, 84),
    (236, 232, 224),
    (44, 46, 56),
    (226, 150, 172),
    (122, 78, 150),
    (120, 168, 206),
    (150, 110, 76),
    (230, 200, 96),
    (96, 104, 112),
    (24, 120, 130),
)
TROUSERS: tuple[Colour, ...] = (
    (40, 56, 96),
    (34, 34, 40),
    (88, 92, 100),
    (150, 128, 96),
    (78, 62, 50),
    (84, 116, 156),
)
HI_VIS: tuple[Colour, ...] = ((246, 112, 20), (206, 236, 40))
REFLECTIVE: Colour = (226, 230, 228)
HELMETS: tuple[Colour, ...] = (
    (250, 204, 24),
    (246, 246, 240),
    (240, 110, 24),
    (38, 96, 196),
    (200, 34, 38),
    (40, 150, 80),
)


@dataclass(frozen=True)
class Pose:
    """Joint angles in degrees from straight down, positive to where the person faces; knees bend
    back, elbows forward.
    """

    facing: Facing = "side"
    lean: float = 0.0
    hips: tuple[float, float] = (4.0, -4.0)
    knees: tuple[float, float] = (2.0, 2.0)
    shoulders: tuple[float, float] = (8.0, -8.0)
    elbows: tuple[float, float] = (10.0, 10.0)
    seat: float | None = None
    """Height of the pelvis in metres when it rests on something; None stands on the lower foot."""


@dataclass(frozen=True)
class Look:
    """Body and clothes. `work` chooses the yard's overalls and vest; `helmet` a worn helmet's
    colour.
    """

    height: float
    girth: float
    skin: Colour
    hair: Colour
    hair_style: Literal["short", "long", "bun", "bald", "cap"]
    top: Colour
    trousers: Colour
    shoes: Colour
    sleeves: Literal["long", "short"] = "long"
    dress: bool = False
    vest: Colour | None = None
    overalls: bool = False
    belt: bool = False
    helmet: Colour | None = None


@dataclass(frozen=True)
class Figure:
    """Where a drawn person's parts ended up, in the person's own metres."""

    head: Point
    neck: Point
    pelvis: Point
    hands: tuple[Point, Point]
    scale: float


def street_look(rng: Random) -> Look:
    """Everyday clothes; one in six is a child."""
    child = rng.random() < 0.16
    top = rng.choice(CLOTHES)
    return Look(
        height=rng.uniform(1.05, 1.4) if child else rng.uniform(1.58, 1.9),
        girth=rng.uniform(0.9, 1.3),
        skin=rng.choice(SKINS),
        hair=rng.choice(HAIRS),
        hair_style=rng.choice(("short", "short", "long", "long", "bun", "bald", "cap")),
        top=shade(top, rng.uniform(0.8, 1.1)),
        trousers=shade(rng.choice((*TROUSERS, top)), rng.uniform(0.8, 1.15)),
        shoes=rng.choice(((30, 28, 28), (236, 236, 236), (110, 66, 40), (180, 40, 40))),
        sleeves=rng.choice(("long", "long", "short")),
        dress=rng.random() < 0.2,
    )


def yard_look(rng: Random) -> Look:
    """Work clothes: overalls or a jacket, most with a hi-vis vest, a tool belt now and then, a
    helmet on most heads.
    """
    cloth = rng.choice(
        ((44, 60, 96), (70, 72, 60), (92, 84, 72), (52, 56, 62), (110, 74, 44), (40, 80, 84))
    )
    vest = rng.choice(HI_VIS) if rng.random() < 0.72 else None
    return Look(
        height=rng.uniform(1.62, 1.92),
        girth=rng.uniform(1.1, 1.45),
        skin=rng.choice(SKINS),
        hair=rng.choice(HAIRS),
        hair_style=rng.choice(("short", "short", "bun", "bald")),
        top=shade(rng.choice((*CLOTHES[:5], cloth)), rng.uniform(0.7, 1.0)),
        trousers=shade(cloth, rng.uniform(0.8, 1.15)),
        shoes=rng.choice(((60, 44, 30), (120, 84, 40), (40, 38, 36))),
        sleeves=rng.choice(("long", "long", "short")),
        vest=vest,
        overalls=vest is None or rng.random() < 0.4,
        belt=rng.random() < 0.5,
        helmet=rng.choice(HELMETS) if rng.random() < 0.8 else None,
    )


def street_pose(rng: Random) -> Pose:
    """Walking, running, standing, waving or holding a telephone."""
    swing = rng.uniform(12, 34)
    kind = rng.choice(
        ("walk", "walk", "walk", "run", "stand", "stand", "stand", "wave", "cheer", "phone", "side")
    )
    if kind == "walk":
        return Pose(
            "side",
            rng.uniform(-2, 5),
            (swing, -swing),
            (4, rng.uniform(8, 30)),
            (-swing, swing),
            (14, 20),
        )
    if kind == "run":
        return Pose("side", rng.uniform(8, 16), (46, -26), (34, 70), (-52, 44), (70, 84))
    if kind == "phone":
        return Pose("side", 2, (3, -4), (2, 2), (-6, rng.uniform(40, 60)), (8, 84))
    if kind == "side":
        return Pose("side", 0, (4, -6), (2, 4), (6, -10), (8, 12))
    facing: Facing = rng.choice(("front", "front", "back"))
    spread = rng.uniform(2, 12)
    arms = (rng.uniform(6, 24), rng.uniform(6, 24))
    elbows = (rng.uniform(-30, 10), rng.uniform(-30, 10))
    if kind == "wave":
        arms, elbows = (arms[0], rng.uniform(120, 160)), (elbows[0], rng.uniform(10, 40))
    elif kind == "cheer":
        arms, elbows = (rng.uniform(130, 165), rng.uniform(130, 165)), (15, 15)
    return Pose(facing, rng.uniform(-3, 3), (spread, spread), (0, 0), arms, elbows)


def yard_pose(rng: Random) -> Pose:
    """Carrying, bending, crouching, pointing, hammering or standing by."""
    kind = rng.choice(
        ("carry", "carry", "bend", "bend", "crouch", "point", "hammer", "stand", "walk")
    )
    if kind == "carry":
        stride = rng.uniform(4, 22)
        return Pose("side", rng.uniform(-6, 6), (stride, -stride), (6, 14), (36, 28), (58, 64))
    if kind == "bend":
        return Pose(
            "side",
            rng.uniform(42, 68),
            (16, -2),
            (24, 12),
            (rng.uniform(10, 50), rng.uniform(0, 30)),
            (10, 20),
        )
    if kind == "crouch":
        return Pose("side", rng.uniform(16, 34), (92, 40), (112, 118), (50, 30), (24, 40))
    if kind == "point":
        return Pose("side", 0, (6, -6), (2, 4), (rng.uniform(76, 98), -10), (4, 12))
    if kind == "hammer":
        return Pose("side", 10, (22, -14), (10, 12), (rng.uniform(110, 150), 40), (30, 50))
    if kind == "walk":
        return Pose("side", 4, (24, -22), (6, 24), (-20, 24), (16, 22))
    return Pose(
        rng.choice(("front", "back")),
        0,
        (7, 7),
        (0, 0),
        (rng.uniform(8, 40), rng.uniform(8, 40)),
        (-30, -40),
    )


def seated_pose(rng: Random, seat: float) -> Pose:
    """Sitting in profile with the pelvis at `seat` metres."""
    return Pose("side", rng.uniform(-10, 6), (86, 80), (84, 90), (30, 22), (50, 40), seat=seat)


def riding_pose(seat: float) -> Pose:
    """On a saddle, hands at the handlebar."""
    return Pose("side", 22, (62, 22), (66, 44), (52, 50), (18, 20), seat=seat)


def draw_person(brush: Brush, pose: Pose, look: Look, helmet_identity: int | None = None) -> Figure:
    """Draw a person; a worn helmet gets its own identity when one is given."""
    scale = look.height / 1.75
    b = replace(brush, unit=brush.unit * scale)
    half_shoulder, half_hip = (0.19, 0.10) if pose.facing != "side" else (0.03, 0.02)
    half_shoulder, half_hip = half_shoulder * look.girth, half_hip * look.girth
    legs = [_leg(pose, side) for side in (0, 1)]
    drop = max(-leg[2][1] for leg in legs) + 0.05
    pelvis = (0.0, drop if pose.seat is None else pose.seat / scale)
    lean = math.radians(pose.lean)
    neck = (pelvis[0] + 0.54 * math.sin(lean), pelvis[1] + 0.54 * math.cos(lean))
    head = (neck[0] + 0.2 * math.sin(lean * 0.8), neck[1] + 0.2 * math.cos(lean * 0.8))
    shoulders = (
        (neck[0] - half_shoulder, neck[1] - 0.05),
        (neck[0] + half_shoulder, neck[1] - 0.05),
    )
    arms = [_arm(pose, side, shoulders[side]) for side in (0, 1)]
    # in profile the second arm and leg are the far ones: drawn first, darker
    _draw_arm(b, arms[1], look, 0.82 if pose.facing == "side" else 0.95)
    for side in (1, 0):
        shift = (half_hip if side else -half_hip) + pelvis[0]
        _draw_leg(
            b,
            [(x + shift, y + pelvis[1]) for x, y in legs[side]],
            look,
            0.85 if side else 1.0,
            pose,
        )
    _draw_torso(b, pelvis, neck, pose, look)
    b.line([neck, head], 0.11, shade(look.skin, 0.9))
    _draw_head(b, head, pose, look)
    if look.helmet is not None:
        draw_helmet(
            b.at((head[0], head[1] + 0.035), helmet_identity),
            look.helmet,
            side=pose.facing == "side",
            tilt=-lean * 0.8,
        )
    _draw_arm(b, arms[0], look, 1.0)
    hands = (_up(arms[0][2], scale), _up(arms[1][2], scale))
    return Figure(_up(head, scale), _up(neck, scale), _up(pelvis, scale), hands, scale)


def _up(point: Point, scale: float) -> Point:
    return point[0] * scale, point[1] * scale


def _swing(origin: Point, length: float, degrees: float) -> Point:
    angle = math.radians(degrees)
    return origin[0] + length * math.sin(angle), origin[1] - length * math.cos(angle)


def _leg(pose: Pose, side: int) -> list[Point]:
    outward = -1.0 if pose.facing != "side" and side == 0 else 1.0
    knee = _swing((0.0, 0.0), 0.44, pose.hips[side] * outward)
    ankle = _swing(knee, 0.43, (pose.hips[side] - pose.knees[side]) * outward)
    return [(0.0, 0.0), knee, ankle]


def _arm(pose: Pose, side: int, shoulder: Point) -> list[Point]:
    outward = -1.0 if pose.facing != "side" and side == 0 else 1.0
    # arms hang from a leaning trunk as they do from an upright one, only raised ones follow the
    # lean
    elbow = _swing(shoulder, 0.29, pose.shoulders[side] * outward)
    hand = _swing(elbow, 0.27, (pose.shoulders[side] + pose.elbows[side]) * outward)
    return [shoulder, elbow, hand]


def _draw_arm(b: Brush, arm: list[Point], look: Look, light: float) -> None:
    girth = look.girth
    cloth = shade(look.top, light * 0.92)
    b.limb(
        arm[1:],
        [0.095 * girth, 0.08],
        shade(look.skin, light) if look.sleeves == "short" else cloth,
    )
    b.limb(arm[:2], [0.13 * girth, 0.1 * girth], cloth)
    b.oval(*arm[2], 0.05, 0.055, shade(look.skin, light))


def _draw_leg(b: Brush, leg: list[Point], look: Look, light: float, pose: Pose) -> None:
    cloth = shade(look.skin if look.dress else look.trousers, light)
    b.limb(leg, [0.19 * look.girth, 0.14 * look.girth, 0.105], cloth)
    x, y = leg[2]
    if pose.facing == "side":
        b.poly(
            [
                (x - 0.06, y + 0.04),
                (x + 0.05, y + 0.04),
                (x + 0.19, y - 0.02),
                (x + 0.19, y - 0.06),
                (x - 0.07, y - 0.06),
            ],
            shade(look.shoes, light),
        )
    else:
        b.oval(x, y - 0.01, 0.07, 0.06, shade(look.shoes, light))


def _draw_torso(b: Brush, pelvis: Point, neck: Point, pose: Pose, look: Look) -> None:
    wide = pose.facing != "side"
    top_w, hip_w = (0.5, 0.36) if wide else (0.27, 0.26)
    top_w, hip_w = top_w * look.girth, hip_w * look.girth
    low = (pelvis[0], pelvis[1] - 0.02)

    def across(share: float, offset: float) -> Point:
        """A point of the trunk: share 0 pelvis..1 neck; offset -1 back (left)..1 front (right)
        edge.
        """
        width = hip_w + (top_w - hip_w) * share
        axis_x, axis_y = neck[0] - low[0], neck[1] - low[1]
        length = math.hypot(axis_x, axis_y)
        nx, ny = axis_y / length, -axis_x / length
        along = (low[0] + axis_x * share, low[1] + axis_y * share)
        return along[0] + nx * offset * width / 2, along[1] + ny * offset * width / 2

    def band(start: float, stop: float, left: float, right: float, colour: Colour) -> None:
        b.poly(
            [across(start, left), across(start, right), across(stop, right), across(stop, left)],
            colour,
        )

    b.oval(low[0], low[1] + 0.03, hip_w * 0.52, 0.12, look.top if look.dress else look.trousers)
    outline = [across(0, -1), across(0, 1), across(0.55, 1), across(0.86, 1.0), across(1.0, 0.55)]
    b.poly([*outline, across(1.0, -0.55), across(0.86, -1.0), across(0.55, -1)], look.top)
    band(0.0, 0.85, -1, -0.55, shade(look.top, 0.86))
    if look.dress:
        flare = hip_w * 0.85
        b.poly(
            [
                across(0.2, -0.95),
                across(0.2, 0.95),
                (low[0] + flare, low[1] - 0.36),
                (low[0] - flare, low[1] - 0.36),
            ],
            look.top,
        )
    if look.overalls:
        band(0.0, 0.55, -1, 1, look.trousers)
        band(0.55, 0.8, -0.5, 0.5, look.trousers)
        band(0.8, 1.0, -0.55, -0.3, look.trousers)
        band(0.8, 1.0, 0.3, 0.55, look.trousers)
    if look.vest is not None:
        band(0.06, 0.92, -1.04, 1.04, look.vest)
        band(0.06, 0.92, -1.04, -0.6, shade(look.vest, 0.85))
        band(0.3, 0.4, -1.04, 1.04, REFLECTIVE)
        for edge in (-0.62, 0.38) if wide else (-0.1,):
            band(0.4, 0.95, edge, edge + 0.24, REFLECTIVE)
        if pose.facing == "front":
            band(0.06, 0.92, -0.05, 0.05, shade(look.vest, 0.6))
    if look.belt:
        band(0.0, 0.1, -1.08, 1.08, (84, 54, 30))
        band(-0.12, 0.08, 0.55, 1.12, (108, 70, 38))
        band(-0.16, 0.0, 0.7, 0.85, (150, 150, 156))


def _draw_head(b: Brush, head: Point, pose: Pose, look: Look) -> None:
    x, y = head
    side = pose.facing == "side"
    if look.hair_style == "long":
        b.oval(x - (0.04 if side else 0), y - 0.05, 0.14, 0.2, shade(look.hair, 0.9))
    b.oval(x, y, 0.115, 0.14, look.skin)
    if pose.facing == "back":
        if look.hair_style != "bald":
            b.oval(x, y + 0.01, 0.122, 0.14, look.hair)
    elif side:
        b.poly([(x + 0.1, y + 0.03), (x + 0.145, y - 0.025), (x + 0.1, y - 0.04)], look.skin)
        b.oval(x + 0.07, y + 0.02, 0.014, 0.018, (30, 26, 26))
        b.oval(x - 0.02, y - 0.01, 0.025, 0.035, shade(look.skin, 0.85))
        b.line([(x + 0.06, y - 0.075), (x + 0.1, y - 0.07)], 0.016, shade(look.skin, 0.6))
    else:
        for eye in (-0.045, 0.045):
            b.oval(x + eye, y + 0.015, 0.015, 0.018, (30, 26, 26))
        b.line([(x - 0.035, y - 0.07), (x + 0.035, y - 0.07)], 0.016, shade(look.skin, 0.6))
    _draw_hair(b, head, pose, look)


def _draw_hair(b: Brush, head: Point, pose: Pose, look: Look) -> None:
    x, y = head
    side = pose.facing == "side"
    if look.hair_style == "bald":
        return
    start, stop = (35.0, 215.0) if side else (12.0, 168.0)
    b.poly(arc(x, y + 0.015, 0.128, 0.148, start, stop), look.hair)
    if look.hair_style == "bun":
        b.oval(x - (0.11 if side else 0), y + (0.09 if side else 0.17), 0.055, 0.055, look.hair)
    if look.hair_style == "cap":
        cap = shade(look.top, 0.75)
        b.poly(arc(x, y + 0.04, 0.134, 0.125, 0, 180), cap)
        if pose.facing != "back":
            b.rect(
                x - (0.0 if side else 0.12),
                y + 0.03,
                x + (0.24 if side else 0.12),
                y + 0.065,
                shade(cap, 0.8),
            )


# a little larger than life: a detector at 320 pixels sees little of what is smaller
HELMET_SIZE = 1.3


def draw_helmet(b: Brush, colour: Colour, side: bool, tilt: float = 0.0) -> None:
    """Draw a hard hat whose rim's middle is the brush's origin: dome, ridge, brim (to the front in
    profile).
    """
    b = replace(b, tilt=b.tilt + (-tilt if b.flip else tilt), unit=b.unit * HELMET_SIZE)
    b.poly(arc(0, 0.0, 0.165, 0.17, 0, 180), colour)
    b.poly([*arc(0, 0.0, 0.165, 0.17, 110, 180), (-0.07, 0.0)], shade(colour, 0.84))
    ridge = (
        [*arc(0.0, 0.0, 0.04, 0.188, 0, 180)] if not side else [*arc(0, 0.0, 0.13, 0.188, 30, 150)]
    )
    b.poly(ridge, shade(colour, 1.12))
    front = 0.245 if side else 0.19
    b.poly(
        [(-0.175, -0.025), (front, -0.03), (front, 0.005), (0.16, 0.035), (-0.175, 0.03)],
        shade(colour, 0.9),
    )
