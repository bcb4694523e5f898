"""The drawn worlds: the same seed gives the same bytes, the annotations are strict COCO and tight,
splits share nothing.
"""

import io
import json
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from topwork.demo.canvas import SUPERSAMPLING, Brush, Canvas
from topwork.demo.scene import MIN_SIDE, Camera, Light, Scene
from topwork.demo.worlds import (
    SPLITS,
    STREET,
    YARD,
    World,
    draw_split,
    image_id,
    write_demo,
)
from topwork.errors import DataError
from topwork.files import sha256_path

WORLDS = pytest.mark.parametrize("world", [STREET, YARD], ids=lambda world: world.name)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_demo(
        folder,
        5,
        street_test=12,
        yard_train=16,
        yard_val=4,
        yard_test=4,
        street_replay=4,
        processes=2,
    )
    return folder


TABLES = ("yard/train", "yard/val", "yard/test", "street/test", "street/replay")


def picture(demo: Path, table: str, name: str) -> bytes:
    """An image's bytes, out of its folder or its archive."""
    if table.startswith("yard"):
        return (demo / table / "images" / name).read_bytes()
    with zipfile.ZipFile(demo / f"{table}.zip") as archive:
        return archive.read(name)


def test_an_archive_repeats_to_the_byte(demo: Path, tmp_path: Path) -> None:
    write_demo(
        tmp_path,
        5,
        street_test=12,
        yard_train=1,
        yard_val=1,
        yard_test=1,
        street_replay=1,
        processes=1,
    )
    assert (tmp_path / "street/test.zip").read_bytes() == (demo / "street/test.zip").read_bytes()
    assert not (tmp_path / "street/test").exists()


def test_same_seed_gives_the_same_bytes_in_any_number_of_processes(
    demo: Path, tmp_path: Path
) -> None:
    draw_split(YARD, tmp_path / "yard", "train", 16, 5, processes=1)
    assert sha256_path(tmp_path / "yard" / "train") == sha256_path(demo / "yard" / "train")
    assert (tmp_path / "yard" / "train.json").read_bytes() == (
        demo / "yard" / "train.json"
    ).read_bytes()


def test_fewer_images_are_a_prefix_of_more(demo: Path, tmp_path: Path) -> None:
    draw_split(STREET, tmp_path, "test", 3, 5, processes=1)
    for file in sorted((tmp_path / "test" / "images").iterdir()):
        assert file.read_bytes() == picture(demo, "street/test", file.name)


def test_another_seed_or_split_gives_other_pictures(demo: Path, tmp_path: Path) -> None:
    draw_split(YARD, tmp_path / "a", "train", 1, 6, processes=1)
    draw_split(YARD, tmp_path / "b", "val", 1, 5, processes=1)
    first = (demo / "yard" / "train" / "images" / "yard_train_00000.jpg").read_bytes()
    assert (tmp_path / "a" / "train" / "images" / "yard_train_00000.jpg").read_bytes() != first
    assert (tmp_path / "b" / "val" / "images" / "yard_val_00000.jpg").read_bytes() != first


@pytest.mark.parametrize("table", TABLES)
def test_annotations_are_strict_coco(demo: Path, table: str) -> None:
    data = read(demo / f"{table}.json")
    sizes = {record["id"]: (record["width"], record["height"]) for record in data["images"]}
    assert len(sizes) == len(data["images"])
    assert [annotation["id"] for annotation in data["annotations"]] == list(
        range(1, len(data["annotations"]) + 1)
    )
    assert [category["id"] for category in data["categories"]] == list(
        range(1, len(data["categories"]) + 1)
    )
    assert {a["category_id"] for a in data["annotations"]} <= {
        category["id"] for category in data["categories"]
    }
    for record in data["images"]:
        with Image.open(io.BytesIO(picture(demo, table, record["file_name"]))) as found:
            assert (found.mode, found.size) == ("RGB", (record["width"], record["height"]))
    for annotation in data["annotations"]:
        (x, y, width, height), (full_width, full_height) = (
            annotation["bbox"],
            sizes[annotation["image_id"]],
        )
        assert min(x, y) >= 0
        assert x + width <= full_width
        assert y + height <= full_height
        assert min(width, height) >= MIN_SIDE
        assert 0 < annotation["area"] <= width * height
        assert annotation["iscrowd"] == 0


def test_splits_share_neither_ids_nor_names_nor_pictures(demo: Path) -> None:
    for world in ("yard", "street"):
        tables = [read(demo / f"{table}.json") for table in TABLES if table.startswith(world)]
        ids = [record["id"] for table in tables for record in table["images"]]
        names = [record["file_name"] for table in tables for record in table["images"]]
        assert len(set(ids)) == len(ids)
        assert len(set(names)) == len(names)
    pictures = [
        picture(demo, table, record["file_name"])
        for table in TABLES
        for record in read(demo / f"{table}.json")["images"]
    ]
    assert len(set(pictures)) == len(pictures) == 40


def test_no_split_number_is_used_twice() -> None:
    assert len(set(SPLITS.values())) == len(SPLITS)
    assert image_id("train", 99_999) < image_id("val", 0)


def test_an_unknown_split_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split 'holdout' is unknown, must be one of train, val"):
        draw_split(STREET, tmp_path, "holdout", 1, 1)


def test_the_yard_has_every_class_and_more_helmets_on_heads_than_bare_heads(demo: Path) -> None:
    counts = dict.fromkeys((1, 2, 3), 0)
    for annotation in read(demo / "yard" / "train.json")["annotations"]:
        counts[annotation["category_id"]] += 1
    assert counts[1] > counts[3] > 0
    assert counts[2] > counts[1] / 2


@WORLDS
def test_boxes_hug_what_the_mask_shows(world: World) -> None:
    for index in range(4):
        scene = world.draw(Random(f"hug/{index}"))
        mask = np.asarray(scene.canvas.identity)
        annotations = scene.annotations(1, 1)
        assert annotations
        seen = {item.category_id: [] for item in scene.objects}
        for item in scene.objects:
            rows, columns = np.nonzero(np.isin(mask, (item.identity, *item.worn)))
            if len(rows):
                edges = (
                    columns.min(),
                    rows.min(),
                    columns.max() + 1 - columns.min(),
                    rows.max() + 1 - rows.min(),
                )
                seen[item.category_id].append([float(edge) / SUPERSAMPLING for edge in edges])
        for annotation in annotations:
            assert annotation["bbox"] in seen[annotation["category_id"]]


def scene_of_one(cover: float) -> Scene:
    """A 20 x 20 pixel square, its left share `cover` hidden by something without a label."""
    scene = Scene(Canvas(100, 100), Camera(0.0, 1.0), Light())
    Brush(scene.canvas, 60, 120, 1.0, 1).rect(0, 0, 39, 39, (200, 0, 0))
    scene.add(1, 7)
    if cover:
        Brush(scene.canvas, 60, 120, 1.0).rect(0, 0, 40 * cover - 1, 39, (0, 0, 0))
    return scene


def test_a_box_ends_where_an_occluder_begins() -> None:
    (whole,) = scene_of_one(0.0).annotations(3, 9)
    assert (whole["bbox"], whole["area"], whole["id"], whole["image_id"]) == (
        [30.0, 40.5, 20.0, 20.0],
        400.0,
        9,
        3,
    )
    (half,) = scene_of_one(0.5).annotations(3, 9)
    assert (half["bbox"], half["area"]) == ([40.0, 40.5, 10.0, 20.0], 200.0)


def test_what_is_mostly_hidden_or_tiny_is_not_annotated() -> None:
    assert scene_of_one(0.8).annotations(1, 1) == []
    scene = Scene(Canvas(100, 100), Camera(0.0, 1.0), Light())
    Brush(scene.canvas, 60, 120, 1.0, 1).rect(0, 0, 39, 13, (200, 0, 0))  # 7 pixels high
    scene.add(1, 1)
    assert scene.annotations(1, 1) == []


def test_a_worn_helmet_lies_inside_its_wearers_box() -> None:
    scene = YARD.draw(Random("helmets/1"))
    wearers = [item for item in scene.objects if item.worn]
    assert wearers
    boxes = {tuple(annotation["bbox"]) for annotation in scene.annotations(1, 1)}
    assert boxes
    mask = np.asarray(scene.canvas.identity)
    for wearer in wearers:
        own, helmet = (
            np.nonzero(np.isin(mask, (wearer.identity, *wearer.worn))),
            np.nonzero(mask == wearer.worn[0]),
        )
        if len(helmet[0]):
            assert own[0].min() <= helmet[0].min()
            assert own[1].max() >= helmet[1].max()
