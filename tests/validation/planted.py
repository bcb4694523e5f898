"""Demo sets with a fault of every rule planted together, each in an image or annotation of its
own, and the list of what was planted.

One set can have only one fault of a whole file, so the few that leave nothing else to check have
two further sets of their own.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from validation.cases_boxes import RECTANGLE, RUNS, rle
from validation.cases_formats import POSE, voc_file, voc_object
from validation.cases_images import ROTATED, brighter, flat
from validation.scene import ABSENT, HEIGHT, WIDTH, Scene, encoded, picture, small_set

Fault = tuple[str, str, int | None, int | None]  # rule, split, image_id, annotation_id
SURGERY = "surgery:\n  classes: {helmet: keep}\n"


class Planted:
    """A project being spoiled: `expected` is what the gate must find, no more and no less."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scene = Scene(folder)
        self.expected: Counter[Fault] = Counter()

    def expect(
        self,
        rule: str,
        split: str = "train",
        image: int | None = None,
        annotation: int | None = None,
        times: int = 1,
    ) -> None:
        self.expected[rule, split, image, annotation] += times

    def params(self, dataset: dict[str, Any]) -> None:
        (self.folder / "params.yaml").write_text(
            f"dataset: {json.dumps({'root': '.', **dataset})}\n{SURGERY}"
        )


def bulk(scene: Scene, split: str, site: str, count: int, seed: int, image_id: int = 1) -> None:
    """A sound set of many images: `SITE-NN.jpg` with the ids from `image_id` on, annotations from
    ten times that.
    """
    whole = small_set(first_id=image_id, count=count)
    for place, record in enumerate(whole["images"]):
        record["file_name"] = f"{site}-{place:02}.jpg"
        scene.files[f"{split}/{site}-{place:02}.jpg"] = encoded(picture(seed + place))
    scene.sets[split] = whole


BOXES: dict[
    str, dict[str, Any]
] = {  # what becomes of the first annotation of an image, [3, 5, 12, 14] without more
    "box-missing": {"bbox": ABSENT},
    "box-nan": {"bbox": [3, float("nan"), 12, 14]},
    "box-zero": {"bbox": [3, 5, 12, 0]},
    "box-negative": {"bbox": [15, 19, -12, -14]},
    "box-outside": {"bbox": [100, 5, 12, 14]},
    "box-beyond": {"bbox": [90, 5, 12, 14]},
    "box-rounding": {"bbox": [88.5, 5, 12, 14]},
    "box-tiny": {"bbox": [3, 5, 12, 1.5], "area": 18},
    "box-whole-image": {"bbox": [0, 0, 100, 80]},
    "area-bad": {"area": 0},
    "area-beyond-box": {"area": 190},
    "crowd-flag": {"iscrowd": 2},
    "crowd-polygon": {"iscrowd": 1, "segmentation": [RECTANGLE]},
    "segmentation-malformed": {"segmentation": "polygon"},
    "segmentation-nan": {"segmentation": [[3, 5, None, 5, 15, 19]]},
    "polygon-odd": {"segmentation": [RECTANGLE[:7]]},
    "polygon-short": {"segmentation": [[3, 5, 15, 19]]},
    "polygon-flat": {"segmentation": [[3, 5, 9, 12, 15, 19]]},
    "segmentation-box-differs": {"segmentation": [[3, 5, 18, 5, 18, 19, 3, 19]]},
    "segmentation-area-differs": {"segmentation": [RECTANGLE], "area": 100},
    "rle-size-differs": {"segmentation": rle((WIDTH, HEIGHT))},
    "rle-counts": {"segmentation": rle(counts=RUNS[:-1])},
    "image-id-dangling": {"image_id": 777},
    "category-id-dangling": {"category_id": 77},
}
PICTURES: dict[str, bytes | None] = {  # what becomes of an image's file
    "image-missing": None,
    "image-unreadable": b"<html>not found</html>",
    "image-truncated": encoded(picture(900))[:-200],
    "image-bomb": encoded(Image.new("1", (20_000, 20_000)), "PNG"),
    "image-exif-rotated": encoded(picture(901), exif=ROTATED),
    "image-grey": encoded(picture(902, mode="L")),
    "image-cmyk": encoded(picture(903, mode="CMYK")),
    "image-deep": encoded(picture(904, mode="I;16"), "PNG"),
    "image-alpha": encoded(picture(905, mode="RGBA"), "PNG"),
    "image-flat": flat(90, 90),
}


def side_by_side(folder: Path) -> Planted:
    """A project of five sets in three formats with the faults of all rules that leave something
    else to look at.
    """
    planted = Planted(folder)
    scene = planted.scene
    bulk(scene, "train", "north", 64, 0)
    bulk(scene, "val", "south", 12, 500)
    after = iter(range(64))
    for rule, values in BOXES.items():
        place = next(after)
        image, key = place + 1, 10 * (place + 1)
        scene.box(6 * place, 3, 5, 12, 14).annotation(6 * place, **values)
        planted.expect(rule, "train", values.get("image_id", image), key)
    planted.expect("file-nan-token")
    for rule, data in PICTURES.items():
        place = next(after)
        scene.file(f"train/north-{place:02}.jpg", data)
        planted.expect(rule, "train", place + 1)
    _more_boxes(planted, after)
    _more_pictures(planted, after)
    _names(planted, after)
    _categories(planted)
    _records(planted, after)
    _other_sets(planted)
    text = json.dumps(scene.sets["train"])
    assert text.count('"twice": 0') == 1
    scene.raw_bytes["train"] = text.replace('"twice": 0', '"iscrowd": 0').encode("utf-8-sig")
    planted.expect("file-encoding")
    planted.expect("file-key-twice")
    scene.write()
    planted.params(
        {
            "train": {"annotations": "train.json", "images": "train"},
            "val": {"annotations": "val.json", "images": "val.zip"},
            "test": {"annotations": "voc"},
            "source": {"annotations": "source.json", "images": "broken.zip"},
            "replay": {"annotations": "yolo/data.yaml", "subset": "train"},
            "split": {"group_by": r"(north|south|east)-\d"},
            "aliases": {"helm": "hat"},
            "drop": [999_999],
        }
    )
    planted.expect("category-alias-unknown")
    planted.expect("drop-unknown", "")
    return planted


def _more_boxes(planted: Planted, after: Any) -> None:
    """Pairs of boxes, an image of another shape, a polygon that leaves its image with its box."""
    scene = planted.scene
    for rule, box, other, category in (
        ("box-twin", [10, 10, 30, 30], [10.4, 10, 30, 30], 1),
        ("box-near-twin", [10, 10, 60, 60], [11, 10, 60, 60], 1),
        ("box-two-classes", [10, 10, 30, 30], [10, 10, 30, 30], 2),
    ):
        place = next(after)
        scene.box(6 * place, *box).box(6 * place + 1, *other).annotation(
            6 * place + 1, category_id=category
        )
        planted.expect(rule, "train", place + 1, 10 * (place + 1) + 1)
    place = next(after)
    scene.image(place, width=200).file(
        f"train/north-{place:02}.jpg", encoded(picture(906, (200, HEIGHT)))
    )
    scene.box(6 * place, 0, 5, 105, 2)
    planted.expect("box-slim", "train", place + 1, 10 * (place + 1))
    place = next(after)
    scene.box(6 * place, -2, 5, 12, 14).mask(6 * place, [[-2, 5, 10, 5, 10, 19, -2, 19]])
    for rule in ("segmentation-outside", "box-beyond"):
        planted.expect(rule, "train", place + 1, 10 * (place + 1))
    scene.annotation(6 * next(after), area=ABSENT)
    planted.expect("area-missing")


def _more_pictures(planted: Planted, after: Any) -> None:
    """Sizes, frames, copies; an image nobody lists."""
    scene = planted.scene
    place = next(after)
    scene.image(place, width=WIDTH + 1)
    planted.expect("image-size-differs", "train", place + 1)
    place = next(after)
    scene.file(
        f"train/north-{place:02}.jpg",
        encoded(picture(907), "GIF", save_all=True, append_images=[picture(908)]),
    )
    for rule in ("image-animated", "image-alpha"):  # a GIF has a palette
        planted.expect(rule, "train", place + 1)
    place = next(after)
    scene.image(place, width=31, height=40).file(
        f"train/north-{place:02}.jpg", encoded(picture(909, (31, 40)))
    )
    for index in range(6):
        scene.box(6 * place + index, 2 * index, 3 * index, 10, 9)
    planted.expect("image-tiny", "train", place + 1)
    scene.file("train/extra.png", encoded(picture(910), "PNG"))
    planted.expect("image-unlisted")  # and the one whose name differs in case
    first, second, third, alike = (next(after) for _ in range(4))
    for copy in (second, third):
        scene.file(f"train/north-{copy:02}.jpg", scene.files[f"train/north-{first:02}.jpg"])
        planted.expect("duplicate-image", "train", copy + 1)
    records = scene.sets["train"]["annotations"]
    for index in range(6):
        for copy in (second, third):
            same = {key: records[6 * first + index][key] for key in ("bbox", "area", "category_id")}
            scene.annotation(6 * copy + index, **same)
    scene.box(6 * third, 1, 40, 9, 30)
    planted.expect("duplicate-labels-differ", "train", third + 1)
    scene.file(f"train/north-{alike:02}.jpg", brighter(first, 9))
    planted.expect("near-duplicate", "train", alike + 1)


def _names(planted: Planted, after: Any) -> None:
    """File names; files that are links."""
    scene = planted.scene
    for rule, name in (
        ("path-outside", "../north-00.jpg"),
        ("path-absolute", f"{planted.folder}/north-00.jpg"),
    ):
        place = next(after)
        scene.image(place, file_name=name)
        del scene.files[f"train/north-{place:02}.jpg"]
        planted.expect(rule, "train", place + 1)
    place = next(after)
    scene.image(place, file_name=f"a\\north-{place}.jpg").files[f"train/a\\north-{place}.jpg"] = (
        scene.files.pop(f"train/north-{place:02}.jpg")
    )
    planted.expect("path-backslash", "train", place + 1)
    place = next(after)
    scene.files["elsewhere.jpg"] = scene.files[f"train/north-{place:02}.jpg"]
    scene.link(f"train/north-{place:02}.jpg", "../elsewhere.jpg")
    planted.expect("path-symlink-out", "train", place + 1)
    for name in ("north-1a.jpg", "north-1A.jpg"):
        place = next(after)
        scene.image(place, file_name=name).files[f"train/{name}"] = scene.files.pop(
            f"train/north-{place:02}.jpg"
        )
    planted.expect("path-case-twins")
    place = next(after)
    scene.image(place, file_name=f"north-{place:02}.JPG")
    for rule in ("path-case-differs", "image-missing"):
        planted.expect(rule, "train", place + 1)


def _records(planted: Planted, after: Any) -> None:
    """Records and ids."""
    scene, place = planted.scene, next(after)
    image, row = place + 1, 6 * place
    scene.annotation(row, image_id=None)
    planted.expect("record-malformed", "train", None, 10 * image)
    scene.annotation(row + 1, id=10 * image + 2)
    planted.expect("annotation-id-twice", "train", image, 10 * image + 2, times=2)
    scene.annotation(row + 3, id=ABSENT)
    scene.annotation(row + 4, id=str(10 * image + 4))
    planted.expect("id-text")
    scene.annotation(row + 5, id=-7)
    planted.expect("id-negative", "train", image, -7)
    place = next(after)
    scene.image(place, width=ABSENT).annotation(6 * place, iscrowd=ABSENT, twice=0).annotation(
        6 * place, **{"iscrowd": 0}
    )
    planted.expect("image-size-missing", "train", place + 1)
    for key, name in (
        (800, "north-80.jpg"),
        (800, "north-81.jpg"),
        (810, "north-82.jpg"),
        (811, "north-82.jpg"),
        (820, "north-83.jpg"),
    ):
        scene.add("images", {"id": key, "file_name": name, "width": WIDTH, "height": HEIGHT})
        scene.files[f"train/{name}"] = encoded(picture(800 + int(name[6:8])))
    planted.expect("image-id-twice", "train", 800, times=2)
    for key in (810, 811):
        planted.expect("image-listed-twice", "train", key)
    for key in (800, 810, 811):  # 820 has none
        scene.add(
            "annotations",
            {
                "id": 10 * key,
                "image_id": key,
                "category_id": 1,
                "bbox": [3, 5, 12, 14],
                "area": 168,
                "iscrowd": 0,
            },
        )
    planted.expect("image-empty")
    following = max(int(record.get("id", 0)) for record in scene.sets["train"]["annotations"]) + 1
    planted.expect("annotation-id-missing", "train", image, following)


def _categories(planted: Planted) -> None:
    """Categories of train that have no fault but in their names and numbers."""
    scene = planted.scene
    for key, name in (
        (3, "cone"),
        (4, "ladder"),
        (5, "van"),
        (7, "bollard"),
        (7, "post"),
        (8, "sign"),
        (9, "sign"),
        (10, "road works"),
        (11, "Road_Works"),
        (12, " "),
        (13, "__background__"),
        (0, "kerb"),
    ):
        scene.add("categories", {"id": key, "name": name})
        if key not in (3, 4, 5):
            planted.expect("category-unused")
    planted.expect("category-id-twice", times=2)
    for rule in (
        "category-name-twice",
        "category-name-case",
        "category-name-blank",
        "category-name-reserved",
        "category-id-zero",
    ):
        planted.expect(rule)
    for key, image, category, crowd in (
        (900, 61, 4, 0),
        (905, 63, 5, 1),
        (906, 64, 5, 0),
        *((901 + number, 62 + number % 2, 3, 1) for number in range(4)),
    ):
        box = [60 - 12 * (key % 4), 58, 8, 8]
        scene.add(
            "annotations",
            {
                "id": 10_000 + key,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": 64,
                "iscrowd": crowd,
            },
        )
    planted.expect("crowd-all")  # all cones
    planted.expect("crowd-many")  # half of the vans
    planted.expect("category-rare", times=3)
    planted.expect("category-imbalance")  # ladder against helmet


def _other_sets(planted: Planted) -> None:
    """val in a zip, test as VOC, source in shares of COCO's classes, replay as YOLO without a
    box.
    """
    scene = planted.scene
    copied = scene.files["train/north-00.jpg"]
    scene.file("val/south-00.jpg", copied).file("val/south-01.jpg", brighter(1, 9))
    planted.expect("duplicate-image-across", "val", 1)
    planted.expect("duplicate-labels-differ", "val", 1)  # in train one of its boxes is missing
    planted.expect("near-duplicate-across", "val", 2)
    scene.image(2, "val", file_name="north-99.jpg").image(3, "val", file_name="nowhere.jpg").image(
        4, "val", file_name="bomb.jpg"
    )
    members = {
        f"south-{place:02}.jpg": scene.files.pop(f"val/south-{place:02}.jpg") for place in range(12)
    }
    members |= {
        "north-99.jpg": members.pop("south-02.jpg"),
        "nowhere.jpg": members.pop("south-03.jpg"),
        "../evil.jpg": b"x",
    }
    del members["south-04.jpg"]
    scene.archives["val.zip"] = {**members, "bomb.jpg": b"\0" * (300 << 20)}
    planted.expect("split-group-leak", "val")
    planted.expect("split-ungrouped", "val", 4)
    planted.expect("archive-bomb", "val", 5)
    planted.expect("split-ungrouped", "val", 5)
    planted.expect("archive-path-outside", "val")
    for index in range(30, 72):  # most boxes written as corners
        x, y = 55 + index % 6, 45 + index // 6
        scene.annotation(index, "val", bbox=[x, y, x + 20, y + 15], area=100)
        planted.expect("box-beyond", "val", index // 6 + 1, 10 * (index // 6 + 1) + index % 6)
    planted.expect("box-xyxy", "val")
    scene.category(1, "val", id=5)
    for record in scene.sets["val"]["annotations"]:
        record["category_id"] = {1: 1, 2: 5}[record["category_id"]]
    planted.expect("category-ids-differ", "val")
    for place, stem in enumerate(("east-1", "east-2")):
        objects = [
            voc_object(name, (left, 21, left + 20, 50))
            for name, left in (("helmet", 11), ("forklift", 51))[: 2 - place]
        ]
        scene.file(f"voc/Annotations/{stem}.xml", voc_file(f"{stem}.jpg", *objects))
        scene.file(f"voc/JPEGImages/{stem}.jpg", encoded(picture(600 + place)))
    scene.file("voc/Annotations/east-3.xml", b"<annotation><object>")
    scene.file("broken.zip", b"PK not a zip")
    names = [(2, "person"), (4, "car"), (19, "dog")]
    scene.sets["source"] = {
        "images": [{"id": 1, "file_name": "west-1.jpg", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": key, "name": name} for key, name in names],
        "annotations": [
            {
                "id": key,
                "image_id": 1,
                "category_id": key,
                "bbox": [0.1, 0.02 * key, 0.5, 0.4],
                "area": 0.2,
                "iscrowd": 0,
            }
            for key, _ in names
        ],
    }
    scene.file("yolo/data.yaml", b"train: images/train\nnames: {0: person, 2: car, 16: dog}\n")
    scene.file("yolo/images/train/a.jpg", encoded(picture(610))).file(
        "yolo/labels/train/a.txt", b""
    )
    scene.file("yolo/labels/train/b.txt", b"0 0.5 0.5 0.2 0.2\n")
    planted.expect("file-not-voc", "test", 3)
    planted.expect("voc-corners", "test")
    planted.expect("category-ids-differ", "test", times=2)
    for rule in ("archive-unreadable", "box-normalised", "category-off-by-one"):
        planted.expect(rule, "source")
    for rule in (
        "set-unannotated",
        "category-id-zero",
        "category-coco80-ids",
        "label-without-image",
    ):
        planted.expect(rule, "replay")
    for split in ("val", "test"):
        planted.expect("category-sets-differ", split)
        planted.expect("category-missing-from-split", split, times=3)  # cone, ladder, van


def whole_files(folder: Path) -> list[Planted]:
    """Two projects whose sets can't be read, or have nothing in them."""
    one, two = Planted(folder / "one"), Planted(folder / "two")
    one.scene.raw(json.dumps(small_set()).encode()[:-100]).files.clear()
    for split, data in (("val", b"[]"), ("test", b"")):
        (one.folder / f"{split}.json").write_bytes(data)
    none: dict[str, Any] = {"images": small_set()["images"], "annotations": [], "categories": []}
    one.scene.sets["replay"] = none
    one.scene.write()
    (one.folder / "data.yaml").write_text("train: images\n")
    sets = {split: {"annotations": f"{split}.json"} for split in ("train", "val", "test", "replay")}
    one.params({**sets, "source": {"annotations": "data.yaml", "subset": "train"}})
    for rule, split in (
        ("file-not-json", "train"),
        ("file-not-coco", "val"),
        ("file-empty", "test"),
        ("file-not-yolo", "source"),
        ("category-none", "replay"),
        ("set-unannotated", "replay"),
    ):
        one.expect(rule, split)
    for key in range(1, 5):
        one.expect("image-missing", "replay", key)
    two.scene.sets["source"] = {**small_set(), "images": [], "annotations": []}
    two.scene.write()
    two.params(
        {
            "train": {"annotations": "train.json", "images": "train"},
            "split": {"val": 0.001, "test": 0.0},
            "source": {"annotations": "source.json"},
            "replay": {"annotations": "nowhere.json"},
        }
    )
    two.expect("split-empty", "val")
    two.expect("category-missing-from-split", "val", times=2)
    two.expect("set-empty", "source")
    two.expect("image-unlisted", "source")  # its images' folder is the whole project's
    two.expect("file-unreadable", "replay")
    return [one, two, yolo_exports(folder / "three"), without_labels(folder / "four")]


def yolo_exports(folder: Path) -> Planted:
    """Exports as they come: YOLO sets whose files disagree, and a COCO set written on Windows."""
    planted = Planted(folder)
    scene = planted.scene
    names = "names: [helmet, forklift]"
    scene.file("a/data.yaml", f"nc: 3\n{names}\ntrain: train.txt\n".encode())
    scene.file("a/train.txt", b"/home/me/images/1.jpg\nimages/1.png\nimages/2.jpg\n")
    turned = Image.Exif()
    turned[0x0112] = 8
    scene.file("a/images/1.jpg", encoded(picture(700), exif=turned))
    scene.file("a/images/1.png", encoded(picture(701), "PNG"))
    scene.file("a/images/2.jpg", encoded(picture(702)))
    scene.file("a/labels/1.txt", b"0 0.2 0.3 0.2 0.25\n").file("a/labels/2.txt", POSE.encode())
    scene.file("b/data.yaml", b"names: [forklift, helmet]\nval: images\n")
    scene.file("b/images/3.jpg", encoded(picture(703)))
    scene.file("b/labels/3.txt", b"0 0.5 0.5 0.2 0.25\n1 0.2 0.3 0.2 0.25\n")
    whole = small_set(first_seed=710)
    scene.sets = {"source": whole}
    for seed in range(710, 714):
        scene.file(f"source/{seed}.jpg", encoded(picture(seed)))
    scene.image(0, "source", file_name="C:\\data\\710.jpg").image(2, "source", file_name="711.jpg")
    scene.files.pop("source/712.jpg")
    scene.annotation(0, "source", attributes={"rotation": -20})
    scene.add("categories", {"id": 0, "name": "_background_"}, "source")
    scene.write()
    planted.params(
        {
            "match": "nearest",
            "train": {"annotations": "a/data.yaml"},
            "val": {"annotations": "b/data.yaml"},
            "source": {"annotations": "source.json", "images": "source"},
        }
    )
    for rule, image in (
        ("yolo-class-count", None),
        ("list-path-matched", None),
        ("yolo-rows-mixed", None),
        ("yolo-pose-undeclared", None),
        ("label-shared", 2),
        ("exif-undecided", None),
        ("image-exif-rotated", 1),
        ("category-id-zero", None),
    ):
        planted.expect(rule, "train", image)
    planted.expect("category-rare", times=2)
    for rule, times in (("yolo-names-differ", 1), ("category-ids-differ", 2)):
        planted.expect(rule, "val", times=times)
    planted.expect("category-id-zero", "val")
    planted.expect("box-rotated", "source", 1, 10)
    for key in (2, 3):
        planted.expect("image-listed-twice", "source", key)
    for rule in ("image-boxes-differ", "duplicate-labels-differ"):
        planted.expect(rule, "source", 3)
    for line in (1, 2, 3):  # a YOLO set has no areas but its boxes'
        planted.expect("segmentation-area-differs", "train", 3, 30_000 + line)
    planted.expect("path-matched", "source")
    planted.expect("category-placeholder", "source")
    return planted


def without_labels(folder: Path) -> Planted:
    """A YOLO set whose labels folder is misnamed."""
    planted = Planted(folder)
    planted.scene.sets.clear()
    planted.scene.files.clear()
    planted.scene.file("data.yaml", b"names: [helmet]\ntrain: images\n")
    planted.scene.file("images/a.jpg", encoded(picture(720)))
    planted.scene.file("Labels/a.txt", b"0 0.5 0.5 0.2 0.25\n").write()
    planted.params({"train": {"annotations": "data.yaml"}})
    planted.expect("train-unannotated")
    planted.expect("category-id-zero")
    return planted
