"""What a folder of labelled images is taken for, and the lines of params.yaml that name it."""

import json
import unicodedata
import zipfile
from pathlib import Path

import pytest

from topwork.cli import main
from topwork.errors import DataError
from topwork.params.document import parse_params
from topwork.validation.find_layout import find_layout
from topwork.validation.gate import validate
from validation.layouts import (
    BOXES,
    LAYOUTS,
    NAMES,
    coco,
    cvat_coco,
    datumaro_voc,
    label_studio_yolo,
    pictures,
    roboflow_coco,
    ultralytics,
    write,
)


@pytest.mark.parametrize("row", LAYOUTS)
def test_every_export_is_found_and_read(
    row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    draw, kind, splits = LAYOUTS[row]
    monkeypatch.chdir(tmp_path)
    draw(Path("data/export"))
    layout = find_layout(Path("data/export"))
    assert (layout.format, tuple(layout.sets)) == (kind, splits)
    assert set(NAMES) <= set(layout.classes)
    listed = 1 if row == "Datumaro: voc" else 2
    assert {found.pictures for found in layout.sets.values()} == {listed}
    # the lines are a section that the stage takes, and the boxes are the drawn ones
    from ruamel.yaml import YAML

    document = YAML(typ="safe", pure=True).load(layout.lines())
    document["dataset"].pop("split", None)
    params = parse_params({**document, "surgery": {"classes": {"helmet": "new"}}})
    found = validate(params.dataset, workers=1)
    assert [row.text() for row in found.findings if row.severity == "error"] == []
    tables = found.tables
    names = {
        (split, key): name for split in tables.splits for key, name in tables.names(split).items()
    }
    for split in splits:
        read = tables.split(split)
        files = dict(zip(read.images["image_id"], read.images["file_name"], strict=True))
        boxes = {
            (
                Path(files[record["image_id"]]).name,
                names[split, record["category_id"]],
                tuple(round(record[key], 6) for key in ("x", "y", "width", "height")),
            )
            for record in read.annotations.to_dict("records")
        }
        drawn = {(name, category, box) for name, (category, box) in BOXES.items()}
        if listed == 1:
            drawn = {
                entry for entry in drawn if entry[0] == f"{'a' if split == 'train' else 'b'}.jpg"
            }
        assert drawn <= boxes
        assert all(path.is_file() for path in _paths(read))
    assert f"| {row} |" in (root / "docs" / "data.md").read_text()


def _paths(read: object) -> list[Path]:
    images = read.images  # type: ignore[attr-defined]
    return [
        Path(place) / name
        for place, name in zip(images["image_root"], images["file_name"], strict=True)
    ]


def test_the_lines_of_one_set_divide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cvat_coco(Path("own data"))
    assert find_layout(Path("own data")).lines() == (
        "dataset:\n  root: own data\n  train:\n"
        "    annotations: annotations/instances_default.json\n"
        "    images: images/default\n  split:\n    val: 0.15\n    test: 0.15\n"
    )


def test_an_archive_s_only_folder_is_looked_into(tmp_path: Path) -> None:
    ultralytics(tmp_path / "hats.v3i.yolov8")
    layout = find_layout(tmp_path)
    assert layout.root == tmp_path / "hats.v3i.yolov8"
    assert layout.summary() == (
        "YOLO (hats.yaml); images: train 2, val 2; 2 classes: helmet, forklift"
    )


def test_a_folder_that_fits_twice_is_refused_with_both(tmp_path: Path) -> None:
    cvat_coco(tmp_path)
    label_studio_yolo(tmp_path)
    with pytest.raises(DataError, match=r"several formats are there: YOLO .* COCO .*Name the file"):
        find_layout(tmp_path)


def test_coco_files_without_a_split_by_name_are_listed(tmp_path: Path) -> None:
    write(tmp_path, {"one.json": coco(), "two.json": coco(), **pictures("")})
    with pytest.raises(DataError, match=r"2 COCO files, .*one\.json, two\.json"):
        find_layout(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", {"shapes": [], "imagePath": "a.jpg"}, "LabelMe's own JSON.*labelme2coco"),
        ("via.json", {"_via_img_metadata": {}}, "project of VIA.*COCO format"),
        ("via.json", {"a.jpg9": {"regions": [], "filename": "a.jpg"}}, "VIA's own JSON"),
        ("annotations/default.json", {"items": [], "categories": {}}, "Datumaro's own.*datum"),
        ("samples2.json", {"samples": []}, "FiftyOne's own.*COCODetectionDataset"),
        ("ls.json", '[{"id": 1, "annotations": []}]', "Label Studio's own JSON"),
        ("annotations.xml", "<?xml version='1.0'?><annotations/>", "CVAT's own XML"),
        ("via.csv", "filename,region_shape_attributes\n", "table of VIA"),
        ("readme.md", "nothing", "no data set found"),
    ],
    ids=["labelme", "via", "via-json", "datumaro", "fiftyone", "label-studio", "cvat", "csv", "no"],
)
def test_formats_that_are_not_read_name_the_export_to_choose(
    name: str, content: str, words: str, tmp_path: Path
) -> None:
    write(tmp_path, {name: content})
    with pytest.raises(DataError, match=words):
        find_layout(tmp_path)


def test_the_command_says_what_it_took_a_folder_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roboflow_coco(tmp_path)
    assert main(["validate", str(tmp_path), "--no-cache"]) == 0
    out = capsys.readouterr().out
    assert "taken for COCO, as Roboflow writes it" in out
    assert main(["validate", str(tmp_path), "--no-cache", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["taken_for"][0].startswith("COCO, as Roboflow")


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("images\\1/a.jpg", "images/1/a.jpg"),
        ("images\\1\\a.jpg", "images/1/a.jpg"),
        ("C:\\work\\images\\a.jpg", "images/1/a.jpg"),
        ("/home/me/images/a.jpg", "images/1/a.jpg"),
        (unicodedata.normalize("NFC", "Gerüst.jpg"), unicodedata.normalize("NFD", "Gerüst.jpg")),
        ("IMAGES/1/A.JPG", "images/1/a.jpg"),
    ],
    ids=["one-backslash", "backslashes", "windows", "absolute", "unicode", "case"],
)
def test_names_written_elsewhere_are_an_error_that_shows_the_match(
    written: str, there: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = coco()
    record["images"][0]["file_name"] = written
    record["images"].pop()
    record["annotations"].pop()
    write(tmp_path, {"train.json": record, **pictures("spare/")})
    place = tmp_path / there
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(next(iter(pictures("").values())))  # type: ignore[arg-type]
    assert main(["validate", str(tmp_path / "train.json"), "--no-cache", "--format", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    stopping = [row["message"] for row in found["findings"] if row["severity"] == "error"]
    assert any("`dataset.match: nearest`" in message for message in stopping)
    layout = find_layout(tmp_path / "train.json")
    document = {**layout.params(), "match": "nearest"}
    document.pop("split")
    params = parse_params({"dataset": document, "surgery": {"classes": {"helmet": "new"}}})
    matched = validate(params.dataset, workers=1)
    assert [row.rule for row in matched.findings if row.severity == "error"] == []
    name = matched.tables.images["file_name"].iloc[0]
    assert (layout.root / (layout.sets["train"].images or "") / name).is_file()


def test_images_that_are_nowhere_near_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, {"train.json": coco()})
    assert main(["validate", str(tmp_path / "train.json"), "--no-cache"]) == 1
    assert "none of its images is near it" in capsys.readouterr().err
    assert main(["validate", str(tmp_path / "train.json"), "--no-images"]) == 0


def test_a_set_without_a_list_called_train_is_one(tmp_path: Path) -> None:
    ultralytics(tmp_path)
    (tmp_path / "hats.yaml").write_text("val: images/val\nnames: [helmet, forklift]\n")
    for path in (tmp_path, tmp_path / "hats.yaml"):
        assert find_layout(path).params()["train"] == {"annotations": "hats.yaml", "subset": "val"}
    assert main(["validate", str(tmp_path), "--no-cache"]) == 0


def test_a_file_an_image_is_no_coco(tmp_path: Path) -> None:
    shapes = {"shapes": [], "imagePath": "a.jpg"}
    write(tmp_path, {f"{number}.json": shapes for number in range(30)})
    with pytest.raises(DataError, match="LabelMe's own JSON"):
        find_layout(tmp_path)


def test_trainval_is_what_a_voc_set_without_train_trains_on(tmp_path: Path) -> None:
    datumaro_voc(tmp_path)
    lists = tmp_path / "ImageSets" / "Main"
    (lists / "train.txt").rename(lists / "trainval.txt")
    (lists / "val.txt").rename(lists / "test.txt")
    sets = find_layout(tmp_path).sets
    assert {split: found.subset for split, found in sets.items()} == {
        "train": "trainval",
        "test": None,
    }
    assert main(["validate", str(tmp_path), "--no-cache"]) == 0


@pytest.mark.parametrize(
    "place", ["{}", "{}/images", "images/{}", "{}2017", "../{}", "../images/{}", "{}.zip"]
)
def test_images_of_splits_that_number_theirs_alike(place: str, tmp_path: Path) -> None:
    """Both splits have an a.jpg; the folder called like the split is its own."""
    folder = tmp_path / "set" / "annotations"
    for seed, split in enumerate(("train", "val")):
        files = pictures("", 10 * seed)
        where = folder / place.format(split)
        if where.suffix == ".zip":
            where.parent.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(where, "w") as archive:
                for name, data in files.items():
                    archive.writestr(name, data)  # type: ignore[arg-type]
        else:
            write(where, files)
        write(folder, {f"instances_{split}.json": coco()})
    for path in (tmp_path / "set", folder):
        layout = find_layout(path)
        for split, entry in layout.entries().items():
            assert entry.images is not None
            assert entry.images.resolve() == (folder / place.format(split)).resolve()
    alone = find_layout(folder / "instances_val.json").entries()["train"].images
    assert alone is not None
    assert alone.resolve() == (folder / place.format("val")).resolve()
