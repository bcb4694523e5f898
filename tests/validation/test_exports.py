"""Where exports teach wrong boxes: each value worked out by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from topwork.params.dataset import DatasetParams, SetParams
from topwork.validation.gate import Validation, validate
from topwork.validation.turning import turned_box, turned_points
from validation.cases_formats import DATA_YAML, POSE, voc, voc_file, voc_object, yolo
from validation.layouts import coco, labels, pictures, write
from validation.scene import HEIGHT, WIDTH, Scene, encoded, first, picture, rules
from validation.test_readers import boxes

POSE_YAML = f"kpt_shape: [2, 3]\n{DATA_YAML}"
BOX = "0 0.5 0.5 0.2 0.25"


def errors(found: Validation) -> list[str]:
    return [row.rule for row in found.findings if row.severity == "error"]


# --- rows of YOLO sets


def test_pose_rows_are_boxes_with_keypoints(tmp_path: Path) -> None:
    row = f"{BOX} 0.1 0.1 2 0.9 0.9 1\n"
    found = yolo(Scene(tmp_path), POSE_YAML, a=row).run()
    assert boxes(found)[0] == (40, 30, 20, 20)
    assert found.tables.annotations["segmentation"].isna().all()
    assert errors(found) == []


@pytest.mark.parametrize(
    ("data", "row", "words"),
    [
        (POSE_YAML, "0 0.1 0.1 0.2 0.1 0.2 0.2", "and 6 numbers of keypoints"),
        (f"task: detect\n{DATA_YAML}", "0 0.1 0.1 0.2 0.1 0.2 0.2", "`task: detect`"),
        (f"task: obb\n{DATA_YAML}", "0 0.1 0.1 0.2 0.1 0.2 0.2", "`task: obb`"),
        (DATA_YAML, f"{BOX} 0.1 0.1 2", "keypoints are read where data.yaml declares"),
    ],
    ids=["pose", "detect", "obb", "undeclared"],
)
def test_rows_of_another_length_are_named_by_line(
    data: str, row: str, words: str, tmp_path: Path
) -> None:
    found = yolo(Scene(tmp_path), data, a=f"{BOX}\n{row}\n").run()
    message = first(found, "record-malformed").message
    assert "a.txt: line 2: found" in message
    assert words in message


def test_oriented_boxes_become_their_hull(tmp_path: Path) -> None:
    found = yolo(
        Scene(tmp_path), f"task: obb\n{DATA_YAML}", a="0 0.5 0.2 0.6 0.4 0.4 0.6 0.3 0.4\n"
    )
    assert boxes(found.run())[0] == (30, 16, 30, 32)


def test_mixed_rows_are_named_by_line(tmp_path: Path) -> None:
    found = yolo(Scene(tmp_path), a=f"{BOX}\n0 0.1 0.25 0.5 0.25 0.5 0.75\n").run()
    assert first(found, "yolo-rows-mixed").message == (
        "1 rows are corners and 2 are a box: a.txt line 2"
    )


def test_undeclared_poses_name_the_line_to_write(tmp_path: Path) -> None:
    message = first(yolo(Scene(tmp_path), a=POSE).run(), "yolo-pose-undeclared").message
    assert "kpt_shape: [3, 2]" in message


def test_visibility_tells_a_single_undeclared_pose(tmp_path: Path) -> None:
    found = yolo(Scene(tmp_path), a=f"{BOX} 0.45 0.45 2 0.55 0.55 1\n").run()
    assert "kpt_shape: [2, 3]" in first(found, "yolo-pose-undeclared").message


def test_polygons_of_one_length_are_no_poses(tmp_path: Path) -> None:
    """Hexagons around (0.3, 0.4) and others: no first two corners read as a box around the rest."""
    rows = []
    for place in (0.3, 0.5, 0.7):
        corners = [
            (place + 0.1 * math.cos(k * math.pi / 3), 0.4 + 0.1 * math.sin(k * math.pi / 3))
            for k in range(6)
        ]
        rows.append(" ".join(["0", *(f"{v:.4f}" for corner in corners for v in corner)]))
    found = yolo(Scene(tmp_path), a="\n".join(rows), b="").run()
    assert "yolo-pose-undeclared" not in rules(found)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("names: {'0': helmet}\ntrain: images/train\n", "has the text '0' as a class number"),
        (f"task: pose\n{DATA_YAML}", "without `kpt_shape:`"),
        (f"kpt_shape: 17\n{DATA_YAML}", "`kpt_shape:` is 17, expected"),
        (f"task: classify\n{DATA_YAML}", "expected detect, segment, pose, obb"),
    ],
    ids=["text-keys", "pose", "shape", "task"],
)
def test_data_files_that_contradict_themselves(data: str, words: str, tmp_path: Path) -> None:
    assert words in first(yolo(Scene(tmp_path), data).run(), "file-not-yolo").message


@pytest.mark.parametrize(
    "entry", ["../valid/images", "../val/images", "val/images", "valid/images"]
)
def test_a_folder_called_valid_is_val_s(entry: str, tmp_path: Path) -> None:
    write(tmp_path, {"data.yaml": f"train: {entry}\nval: {entry}\nnames: [a, b]\n"})
    write(tmp_path, {**pictures("valid/images/"), **labels("valid/labels/")})
    sets = {split: SetParams(annotations=Path("data.yaml")) for split in ("train", "val")}
    found = validate(DatasetParams(root=Path(), **sets), tmp_path, workers=1)
    assert len(found.tables.split("val").images) == 2
    assert errors(found) == []


def test_upper_case_label_files_are_read(tmp_path: Path) -> None:
    scene = yolo(Scene(tmp_path))
    scene.files["yolo/labels/train/a.TXT"] = scene.files.pop("yolo/labels/train/a.txt")
    found = scene.run()
    assert len(boxes(found)) == 2
    assert "label-without-image" not in rules(found)


def test_images_of_every_kind_are_read_from_yolo_folders(tmp_path: Path) -> None:
    scene = yolo(Scene(tmp_path))
    for kind, suffix in (("AVIF", "avif"), ("WEBP", "webp"), ("JPEG", "jfif")):
        scene.file(f"yolo/images/train/{suffix}.{suffix}", encoded(picture(5), kind))
    names = scene.run().tables.images["file_name"].tolist()
    assert {f"images/train/{suffix}.{suffix}" for suffix in ("avif", "webp", "jfif")} <= set(names)


def test_a_label_file_of_two_images_is_named_with_both(tmp_path: Path) -> None:
    found = yolo(Scene(tmp_path)).file("yolo/images/train/a.png", encoded(picture(7), "PNG")).run()
    message = first(found, "label-shared").message
    assert "images/train/a.jpg and images/train/a.png" in message
    scene = yolo(Scene(tmp_path / "background")).file(
        "yolo/images/train/a.png", encoded(picture(7), "PNG")
    )
    assert "label-shared" not in rules(scene.file("yolo/labels/train/a.txt", None).run())


def test_a_voc_file_that_fits_two_images_is_named(tmp_path: Path) -> None:
    other = encoded(picture(7), "PNG")
    named = voc(Scene(tmp_path / "named")).file("voc/JPEGImages/a.png", other)
    assert "label-shared" not in rules(named.run())  # <filename> decides
    unnamed = voc(Scene(tmp_path / "unnamed"), a=voc_file("x", voc_object()))
    assert "label-shared" in rules(unnamed.file("voc/JPEGImages/a.png", other).run())


# --- boxes with an angle


@pytest.mark.parametrize("angle", [30.0, -30.0, 150.0, 210])
def test_the_hull_of_a_turned_box(angle: float, tmp_path: Path) -> None:
    scene = Scene(tmp_path).annotation(0, attributes={"rotation": angle})
    scene.box(0, 20, 30, 40, 20)
    assert errors(Scene(tmp_path / "x").run()) == []
    found = scene.option(rotated="hull").run()
    # corners of the turned box, by hand
    turned = math.radians(angle)
    corners = [
        (
            40 + x * math.cos(turned) - y * math.sin(turned),
            40 + x * math.sin(turned) + y * math.cos(turned),
        )
        for x in (-20, 20)
        for y in (-10, 10)
    ]
    xs, ys = zip(*corners, strict=True)
    assert boxes(found)[0] == pytest.approx(
        (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
    )
    assert "box-rotated" not in rules(found)


def test_turned_boxes_stop_until_a_choice_is_made(tmp_path: Path) -> None:
    scene = Scene(tmp_path).annotation(3, attributes={"rotation": 45}).annotation(4, rotation=90)
    found = scene.run()
    assert [row.annotation_id for row in found.findings if row.rule == "box-rotated"] == [13, 14]
    kept = scene.option(rotated="unturned").run()
    assert errors(kept) == []
    assert boxes(kept)[3] == (45, 32, 12, 17)
    assert errors(scene.option(rotated=None, drop=[13, 14]).run()) == []


def test_turned_boxes_of_a_file_that_is_mended_record_by_record(tmp_path: Path) -> None:
    scene = Scene(tmp_path).annotation(3, attributes={"rotation": 45}).annotation(0, id="10")
    assert first(scene.run(), "box-rotated").annotation_id == 13


def test_turned_boxes_of_voc(tmp_path: Path) -> None:
    more = (
        "<attributes><attribute><name>rotation</name><value>90.0</value></attribute></attributes>"
    )
    thing = voc_object().replace("</object>", f"{more}</object>")
    scene = voc(Scene(tmp_path), a=voc_file("a.jpg", thing))
    assert first(scene.run(), "box-rotated").annotation_id == 10_001
    assert boxes(scene.option(rotated="hull").run())[0] == (5, 25, 30, 20)


# --- Pascal VOC's first pixel


def two_folders(tmp_path: Path, zero: bool) -> DatasetParams:
    """train and val as folders of their own; only val has a corner of 0."""
    files: dict[str, Any] = {
        "train/a.xml": voc_file("a.jpg", voc_object(box=(11, 21, 30, 50))),
        "val/b.xml": voc_file("b.jpg", voc_object(box=(0 if zero else 1, 21, 30, 50))),
        "train/a.jpg": encoded(picture(0)),
        "val/b.jpg": encoded(picture(1)),
    }
    write(tmp_path, files)
    return DatasetParams(
        root=Path(),
        train=SetParams(annotations=Path("train")),
        val=SetParams(annotations=Path("val")),
    )


def test_the_first_pixel_is_decided_once_a_data_set(tmp_path: Path) -> None:
    found = validate(two_folders(tmp_path, zero=True), tmp_path, workers=1)
    assert boxes(found) == [(11, 21, 20, 30), (0, 21, 31, 30)]
    messages = [row.message for row in found.findings if row.rule == "voc-corners"]
    assert messages == ["pixels are counted from 0, for xmin 0 in b.xml"] * 2
    other = validate(two_folders(tmp_path, zero=False), tmp_path, workers=1)
    assert boxes(other) == [(10, 20, 20, 30), (0, 20, 30, 30)]


def test_a_list_doesn_t_change_the_first_pixel(tmp_path: Path) -> None:
    """The corner of 0 is in a file that the split's list leaves out."""
    scene = voc(Scene(tmp_path), b=voc_file("b.jpg", voc_object(box=(0, 0, 29, 49))))
    scene.file("voc/ImageSets/Main/train.txt", b"a\n")
    assert boxes(scene.run()) == [(11, 21, 20, 30)]


@pytest.mark.parametrize(("base", "box"), [(0, (11, 21, 20, 30)), (1, (10, 20, 20, 30))])
def test_the_first_pixel_by_choice(base: int, box: tuple[int, ...], tmp_path: Path) -> None:
    found = voc(Scene(tmp_path)).option(voc_base=base).run()
    assert boxes(found)[0] == box
    assert first(found, "voc-corners").message.endswith("by dataset.voc_base")


def test_corners_between_pixels_are_never_shifted(tmp_path: Path) -> None:
    one = voc(Scene(tmp_path / "one"), a=voc_file("a.jpg", voc_object(box=(10.5, 20, 30.25, 50))))
    assert boxes(one.run()) == [(10.5, 20, 19.75, 30), (10, 20, 20, 30)]
    most = [voc_object(box=(10.5 + 20 * k, 20, 25.25 + 20 * k, 50)) for k in range(3)]
    found = voc(Scene(tmp_path / "most"), a=voc_file("a.jpg", *most)).run()
    assert boxes(found)[3] == (11, 21, 19, 29)
    assert "places between pixels" in first(found, "voc-corners").message


# --- EXIF orientation


ORIENTATIONS = range(1, 9)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_points_follow_the_pixels(orientation: int) -> None:
    """A block of pixels is where its turned box says, in the picture that Pillow turns."""
    stored = np.zeros((HEIGHT, WIDTH), np.uint8)
    stored[20:50, 10:30] = 255
    image = Image.fromarray(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.open(__import__("io").BytesIO(encoded(image, "PNG", exif=exif)))
    upright = np.asarray(ImageOps.exif_transpose(image))
    ys, xs = np.nonzero(upright)
    expected = (xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1)
    box = turned_box(np.array([10.0, 20, 20, 30]), orientation, WIDTH, HEIGHT)
    assert tuple(box) == expected
    corner = turned_points(np.array([[10.0, 20.0]]), orientation, WIDTH, HEIGHT)[0]
    assert corner[0] in (expected[0], expected[0] + expected[2])
    assert corner[1] in (expected[1], expected[1] + expected[3])


def turned_picture(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(0), exif=exif)


RING = [3, 5, 15, 5, 15, 19, 3, 19]


def test_labels_on_the_stored_picture_are_turned_with_it(tmp_path: Path) -> None:
    scene = Scene(tmp_path).file("train/0.jpg", turned_picture(6)).mask(0, [RING])
    rle = {"size": [80, 100], "counts": [80 * 17 + 14, 15, 80 * 100 - 80 * 17 - 29]}
    scene.mask(1, rle, bbox=[17, 14, 1, 15], area=15)
    found = scene.run()
    assert errors(found) == []
    tables = found.tables
    assert tables.images.iloc[0][["width", "height"]].tolist() == [80, 100]
    # (x, y) of the stored picture is (80 - y, x) of the upright one
    assert boxes(found)[:2] == [(61, 3, 14, 12), (51, 17, 15, 1)]
    assert tables.annotations["segmentation"].iloc[0] == (
        "[[75.0,3.0,75.0,15.0,61.0,15.0,61.0,3.0]]"
    )
    from pycocotools import mask as coco_mask

    mask = coco_mask.decode(__import__("json").loads(tables.annotations["segmentation"].iloc[1]))
    assert mask.shape == (100, 80)
    ys, xs = np.nonzero(mask)
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (51, 17, 66, 18)
    assert boxes(found)[6:] == boxes(Scene(tmp_path / "plain").run())[6:]


def test_labels_on_the_turned_picture_stay(tmp_path: Path) -> None:
    scene = Scene(tmp_path).file("train/0.jpg", turned_picture(6)).image(0, width=80, height=100)
    found = scene.run()
    assert errors(found) == []
    assert found.tables.images.iloc[0][["width", "height"]].tolist() == [80, 100]
    assert boxes(found)[0] == (3, 5, 12, 14)
    assert "labels were made on the turned picture" in first(found, "image-exif-rotated").message


def test_boxes_decide_where_no_size_is_declared(tmp_path: Path) -> None:
    scene = Scene(tmp_path).file("train/0.jpg", turned_picture(6)).image(0, width=0, height=0)
    scene.box(0, 3, 85, 12, 14)  # below the stored picture, within the turned one
    found = scene.box(5, 60, 40, 12, 14).run()
    assert errors(found) == []
    assert found.tables.images.iloc[0][["width", "height"]].tolist() == [80, 100]
    assert boxes(found)[0] == (3, 85, 12, 14)


def test_a_set_that_contradicts_itself_is_an_error(tmp_path: Path) -> None:
    scene = Scene(tmp_path).file("train/0.jpg", turned_picture(6))
    scene.file("train/1.jpg", turned_picture(8)).image(1, width=80, height=100)
    message = first(scene.run(), "exif-undecided").message
    assert "1.jpg was labelled turned, 0.jpg as stored" in message
    assert errors(scene.option(exif="stored").run()) == ["image-size-differs"]


@pytest.mark.parametrize(
    ("choice", "box"), [("turned", (32, 37.5, 16, 25)), ("stored", (30, 40, 20, 20))]
)
def test_yolo_shares_need_the_choice(choice: str, box: tuple[float, ...], tmp_path: Path) -> None:
    scene = yolo(Scene(tmp_path)).file("yolo/images/train/a.jpg", turned_picture(8))
    assert errors(scene.run()) == ["exif-undecided"]
    found = scene.option(exif=choice).run()
    assert errors(found) == []
    assert boxes(found)[0] == box
    assert found.tables.images.iloc[0][["width", "height"]].tolist() == [80, 100]


def test_a_half_turn_is_decided_by_nothing_but_the_choice(tmp_path: Path) -> None:
    scene = Scene(tmp_path).file("train/0.jpg", turned_picture(3))
    assert errors(scene.run()) == ["exif-undecided"]
    assert boxes(scene.option(exif="turned").run())[0] == (3, 5, 12, 14)
    assert boxes(scene.option(exif="stored").run())[0] == (85, 61, 12, 14)


def test_a_turned_picture_without_a_box_needs_no_choice(tmp_path: Path) -> None:
    scene = yolo(Scene(tmp_path), a="").file("yolo/images/train/a.jpg", turned_picture(8))
    assert errors(scene.run()) == []


# --- records


def test_two_videos_under_one_name(tmp_path: Path) -> None:
    found = Scene(tmp_path).image(1, file_name="0.jpg").run()
    row = first(found, "image-boxes-differ")
    assert (row.image_id, row.other_image_id) == (2, 1)
    assert errors(found) == ["image-boxes-differ"]


def test_placeholders_with_boxes_name_the_ids(tmp_path: Path) -> None:
    found = Scene(tmp_path).category(1, name="__ignore__").run()
    message = first(found, "category-name-reserved").message
    assert '`dataset.drop: ["train:11", "train:13"' in message
    unused = Scene(tmp_path / "x").add("categories", {"id": 9, "name": "_ignore_"}).run()
    assert rules(unused) == {"category-placeholder"}
    assert unused.tables.names("train") == {1: "helmet", 2: "forklift"}


def test_misnamed_labels_say_what_was_looked_for(tmp_path: Path) -> None:
    scene = yolo(Scene(tmp_path))
    for name in ("a", "b"):
        scene.files[f"yolo/Labels/train/{name}.txt"] = scene.files.pop(
            f"yolo/labels/train/{name}.txt"
        )
    assert "labels/train/a.txt" in first(scene.run(), "train-unannotated").message


def test_names_deeper_than_the_folder_name_the_images_line(tmp_path: Path) -> None:
    record = coco()
    write(tmp_path, {"train.json": record, **pictures("images/1/")})
    params = DatasetParams(
        root=Path(), train=SetParams(annotations=Path("train.json"), images=Path("images"))
    )
    found = validate(params, tmp_path, workers=1)
    assert "`images` should name images/1" in first(found, "image-missing").message


def test_a_plain_name_written_with_a_dot_is_listed(tmp_path: Path) -> None:
    found = Scene(tmp_path).image(0, file_name="./0.jpg").image(1, file_name=".//1.jpg").run()
    assert rules(found) == set()
