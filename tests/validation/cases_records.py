"""For each rule on files, records, categories, splits and choices: what triggers it, and the
nearest thing that doesn't.
"""

import json
from collections.abc import Callable

from validation.scene import ABSENT, Scene, encoded, picture, small_set

Case = Callable[[Scene], Scene]


def rare(scene: Scene, kept: int) -> Scene:
    """Only so many boxes of forklift."""
    rows = scene.sets["train"]["annotations"]
    forklifts = [row for row in rows if row["category_id"] == 2]
    scene.sets["train"]["annotations"] = [
        row for row in rows if row["category_id"] == 1
    ] + forklifts[:kept]
    return scene


def imbalanced(scene: Scene, count: int) -> Scene:
    """So many helmets and ten forklifts, each with a box of its own."""
    rare(scene, 10)
    for number in range(count - 12):
        x, y = number % 40 * 2, number // 40 * 2
        scene.add(
            "annotations",
            {
                "id": 1000 + number,
                "image_id": 1,
                "category_id": 1,
                "bbox": [x, y, 5, 5],
                "area": 25,
                "iscrowd": 0,
            },
        )
    return scene


def coco_names(scene: Scene, *ids: int) -> Scene:
    """Person, car and cat under these ids."""
    scene.sets["train"]["categories"] = [
        {"id": i, "name": n} for i, n in zip(ids, ("person", "car", "cat"), strict=True)
    ]
    for place, row in enumerate(scene.sets["train"]["annotations"]):
        row["category_id"] = ids[place % 2 if place < 20 else 2]
    for number in range(8):
        box = [5 * number, 60, 5, 5]
        scene.add(
            "annotations",
            {
                "id": 900 + number,
                "image_id": 1,
                "category_id": ids[2],
                "bbox": box,
                "area": 25,
                "iscrowd": 0,
            },
        )
    return scene


def group_field(scene: Scene, *groups: str | None) -> Scene:
    for place, group in enumerate(groups):
        if group is not None:
            scene.image(place, site=group)
    return scene.option(split={"val": 0.3, "test": 0.0, "group_by": "site"})


def leaking(scene: Scene, val_site: str) -> Scene:
    """Two given splits whose images have a site."""
    scene.other()
    for place in range(4):
        scene.image(place, site="north")
        scene.image(place, "val", site=val_site)
    return scene.option(split={"group_by": "site"})


def alike(scene: Scene) -> Scene:
    """The second image with the boxes and classes of the first."""
    records = scene.sets["train"]["annotations"]
    for index in range(6):
        same = {key: records[index][key] for key in ("bbox", "area", "category_id")}
        scene.annotation(6 + index, **same)
    return scene


RECORD_CASES: dict[str, tuple[Case, Case]] = {
    "file-unreadable": (lambda s: s.raw(None), lambda s: s),
    "file-empty": (
        lambda s: s.raw(b""),
        lambda s: s.raw(json.dumps(small_set()).encode() + b"\n\n"),
    ),
    "file-not-json": (
        lambda s: s.raw(json.dumps(small_set()).encode()[:-100]),
        lambda s: s.raw(json.dumps(small_set(), indent=2).encode()),
    ),
    "file-not-coco": (lambda s: s.raw(b"[]"), lambda s: s.top(info={"year": 2026}, licenses=[])),
    "file-encoding": (lambda s: s.encode("utf-16"), lambda s: s.category(0, name="Schutzhelm ä")),
    "file-nan-token": (
        lambda s: s.edit('"area": 168', '"area": NaN'),
        lambda s: s.top(info={"note": "NaN, Infinity"}),
    ),
    "file-key-twice": (
        lambda s: s.edit('"bbox": [', '"bbox": [1, 1, 5, 5], "bbox": ['),
        lambda s: s.top(info={"bbox": 1, "file_name": "x"}),
    ),
    "set-empty": (lambda s: s.top(images=[], annotations=[]), lambda s: s),
    "set-unannotated": (
        lambda s: s.other().top("val", annotations=[]),
        lambda s: s.top(annotations=[]),
    ),
    "train-unannotated": (
        lambda s: s.top(annotations=[]),
        lambda s: s.other().top("val", annotations=[]),
    ),
    "record-malformed": (
        lambda s: s.annotation(0, image_id=None),
        lambda s: s.annotation(0, image_id=1.0),
    ),
    "image-id-twice": (lambda s: s.image(1, id=1), lambda s: s),
    "annotation-id-twice": (lambda s: s.annotation(1, id=10), lambda s: s.annotation(1, id=999)),
    "category-id-twice": (
        lambda s: s.add("categories", {"id": 2, "name": "cone"}),
        lambda s: s.add("categories", {"id": 3, "name": "cone"}),
    ),
    "annotation-id-missing": (
        lambda s: s.annotation(0, id=ABSENT),
        lambda s: s.annotation(0, id=0),
    ),
    "id-text": (lambda s: s.annotation(0, id="10"), lambda s: s.image(0, license="10")),
    "id-negative": (lambda s: s.annotation(0, id=-1), lambda s: s.annotation(0, id=0)),
    "image-id-dangling": (
        lambda s: s.annotation(0, image_id=77),
        lambda s: s.annotation(0, image_id=2),
    ),
    "category-id-dangling": (
        lambda s: s.annotation(0, category_id=7),
        lambda s: s.annotation(0, category_id=2),
    ),
    "image-listed-twice": (lambda s: s.image(1, file_name="0.jpg"), lambda s: s),
    "image-boxes-differ": (
        lambda s: s.image(1, file_name="0.jpg"),
        lambda s: alike(s.image(1, file_name="0.jpg")),
    ),
    "image-size-missing": (lambda s: s.image(0, width=ABSENT), lambda s: s.image(0, width=100.0)),
    "image-empty": (
        lambda s: s.add("images", {"id": 9, "file_name": "9.jpg", "width": 100, "height": 80}).file(
            "train/9.jpg", encoded(picture(9))
        ),
        lambda s: s,
    ),
    "category-none": (lambda s: s.top(categories=[]), lambda s: s),
    "category-name-twice": (
        lambda s: s.category(1, name="helmet"),
        lambda s: s.category(1, name="helmets"),
    ),
    "category-name-case": (
        lambda s: s.category(1, name="Hel_met"),
        lambda s: s.category(1, name="helmet 2"),
    ),
    "category-name-blank": (lambda s: s.category(1, name=" "), lambda s: s.category(1, name="0")),
    "category-name-reserved": (
        lambda s: s.category(1, name="__background__"),
        lambda s: s.category(1, name="background"),
    ),
    "category-placeholder": (
        lambda s: s.add("categories", {"id": 0, "name": "_background_"}),
        lambda s: s.category(1, name="_background_"),
    ),
    "category-unused": (lambda s: s.add("categories", {"id": 3, "name": "cone"}), lambda s: s),
    "category-off-by-one": (lambda s: coco_names(s, 2, 4, 18), lambda s: coco_names(s, 1, 3, 17)),
    "category-coco80-ids": (lambda s: coco_names(s, 1, 3, 16), lambda s: coco_names(s, 1, 3, 17)),
    "category-id-zero": (lambda s: s.category(0, id=0), lambda s: s.category(0, id=9)),
    "category-ids-differ": (
        lambda s: s.other().category(0, "val", id=5).every("val", category_id=5),
        lambda s: s.other(),
    ),
    "category-sets-differ": (
        lambda s: s.other().category(1, "val", name="cone"),
        lambda s: s.other(),
    ),
    "category-missing-from-split": (
        lambda s: s.other().every("val", category_id=1),
        lambda s: s.other().annotation(0, "val", category_id=2),
    ),
    "category-rare": (lambda s: rare(s, 9), lambda s: rare(s, 10)),
    "category-imbalance": (lambda s: imbalanced(s, 1001), lambda s: imbalanced(s, 1000)),
    "category-alias-unknown": (
        lambda s: s.option(aliases={"helm": "hat"}),
        lambda s: s.option(aliases={"helmet": "hat"}),
    ),
    "split-empty": (
        lambda s: s.option(split={"val": 0.001, "test": 0.0}),
        lambda s: s.option(split={"val": 0.5, "test": 0.0}),
    ),
    "split-group-leak": (lambda s: leaking(s, "north"), lambda s: leaking(s, "south")),
    "split-ungrouped": (
        lambda s: group_field(s, "a", "b", "c", None),
        lambda s: group_field(s, "a", "b", "c", "d"),
    ),
    "drop-unknown": (lambda s: s.option(drop=[5]), lambda s: s.option(drop=[10])),
}
