"""The readers' values: boxes worked out by hand, ids, classes, lists."""

import math
from pathlib import Path

import pytest

from validation.cases_formats import DATA_YAML, voc, voc_file, voc_object, yolo
from validation.scene import ABSENT, Scene, encoded, first, picture, rules


def boxes(found: object) -> list[tuple[float, ...]]:
    rows = found.tables.annotations  # type: ignore[attr-defined]
    return [
        tuple(round(v, 6) for v in row)
        for row in rows[["x", "y", "width", "height"]].to_numpy().tolist()
    ]


def test_coco_keeps_ids_and_order(tmp_path: Path) -> None:
    scene = Scene(tmp_path).image(0, id=4_000_000_000_000).every(score=0.5)
    for index in range(6):
        scene.annotation(index, image_id=4_000_000_000_000)
    tables = scene.run().tables
    assert tables.images["image_id"].tolist() == [4_000_000_000_000, 2, 3, 4]
    assert tables.annotations["annotation_id"].tolist() == [
        10 * i + j for i in range(1, 5) for j in range(6)
    ]
    assert tables.annotations.iloc[7][["x", "y", "width", "height", "area"]].tolist() == [
        17,
        14,
        13,
        15,
        195,
    ]
    assert tables.names("train") == {1: "helmet", 2: "forklift"}
    assert not tables.annotations["iscrowd"].any()


def test_whatever_the_order_of_keys_and_spaces(tmp_path: Path) -> None:
    compact = Scene(tmp_path).run().tables.annotations
    spread = Scene(tmp_path).edit(": ", " :\n ", 10_000).run().tables.annotations
    assert compact.equals(spread)


def test_a_missing_annotation_id_is_the_next_free_one(tmp_path: Path) -> None:
    found = Scene(tmp_path).annotation(3, id=ABSENT).annotation(5, id=ABSENT).run()
    assert found.tables.annotations["annotation_id"].tolist()[3:6:2] == [46, 47]
    assert [row.annotation_id for row in found.findings if row.rule == "annotation-id-missing"] == [
        46,
        47,
    ]


def test_a_malformed_record_costs_itself_alone(tmp_path: Path) -> None:
    found = Scene(tmp_path).annotation(2, category_id="cone").add("annotations", "nonsense").run()
    assert len(found.tables.annotations) == 23
    malformed = [row for row in found.findings if row.rule == "record-malformed"]
    assert [row.message for row in malformed] == [
        (
            "annotations[24]: found 'nonsense', expected an object with id, image_id, category_id"
            " and bbox"
        ),
        "annotations[2]: category_id is 'cone', expected a whole number below 2^63",
    ]
    assert malformed[1].annotation_id == 12
    assert malformed[1].box == (31.0, 23.0, 12.0, 16.0)


def test_missing_sizes_come_from_the_image(tmp_path: Path) -> None:
    found = Scene(tmp_path).image(0, width=ABSENT, height=None).run()
    assert rules(found) == {"image-size-missing"}
    assert found.tables.images.iloc[0][["width", "height"]].tolist() == [100, 80]


def test_voc_counts_pixels_from_one_and_includes_the_last(tmp_path: Path) -> None:
    found = voc(Scene(tmp_path)).run()
    assert boxes(found) == [(10, 20, 20, 30), (10, 20, 20, 30)]
    assert found.tables.annotations["annotation_id"].tolist() == [10_001, 20_001]
    assert found.tables.images[
        ["image_id", "file_name", "width", "height"]
    ].to_numpy().tolist() == [
        [1, "a.jpg", 100, 80],
        [2, "b.jpg", 100, 80],
    ]
    assert found.tables.names("train") == {1: "forklift", 2: "helmet"}
    assert rules(found) == {"category-rare", "voc-corners"}


def test_voc_written_from_zero_is_read_from_zero(tmp_path: Path) -> None:
    found = voc(
        Scene(tmp_path),
        a=voc_file("a.jpg", voc_object(box=(0, 0, 29, 49)), voc_object(box=(11, 21, 30, 50))),
    ).run()
    assert boxes(found)[:2] == [(0, 0, 30, 50), (11, 21, 20, 30)]


def test_voc_difficult_objects_are_crowds_and_names_are_vocs(tmp_path: Path) -> None:
    hard = voc_object("person").replace("</object>", "<difficult>1</difficult></object>")
    found = voc(
        Scene(tmp_path), a=voc_file("a.jpg", hard), b=voc_file("b.jpg", voc_object("dog"))
    ).run()
    assert found.tables.annotations["iscrowd"].tolist() == [True, False]
    assert found.tables.annotations["category_id"].tolist() == [15, 12]


def test_voc_takes_the_list_of_the_split(tmp_path: Path) -> None:
    scene = voc(Scene(tmp_path)).file("voc/ImageSets/Main/train.txt", b"b 1\n")
    assert scene.run().tables.images["file_name"].tolist() == ["b.jpg"]


def test_voc_finds_the_image_by_the_files_own_name(tmp_path: Path) -> None:
    found = voc(Scene(tmp_path), a=voc_file("C:/elsewhere/img 7.png", voc_object())).run()
    assert found.tables.images["file_name"].tolist() == ["a.jpg", "b.jpg"]


def test_voc_box_that_is_no_number_stays_in_the_table(tmp_path: Path) -> None:
    found = voc(Scene(tmp_path), a=voc_file("a.jpg", voc_object(box=(11, "x", 30, 50)))).run()
    assert first(found, "box-nan").annotation_id == 10_001
    assert math.isnan(found.tables.annotations["y"].iloc[0])


def test_yolo_boxes_are_shares_of_the_image(tmp_path: Path) -> None:
    found = yolo(Scene(tmp_path)).run()
    assert boxes(found) == [(40, 30, 20, 20), (20, 20, 10, 40)]
    assert found.tables.annotations["category_id"].tolist() == [0, 1]
    assert found.tables.images["file_name"].tolist() == ["images/train/a.jpg", "images/train/b.jpg"]
    assert found.tables.images["image_root"].tolist() == ["yolo", "yolo"]
    assert rules(found) == {"category-rare", "category-id-zero"}


def test_yolo_polygons_give_boxes_and_segmentations(tmp_path: Path) -> None:
    found = yolo(Scene(tmp_path), a="0 0.1 0.25 0.5 0.25 0.5 0.75 0.1 0.75\n").run()
    assert boxes(found)[0] == (10, 20, 40, 40)
    assert (
        found.tables.annotations["segmentation"].iloc[0]
        == "[[10.0,20.0,50.0,20.0,50.0,60.0,10.0,60.0]]"
    )


@pytest.mark.parametrize(
    "line",
    [
        "0 0.5 0.5 0.2",
        "0.5 0.5 0.5 0.2 0.2",
        "-1 0.5 0.5 0.2 0.2",
        "0 0.5 0.5 0.2 0.2 0.9",
        "helmet 0.5 0.5 0.2 0.2",
        "1e400 0.5 0.5 0.2 0.2",
    ],
    ids=[
        "four-numbers",
        "half-a-class",
        "negative-class",
        "six-numbers",
        "a-name",
        "infinite-class",
    ],
)
def test_yolo_lines_that_cannot_be_read_are_found(line: str, tmp_path: Path) -> None:
    found = yolo(Scene(tmp_path), a=f"0 0.5 0.5 0.2 0.2\n\n{line}\n").run()
    row = first(found, "record-malformed")
    assert row.message.startswith("a.txt: line 3: found")
    assert (row.image_id, row.annotation_id) == (1, 10_003)
    assert len(found.tables.annotations) == 2


def test_yolo_boxes_of_an_unreadable_image_are_not_lost(tmp_path: Path) -> None:
    found = yolo(Scene(tmp_path)).file("yolo/images/train/a.jpg", b"no image").run()
    assert {"image-unreadable", "box-nan"} <= rules(found)
    assert len(found.tables.annotations) == 2


@pytest.mark.parametrize(
    "train", ["../images/train", "./images/train", "[images/train]", "images/train"]
)
def test_yolo_ways_to_say_the_folder(train: str, tmp_path: Path) -> None:
    data = DATA_YAML.replace("train: images/train", f"train: {train}")
    assert len(yolo(Scene(tmp_path), data).run().tables.images) == 2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("names: [a]\ntrain: /etc\n", "is no folder or text file below"),
        ("names: [a]\nval: images/train\n", "has no `train:`"),
        ("train: images/train\nnames: 3\n", "`names` is neither"),
        ("{{{", "not readable as YAML"),
        ("- a\n", "found list, expected `names:`"),
    ],
    ids=["outside", "no-list", "names", "not-yaml", "a-list"],
)
def test_yolo_data_files_at_fault(data: str, words: str, tmp_path: Path) -> None:
    assert words in first(yolo(Scene(tmp_path), data).run(), "file-not-yolo").message


def test_the_three_formats_give_the_same_boxes(tmp_path: Path) -> None:
    """One box, [10, 20, 20, 30] in a 100 x 80 image, in each format."""
    coco = Scene(tmp_path / "coco").box(0, 10, 20, 20, 30).run()
    as_yolo = yolo(Scene(tmp_path / "yolo"), a="0 0.2 0.4375 0.2 0.375\n").run()
    as_voc = voc(Scene(tmp_path / "voc")).run()
    assert boxes(coco)[0] == boxes(as_yolo)[0] == boxes(as_voc)[0] == (10, 20, 20, 30)


def test_images_straight_from_a_zip(tmp_path: Path) -> None:
    found = Scene(tmp_path).zip({"extra.jpg": encoded(picture(9))}).run()
    assert rules(found) == {"image-unlisted"}
    assert found.tables.images["image_root"].unique().tolist() == ["train.zip"]
