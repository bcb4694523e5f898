"""The stage and the command: what they write, what stops them, what they leave alone."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from topwork.cli import main
from topwork.dataset.tables import Tables
from topwork.errors import DataError
from topwork.params.document import Params
from topwork.stages import validate as stage
from topwork.validation.gate import validate
from validation.cases_boxes import BOX_CASES
from validation.cases_images import IMAGE_CASES
from validation.scene import Scene, encoded, picture

OUTPUTS = {
    "images.parquet",
    "annotations.parquet",
    "categories.parquet",
    "findings.json",
    "findings.parquet",
    "summary.json",
    "splits.csv",
}


def run(scene: Scene) -> Path:
    """The stage on a scene; its outputs' folder."""
    scene.write()
    dataset = scene.dataset().model_dump()
    stage.run(Params(dataset=dataset, surgery={"classes": {"helmet": "keep"}}), scene.folder)
    return scene.folder / "out" / "validate"


def test_the_stage_writes_tables_and_findings(tmp_path: Path) -> None:
    out = run(
        Scene(tmp_path).other().box(0, 3, 5, 12, 1).mask(1, [[17, 14, 30, 14, 30, 29, 17, 29]])
    )
    assert {path.name for path in out.iterdir()} == OUTPUTS
    tables = Tables.read(out)
    assert tables.splits == ["train", "val"]
    assert tables.annotations["segmentation"].tolist()[:3] == [
        None,
        "[[17, 14, 30, 14, 30, 29, 17, 29]]",
        None,
    ]
    found = json.loads((out / "findings.json").read_text())
    assert found["counts"]["by_rule"] == {"box-tiny": 1}
    assert found["findings"] == [
        {
            "rule": "box-tiny",
            "severity": "warning",
            "split": "train",
            "file": "train.json",
            "image": "0.jpg",
            "image_id": 1,
            "annotation_id": 10,
            "message": "bbox is 12 x 1 px",
            "box": [3.0, 5.0, 12.0, 1.0],
            "other_split": None,
            "other_image_id": None,
        }
    ]
    assert pd.read_parquet(out / "findings.parquet")["rule"].tolist() == ["box-tiny"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary == {
        "annotations_train": 24,
        "annotations_val": 24,
        "classes": 2,
        "dropped": 0,
        "errors": 0,
        "images_train": 4,
        "images_val": 4,
        "notes": 0,
        "warnings": 1,
    }


def test_the_same_data_give_the_same_bytes_elsewhere(tmp_path: Path) -> None:
    one, two = (run(Scene(tmp_path / name).box(0, 3, 5, 12, 1)) for name in ("one", "two"))
    for name in OUTPUTS:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
        assert str(tmp_path).encode() not in (one / name).read_bytes()


def test_all_faults_are_reported_together_and_kept(tmp_path: Path) -> None:
    scene = Scene(tmp_path).box(0, 3, 5, 12, 0).box(1, 3, 5, -12, 4).file("train/2.jpg", None)
    with pytest.raises(DataError, match="3 faults in the data, of 3 kinds") as caught:
        run(scene)
    text = str(caught.value)
    assert "train.json: annotation 10 (image 1): bbox width 12, height 0, must be > 0" in text
    assert "train.json: image 3 (2.jpg): 2.jpg isn't in train" in text
    assert "\n" not in text
    assert not (tmp_path / "out").exists()
    kept = json.loads((tmp_path / ".topwork/findings/findings.json").read_text())
    assert kept["counts"]["by_severity"]["error"] == 3


def test_dropping_by_list_lets_the_stage_go_on(tmp_path: Path) -> None:
    scene = (
        Scene(tmp_path)
        .box(0, 3, 5, 12, 0)
        .file("train/2.jpg", None)
        .option(drop=[10], drop_images=["train:3"])
    )
    out = run(scene)
    assert len(Tables.read(out).annotations) == 24 - 1 - 6
    dropped = json.loads((out / "findings.json").read_text())["dropped"]
    assert [row["image_id"] for row in dropped if row["kind"] == "image"] == [3]
    assert sorted(row["annotation_id"] for row in dropped if row["kind"] == "annotation") == [
        10,
        30,
        31,
        32,
        33,
        34,
        35,
    ]


def test_an_id_in_two_splits_must_name_the_split(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"dataset\.drop: the id 10 is in train and val; write `train:10` or `val:10`",
    ):
        Scene(tmp_path).other().option(drop=[10]).run()
    with pytest.raises(
        DataError, match=r"dataset\.drop: found 'train:x', expected an id such as 123"
    ):
        Scene(tmp_path).option(drop=["train:x"]).run()


def test_aliases_that_meet_become_one_class(tmp_path: Path) -> None:
    tables = Scene(tmp_path).option(aliases={"forklift": "helmet"}).run().tables
    assert tables.names("train") == {1: "helmet"}
    assert set(tables.annotations["category_id"]) == {1}


def test_a_second_run_reads_no_image(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "data").write()
    runs = [
        validate(scene.dataset(), scene.folder, cache=tmp_path / "cache").probed for _ in range(2)
    ]
    assert runs == [(4, 4), (4, 0)]
    (scene.folder / "train/1.jpg").write_bytes(encoded(picture(77)))
    os.utime(scene.folder / "train/1.jpg", ns=(1, 1))
    assert validate(scene.dataset(), scene.folder, cache=tmp_path / "cache").probed == (4, 1)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process for every image, however few."""
    for name, value in {"PROCESSES_FROM": 0, "SMALL": 0, "CHUNK": 1}.items():
        monkeypatch.setattr(f"topwork.validation.probe.{name}", value)


@pytest.mark.usefixtures("processes")
def test_many_images_on_all_cores_give_what_one_gives(tmp_path: Path) -> None:
    scene = Scene(tmp_path).other().file("train/1.jpg", b"broken").write()
    alone = validate(scene.dataset(), tmp_path, workers=1)
    together = validate(scene.dataset(), tmp_path, workers=2)
    assert alone.findings.rows == together.findings.rows
    assert alone.stamps == together.stamps


def killed(chunk: object) -> None:
    """In place of looking at images."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("processes")
def test_a_killed_process_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path).write()
    monkeypatch.setattr("topwork.validation.probe._probe_chunk", killed)
    with pytest.raises(
        DataError, match=r"train: a process that looked at images was killed.*--workers 1"
    ):
        validate(scene.dataset(), tmp_path, workers=2)


@pytest.mark.parametrize(("spoil", "code"), [(0, 1), (1, 0)], ids=["error", "warning"])
def test_the_command_tells_by_its_exit_code(
    spoil: int, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Scene(tmp_path).box(0, 3, 5, 12, spoil).write()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert (
        main(
            [
                "validate",
                str(tmp_path / "train.json"),
                "--images",
                str(tmp_path / "train"),
                "--no-cache",
            ]
        )
        == code
    )
    assert (
        main(["validate", str(tmp_path / "train.json"), "--no-cache", "--fail-on", "warning"]) == 1
    )
    text = capsys.readouterr().out
    assert ("box-zero" if spoil == 0 else "box-tiny") in text
    assert len(text.splitlines()) < 60
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_command_writes_json_a_fix_list_and_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Scene(tmp_path / "data").box(0, 3, 5, 12, 0).file("train/2.jpg", None).write()
    command = [
        "validate",
        str(tmp_path / "data/train.json"),
        "--images",
        str(tmp_path / "data/train"),
        "--no-cache",
        "--format",
        "json",
    ]
    assert (
        main(
            [
                *command,
                "--fix-list",
                str(tmp_path / "drop.yaml"),
                "--report",
                str(tmp_path / "page"),
            ]
        )
        == 1
    )
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["by_rule"] == {"image-missing": 1, "box-zero": 1}
    assert (
        (tmp_path / "drop.yaml").read_text() == 'dataset:\n  drop:\n    - "train:10"  # box-zero\n'
        '  drop_images:\n    - "train:3"  # image-missing\n'
    )
    page = (tmp_path / "page/index.html").read_text()
    assert 'src="pictures/box-zero-0.jpg"' in page
    assert (tmp_path / "page/pictures/box-zero-0.jpg").stat().st_size > 500
    assert "http" not in page


def test_two_images_that_look_the_same_stand_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    IMAGE_CASES["near-duplicate-across"][0](Scene(tmp_path / "data")).write()
    sets = [str(tmp_path / "data" / name) for name in ("train.json", "val.json")]
    command = [
        "validate",
        sets[0],
        "--against",
        sets[1],
        "--no-cache",
        "--format",
        "json",
        "--report",
        str(tmp_path / "page"),
    ]
    assert main(command) == 0
    (found,) = (
        row
        for row in json.loads(capsys.readouterr().out)["findings"]
        if row["rule"] == "near-duplicate-across"
    )
    assert (found["image_id"], found["other_split"], found["other_image_id"]) == (1, "train", 1)
    with Image.open(tmp_path / "page/pictures/near-duplicate-across-0.jpg") as both:
        left, right = (
            both.crop((x, 0, x + both.width // 2 - 3, both.height))
            for x in (0, both.width // 2 + 3)
        )
    assert left.size == right.size == (100, 80)
    # one is the other, brightened by 9
    assert np.abs(np.asarray(left, float) - np.asarray(right, float)).mean() < 15


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param(
            ["--fix-list", "train.json"],
            "train.json: exists, and isn't a list of ids",
            id="over-the-annotations",
        ),
        pytest.param(
            ["--report", "train"],
            "train: has other files in it; --report takes a new or empty folder",
            id="among-the-images",
        ),
        pytest.param(
            ["--format", "json", "--fix-list", "-"],
            "--format json and --fix-list - both print",
            id="two-on-one-pipe",
        ),
    ],
)
def test_what_is_written_takes_the_place_of_nothing(
    options: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Scene(tmp_path).box(0, 3, 5, 12, 0).write()
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["validate", "train.json", "--no-cache", *options]) == 1
    out, err = capsys.readouterr()
    assert words in err
    assert out == ""
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    for _ in range(2):  # its own files may be written again
        assert (
            main(
                [
                    "validate",
                    "train.json",
                    "--no-cache",
                    "--fix-list",
                    "drop.yaml",
                    "--report",
                    "page",
                ]
            )
            == 1
        )
        assert capsys.readouterr().err == ""


def test_the_summary_fits_a_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 lines of 80 characters, the next prompt among them, whatever is wrong."""
    monkeypatch.setenv("COLUMNS", "80")
    scene = Scene(tmp_path).other()
    for cases in (BOX_CASES, IMAGE_CASES):
        for name in (
            "box-nan",
            "area-bad",
            "crowd-flag",
            "polygon-odd",
            "rle-counts",
            "path-backslash",
            "path-case-twins",
        ):
            scene = cases[name][0](scene) if name in cases else scene
    scene.box(2, 3, 5, 12, 0).box(3, 3, 5, -12, 1).box(4, 500, 5, 9, 9).box(5, 90, 5, 30, 9).box(
        6, 3, 3, 1, 1
    ).box(7, 0, 0, 100, 80)
    scene.box(8, 3, 5, 12, 14, area=900).annotation(9, image_id=99).annotation(
        10, category_id=99
    ).annotation(11, id=-1)
    scene.image(3, width=7).category(0, name="Fork-lift").add(
        "categories", {"id": 0, "name": "N/A"}
    )
    scene.add("images", {"id": 5, "file_name": "../x.jpg", "width": 9, "height": 9}).write()
    sets = [str(tmp_path / name) for name in ("train.json", "val.json")]
    assert (
        main(
            [
                "validate",
                sets[0],
                "--against",
                sets[1],
                "--no-cache",
                "--report",
                str(tmp_path / "page"),
            ]
        )
        == 1
    )
    lines = capsys.readouterr().out.splitlines()
    assert any("more rules; --format json has all" in line for line in lines)
    assert len(lines) <= 23
    assert all(len(line) <= 80 for line in lines[:-1])  # the last is the page's path


def test_workers_are_a_number_from_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["validate", "train.json", "--workers", "-3"])
    assert "found '-3', expected a whole number from 1" in capsys.readouterr().err


def test_the_command_finds_a_missing_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "nowhere.json"]) == 1
    assert "nowhere.json: no such file or folder" in capsys.readouterr().err


def test_real_hard_hats(real: Path) -> None:
    """Known by looking at the pictures: five doubled boxes, one image labelled twice, no error."""
    from topwork.params.dataset import DatasetParams, SetParams

    sets = {
        split: SetParams(annotations=Path(f"{name}.3class.coco.json"), images=Path(name))
        for split, name in (("train", "train"), ("val", "valid"))
    }
    found = validate(DatasetParams(root=real / "hardhat", **sets), images=False)
    counts = found.findings.by_rule()
    assert found.findings.by_severity()["error"] == 0
    assert counts["box-near-twin"] == 5
    assert counts["box-two-classes"] == 1
    assert len(found.tables.annotations) == 3788 + 1195


def test_few_findings_are_printed_in_whole_sentences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "train.json").write_bytes(b"[1]")
    assert main(["validate", str(tmp_path / "train.json"), "--no-cache"]) == 1
    out, err = capsys.readouterr()
    assert "a bare list may be detection results or another format" in " ".join(out.split())
    assert out.splitlines()[-1] == "1 error, 0 warnings, 0 notes"
    assert err == ""  # where it can't be read, missing images don't matter
