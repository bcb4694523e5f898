"""Files that mean harm or are plainly broken: a finding or a clear error, within the memory, and
nothing written anywhere.
"""

import json
import os
import resource
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from topwork.dataset.images import ImageStore
from topwork.errors import DataError
from topwork.validation.decode import duplicate_keys
from validation.cases_formats import DATA_YAML, voc, yolo
from validation.scene import Scene, encoded, first, picture, rules, small_set


@pytest.mark.parametrize(
    ("data", "rule", "words"),
    [
        pytest.param(b"", "file-empty", "0 bytes", id="no-bytes"),
        pytest.param(b"\0" * 1000, "file-empty", "1000 bytes", id="zero-bytes"),
        pytest.param(
            json.dumps(small_set()).encode()[:900], "file-not-json", "900 bytes", id="half-a-json"
        ),
        pytest.param(b"[" * 2_000_000, "file-not-coco", "array", id="nested-brackets"),
        pytest.param(
            b'{"info": ' + b"[" * 2_000_000,
            "file-not-json",
            "nested too deep",
            id="nested-in-a-skipped-field",
        ),
        pytest.param(
            b'{"images": [], "annotations": [' + b'{"segmentation": [' * 500_000,
            "file-not-json",
            "nested too deep",
            id="nested-records",
        ),
        pytest.param(b"[1, 2]", "file-not-coco", "array", id="a-list"),
        pytest.param(
            b'{"images": [], "categories": []}', "file-not-coco", "annotations", id="a-list-missing"
        ),
        pytest.param(
            b'{"images": {}, "annotations": [], "categories": []}',
            "file-not-coco",
            "images",
            id="object-for-a-list",
        ),
        pytest.param(b"\xff\xfe\x00", "file-not-json", "UTF-16", id="half-utf-16"),
        pytest.param(
            b'{"images": [{"id": 1, "file_name": "\xff.jpg"}]}', "file-not-", "", id="not-utf-8"
        ),
        pytest.param(b"PK\x03\x04 a zip", "file-not-json", "isn't JSON but a zip", id="a-zip"),
    ],
)
def test_broken_files_are_named(data: bytes, rule: str, words: str, tmp_path: Path) -> None:
    start = time.perf_counter()
    found = Scene(tmp_path).raw(data).run()
    assert time.perf_counter() - start < 20
    (row,) = [row for row in found.findings if row.rule.startswith(rule)]
    assert row.file == "train.json"
    assert words in row.message
    assert not found.readable


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_read_and_reported(encoding: str, tmp_path: Path) -> None:
    found = Scene(tmp_path).encode(encoding).run()
    assert rules(found) == {"file-encoding"}
    assert len(found.tables.annotations) == 24


def test_nan_and_infinity_cost_one_annotation_each(tmp_path: Path) -> None:
    scene = (
        Scene(tmp_path)
        .box(0, 3, float("nan"), 12, 14)
        .box(1, 3, 5, float("inf"), 14)
        .box(2, 3, 5, 12, float("-inf"))
    )
    found = scene.run()
    assert [row.annotation_id for row in found.findings if row.rule == "box-nan"] == [10, 11, 12]
    assert (
        "3 times" in first(found, "file-nan-token").message
        or "occurs" in first(found, "file-nan-token").message
    )
    assert len(found.tables.annotations) == 24


def test_numbers_beyond_a_float_are_infinite_boxes(tmp_path: Path) -> None:
    found = Scene(tmp_path).edit('"bbox": [3, 5, 12, 14]', '"bbox": [3, 5, 1e999, 14]').run()
    assert first(found, "box-nan").annotation_id == 10
    assert len(found.tables.annotations) == 24


def test_coco_train2017_has_two_boxes_of_no_height(tmp_path: Path) -> None:
    """The two annotations as COCO has them: 2206849 and 918, heights of 0.0."""
    scene = (
        Scene(tmp_path)
        .image(0, width=640, height=480)
        .file("train/0.jpg", encoded(picture(0, (640, 480))))
    )
    scene.annotation(0, id=918, bbox=[296.65, 388.33, 1.03, 0.0], area=0.0).annotation(
        1, id=2206849, bbox=[9.98, 188.56, 15.52, 0.0], area=0.0
    )
    found = scene.run()
    assert [row.annotation_id for row in found.findings if row.rule == "box-zero"] == [918, 2206849]
    assert "bbox width 1.03, height 0, must be > 0" in first(found, "box-zero").text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param('{"a": 1, "a": 2}', [("the file's outermost object", "a")], id="outermost"),
        pytest.param(
            '{"x": [{"b": 1}, {"b": 1, "c": [], "b": 2}]}', [("x[1]", "b")], id="in-a-record"
        ),
        pytest.param('{"x": {"y": {"k": 0, "\\u006b": 1}}}', [("x.y", "k")], id="escaped"),
        pytest.param(
            '{"x": "\\"a\\": 1, \\"a\\": 2", "y": [1, [2, 3], {"x": 1}]}', [], id="only-in-a-text"
        ),
        pytest.param(
            '{"x": [[1, 2], {"a": [1, {"a": 1}]}], "a": 3}', [], id="same-key-in-other-objects"
        ),
    ],
)
def test_keys_written_twice(text: str, expected: list[tuple[str, str]]) -> None:
    json.loads(text)
    assert list(duplicate_keys(text.encode())) == expected


def test_the_second_list_of_annotations_is_no_silent_drop(tmp_path: Path) -> None:
    found = Scene(tmp_path).edit('"annotations": [', '"annotations": [], "annotations": [').run()
    assert "the key 'annotations' occurs 2 times" in first(found, "file-key-twice").message


def test_a_folder_for_a_file(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    (tmp_path / "train.json").mkdir()
    scene.raw(None)
    assert "is a folder" in first(scene.run(), "file-unreadable").message


def test_archive_members_outside_are_never_written_nor_read(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "set"
    place.mkdir(parents=True)
    found = (
        Scene(place)
        .zip({"../evil.jpg": b"evil", "/abs.jpg": b"evil"})
        .image(0, file_name="../evil.jpg")
        .run()
    )
    assert {"archive-path-outside", "path-outside"} <= rules(found)
    assert not (place.parent / "evil.jpg").exists()
    store = ImageStore(place / "train.zip")
    assert sorted(store.refused) == ["../evil.jpg", "/abs.jpg"]
    with pytest.raises(DataError, match=r"'\.\./evil\.jpg': leads out of the image folder"):
        store.read("../evil.jpg")


def test_the_shadows_of_a_zip_made_on_macos_are_no_images(tmp_path: Path) -> None:
    assert rules(Scene(tmp_path).zip({"__MACOSX/._0.jpg": b"\0\5\26\7"}).run()) == set()


def test_a_broken_member_is_named_once(tmp_path: Path) -> None:
    scene = Scene(tmp_path).zip({}).write()
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        for name, data in scene.archives["train.zip"].items():
            archive.writestr(name, data)
    data = bytearray((tmp_path / "train.zip").read_bytes())
    data[data.index(b"\xff\xd8") + 100] ^= 1
    scene.archives.clear()
    (tmp_path / "train.zip").write_bytes(data)
    found = first(scene.run(), "image-unreadable")
    assert found.message == "0.jpg: can't be read (Bad CRC-32 for file '0.jpg')."


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (6, r"images\.zip: not a whole zip archive \(zip file version 9\.9\)"),
        (10, r"0\.jpg: can't be read \(That compression method is not supported\)"),
    ],
    ids=["version", "compression"],
)
def test_a_zip_of_a_kind_that_python_does_not_know(tmp_path: Path, place: int, words: str) -> None:
    """zipfile raises NotImplementedError: for an unknown version when it opens the archive, for an
    unknown compression when it reads the member.
    """
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("0.jpg", b"picture")
    data = bytearray((tmp_path / "images.zip").read_bytes())
    data[data.index(b"PK\1\2") + place] = 99
    (tmp_path / "images.zip").write_bytes(data)
    with pytest.raises(DataError, match=words):
        ImageStore(tmp_path / "images.zip").read("0.jpg")


def test_a_tar_bomb_of_links_is_left_alone(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        link = tarfile.TarInfo("passwd.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("../up.jpg"))
    store = ImageStore(tmp_path / "images.tar")
    assert list(store.names()) == []
    assert store.refused == ["../up.jpg"]
    with pytest.raises(DataError, match=r"passwd\.jpg: no such image"):
        store.read("passwd.jpg")


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("bomb.jpg", "w") as stream,
    ):
        for _ in range(300):
            stream.write(b"\0" * (1 << 20))
    with pytest.raises(
        DataError, match=r"bomb\.jpg: claims to unpack from \d+ to 314572800 bytes; not read"
    ):
        ImageStore(tmp_path / "bomb.zip").read("bomb.jpg")


def test_entities_in_voc_are_not_expanded(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    bomb = (
        b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b'
        b' "&a;&a;">]><annotation><filename>&b;</filename></annotation>'
    )
    scene.file("voc/Annotations/a.xml", bomb).use("voc")
    assert "declares a document type or entities" in first(scene.run(), "file-not-voc").message


def _under_limit(folder: Path, limit_gib: float) -> subprocess.CompletedProcess[str]:
    """Validate in a process that may hold so much memory."""
    code = (
        "import sys; from pathlib import Path; from topwork.validation.gate import validate; from"
        " topwork.params.dataset import DatasetParams, SetParams\nfound ="
        " validate(DatasetParams(root=Path('.'), train=SetParams(annotations=Path('train.json'))),"
        " Path(sys.argv[1]), images=False)\nprint([row.text() for row in found.findings])"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit_gib * 2**30),) * 2)

    source = Path(__file__).parents[2] / "src"
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        preexec_fn=limit,
        timeout=500,
        check=False,
        env={**os.environ, "PYTHONPATH": str(source)},
    )


@pytest.mark.parametrize(
    ("head", "mebibytes", "words"),
    [
        pytest.param(
            b"", 700, "expected `object`, got `array`|Expected `object`, got `array`", id="700-MB"
        ),
        pytest.param(
            b'{"info": ',
            10_240,
            "nested too deep",
            id="10-GB",
            marks=[pytest.mark.long, pytest.mark.timeout(1800)],
        ),
    ],
)
def test_a_huge_file_of_brackets_needs_no_memory(
    head: bytes, mebibytes: int, words: str, tmp_path: Path
) -> None:
    with (tmp_path / "train.json").open("wb") as stream:
        stream.write(head)
        for _ in range(mebibytes):
            stream.write(b"[" * (1 << 20))
    try:
        done = _under_limit(tmp_path, 1.0)
    finally:
        (tmp_path / "train.json").unlink()
    assert done.returncode == 0, done.stderr[-2000:]
    assert any(word in done.stdout for word in words.split("|")), done.stdout


@pytest.mark.parametrize(
    "name",
    [
        "set.json",
        "data.yaml",
        "voc/Annotations/a.xml",
        "yolo/labels/train/a.txt",
        "yolo/images/train/c.jpg",
    ],
)
def test_a_pipe_is_never_waited_for(name: str, tmp_path: Path) -> None:
    scene = (
        yolo(voc(Scene(tmp_path)))
        .file("yolo/list.txt", b"images/train/a.jpg\nimages/train/c.jpg\n")
        .write()
    )
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    if name.startswith("yolo/images"):
        (tmp_path / "yolo/data.yaml").write_text(DATA_YAML.replace("images/train", "list.txt"))
    used = {"voc": "voc", "yolo": "yolo/data.yaml"}.get(name.split("/")[0], name)
    code = (
        "import sys; from pathlib import Path; from topwork.validation.gate import validate; from"
        " topwork.params.dataset import DatasetParams, SetParams\nfound ="
        " validate(DatasetParams(root=Path('.'), train=SetParams(annotations=Path(sys.argv[2]))),"
        " Path(sys.argv[1]), workers=1)\nprint([row.rule for row in found.findings])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(scene.folder), used],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )
    assert any(
        rule in done.stdout
        for rule in (
            "file-unreadable",
            "file-not-yolo",
            "file-not-voc",
            "record-malformed",
            "image-missing",
        )
    )
