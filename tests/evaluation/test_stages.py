"""Stages unlabelled, evaluate and gate on a project whose every figure is known."""

import math
from pathlib import Path

import pandas as pd
import pytest

from evaluation.colours import colour_params, colour_project, colour_weights, read
from topwork.coco.tables import Tables
from topwork.errors import EvaluationError, RetentionError, TopworkError
from topwork.evaluation.truth import truth_of
from topwork.evaluation.unlabelled import find_unlabelled
from topwork.files import write_text
from topwork.params import UnlabelledParams
from topwork.stages import evaluate, gate, unlabelled
from topwork.weights.weights import write_weights


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("colours")
    colour_project(root)
    evaluate.run(colour_params(), root)
    return root


def test_metrics_by_hand(project: Path) -> None:
    """Overlap 0.81 is found at seven of ten thresholds, 0.98 at all; 0.01 at none."""
    metrics = read(project / "out/evaluate/metrics.json")
    assert metrics["test"]["pretrained"] == {"map": 1.0, "map_50": 1.0, "map_75": 1.0, "mar_100": 1.0, "person": {"ap": 1.0, "ap_50": 1.0}}
    assert metrics["test"]["grafted"]["person"]["ap"] == 1.0
    assert metrics["test"]["grafted"]["helmet"]["ap"] == 0.0
    assert metrics["test"]["finetuned"]["person"] == {"ap": pytest.approx(0.7), "ap_50": 1.0}
    assert metrics["test"]["finetuned"]["map"] == pytest.approx((0.7 + 1 + 1) / 3)
    assert set(metrics["source"]["finetuned"]) == {"map", "map_50", "map_75", "mar_100", "person"}
    assert metrics["retention"] == {"person": pytest.approx(0.7)}


def test_class_rows(project: Path) -> None:
    rows = {(row["set"], row["class"]): row for row in read(project / "out/evaluate/classes.json")}
    assert set(rows) == {("test", "person"), ("test", "helmet"), ("test", "forklift"), ("source", "person")}
    person = rows["source", "person"]
    assert (person["objects"], person["images"], person["origin"], person["note"]) == (20, 20, "keep", None)
    assert (person["ap_pretrained"], person["ap_finetuned"], person["retention"]) == (1.0, pytest.approx(0.7), pytest.approx(0.7))
    assert person["interval_retention"] == [pytest.approx(0.7), pytest.approx(0.7)]
    assert person["best_finetuned"]["threshold"] == pytest.approx(0.9)
    assert person["ece_finetuned"] == pytest.approx(0.1)
    assert person["figures_finetuned"]["ap_small"] == pytest.approx(0.7)
    assert person["figures_finetuned"]["ap_large"] is None
    helmet = rows["test", "helmet"]
    assert (helmet["ap_pretrained"], helmet["retention"], helmet["figures_pretrained"]) == (None, None, None)
    assert "nothing to retain" in helmet["note"]


def test_predictions_bear_target_names(project: Path) -> None:
    folder = project / "out/evaluate/predictions"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{model}.{split}.{kind}"
        for model in ("pretrained", "grafted", "finetuned")
        for split in ("test", "source")
        for kind in ("json", "parquet")
    )
    table = pd.read_parquet(folder / "pretrained.source.parquet")
    assert set(table["name"]) == {"person"}
    assert set(table["label"]) == {1}
    results = read(folder / "finetuned.test.json")
    assert {result["category_id"] for result in results} == {3, 5, 8}  # the set's own ids
    assert results[0] == {"image_id": 10, "category_id": 8, "bbox": [3.0, 3.0, 18.0, 18.0], "score": 0.9}


def test_plots(project: Path) -> None:
    folder = project / "out/evaluate/plots"
    wide = pd.read_csv(folder / "pr_source.csv")
    assert list(wide) == ["recall", "pretrained", "grafted", "finetuned"]
    assert (wide["finetuned"] == 1).all()
    confusion = pd.read_csv(folder / "confusion.csv")
    cells = confusion[(confusion["set"] == "test") & (confusion["model"] == "finetuned")]
    assert {(a, p): n for a, p, n in zip(cells["actual"], cells["predicted"], cells["count"], strict=True)} == {
        ("person", "person"): 12, ("helmet", "helmet"): 12, ("forklift", "forklift"): 8,
    }  # fmt: skip
    assert len(pd.read_csv(folder / "confusion_test.csv")) == 32
    calibration = pd.read_csv(folder / "calibration.csv")
    assert set(calibration["class"]) == {"all", "person", "helmet", "forklift"}
    assert list(pd.read_csv(folder / "calibration_test.csv")) == ["score", "honest", "pretrained", "grafted", "finetuned"]
    errors = read(folder / "errors.json")
    grafted = errors["test"]["grafted"]
    assert grafted["kinds"]["missed"]["count"] + grafted["kinds"]["background"]["count"] == 40
    shares = [entry["share"] for entry in grafted["kinds"].values()]
    assert math.fsum(shares) == pytest.approx(1 - grafted["ap_50"], abs=1e-12)
    boxes = pd.read_parquet(folder / "mistakes.parquet")
    assert len(boxes[(boxes["model"] == "grafted") & (boxes["kind"] == "missed")]) == 20


def test_outputs_repeat_to_the_byte(project: Path, tmp_path: Path) -> None:
    colour_project(tmp_path)
    evaluate.run(colour_params(), tmp_path)
    files = sorted(path.relative_to(project) for path in (project / "out/evaluate").rglob("*") if path.is_file())
    assert len(files) > 15
    for file in files:
        assert (project / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_no_nan_and_no_path_in_json(project: Path) -> None:
    for path in (project / "out/evaluate").rglob("*.json"):
        text = path.read_text()
        assert "NaN" not in text
        assert "Infinity" not in text
        assert str(project) not in text


def test_gate_fails_and_passes(project: Path) -> None:
    """Both ways, on the same verdict's figures; what was written stays."""
    write_text(project / "out/report/report.html", "<html></html>")
    gate.run(colour_params(), project)
    assert read(project / "out/gate/verdict.json")["holds"] is True
    strict = colour_params(retention={"person": {"min": 0.95, "on": "source"}})
    with pytest.raises(RetentionError, match="verdict is older than the contract"):
        gate.run(strict, project)
    before = (project / "out/evaluate/metrics.json").read_bytes()
    evaluate.run(strict, project)  # a breach doesn't stop it
    with pytest.raises(
        RetentionError, match=r"person on source: AP 1\.000 pretrained, 0\.700 fine-tuned: retention 0\.700 .*asked for 0\.95 at least"
    ):
        gate.run(strict, project)
    assert (project / "out/evaluate/metrics.json").read_bytes() == before
    evaluate.run(colour_params(), project)


def test_gate_wants_the_report_first(tmp_path: Path) -> None:
    write_text(tmp_path / "out/evaluate/verdict.json", '{"holds": true, "contracts": []}')
    with pytest.raises(TopworkError, match=r"report\.html: no such file"):
        gate.run(colour_params(retention={}), tmp_path)


@pytest.mark.parametrize(
    ("retention", "message"),
    [
        ({"forklift": {"min": 0.9}}, "forklift: not a kept class .`like` in surgery.classes.*kept are person"),
        ({"tree": {"min": 0.9}}, r"tree: no target class \(surgery.classes has person, helmet, forklift\)"),
        ({"helmet": {"min": 0.9}, "tree": {"min": 0.9}}, "helmet: not a kept class.*tree: no target class"),
    ],
    ids=["not kept", "unknown", "both named"],
)
def test_contract_that_cannot_be_measured(project: Path, retention: dict[str, object], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate.run(colour_params(retention=retention), project)


def _without(root: Path, split: str) -> None:
    tables = Tables.read(root / "out/validate")
    Tables.join([tables.split(name) for name in tables.splits if name != split]).write(root / "out/validate")


def test_sets_that_are_missing(tmp_path: Path) -> None:
    colour_project(tmp_path)
    _without(tmp_path, "source")
    with pytest.raises(EvaluationError, match=r"person: on: source, and dataset.source isn't given; sets to measure on are test"):
        evaluate.run(colour_params(), tmp_path)
    evaluate.run(colour_params(retention={}), tmp_path)
    metrics = read(tmp_path / "out/evaluate/metrics.json")
    assert set(metrics) == {"test", "retention"}
    assert metrics["retention"] == {"person": pytest.approx(0.7)}
    _without(tmp_path, "test")
    with pytest.raises(EvaluationError, match="evaluate: no test set"):
        evaluate.run(colour_params(retention={}), tmp_path)


def test_class_without_objects_has_a_note_and_no_ap(tmp_path: Path) -> None:
    colour_project(tmp_path)
    tables = Tables.read(tmp_path / "out/validate")
    rows = tables.annotations
    Tables(tables.images, rows[~((rows["split"] == "test") & (rows["category_id"].isin([3, 8])))], tables.categories).write(
        tmp_path / "out/validate"
    )
    evaluate.run(colour_params(retention={"person": {"min": 0.9, "on": "test"}}), tmp_path)
    row = next(row for row in read(tmp_path / "out/evaluate/classes.json") if (row["set"], row["class"]) == ("test", "person"))
    assert (row["ap_finetuned"], row["retention"]) == (None, None)
    assert row["note"] == "the test set has no object of the class person: its AP is undefined"
    verdict = read(tmp_path / "out/evaluate/verdict.json")
    assert verdict["holds"] is False
    assert (
        verdict["contracts"][0]["sentence"]
        == "person on test: retention undefined (the test set has no object of the class), asked for 0.9 at least"
    )
    assert read(tmp_path / "out/evaluate/metrics.json")["test"]["finetuned"]["map"] == pytest.approx(1.0)  # the helmet's alone


def test_contract_by_interval(tmp_path: Path) -> None:
    """A retention of 0.7 in each image: the interval has no width, and its lower end holds at 0.7 but for rounding."""
    colour_project(tmp_path)
    evaluate.run(colour_params(retention={"person": {"min": 0.699, "on": "source", "by": "interval"}}), tmp_path)
    assert read(tmp_path / "out/evaluate/verdict.json")["holds"] is True
    evaluate.run(colour_params(retention={"person": {"min": 0.1, "by": "interval"}}, evaluate={"bootstrap": 0, "device": "cpu"}), tmp_path)
    contract = read(tmp_path / "out/evaluate/verdict.json")["contracts"][0]
    assert (contract["holds"], contract["note"]) == (False, "no interval: evaluate.bootstrap is too small")


def test_spoiled_weights_write_nothing(tmp_path: Path) -> None:
    colour_project(tmp_path)
    weights = colour_weights(("person", "helmet", "forklift"))
    weights.state_dict["score"][1] = math.nan
    write_weights(tmp_path / "out/finetune/weights.safetensors", weights)
    with pytest.raises(EvaluationError, match=r"image 10: .* boxes or scores are NaN or infinite"):
        evaluate.run(colour_params(), tmp_path)
    assert not (tmp_path / "out/evaluate").exists()


def test_masks_of_a_box_detector_are_refused(tmp_path: Path) -> None:
    colour_project(tmp_path)
    with pytest.raises(EvaluationError, match="masks: the predictions have boxes alone"):
        evaluate.run(colour_params(evaluate={"masks": True, "bootstrap": 0, "device": "cpu"}), tmp_path)
    assert not (tmp_path / "out/evaluate").exists()


def test_missing_weights_are_named(tmp_path: Path) -> None:
    colour_project(tmp_path)
    (tmp_path / "out/surgery/grafted.safetensors").unlink()
    with pytest.raises(TopworkError, match=r"grafted\.safetensors: no such file or folder, and this stage reads it"):
        evaluate.run(colour_params(), tmp_path)


def test_unlabelled_kept_class(tmp_path: Path) -> None:
    """Twenty people in the training images, none labelled: all found, at 0.9 each; the labelled helmets aren't kept, so nobody asks."""
    colour_project(tmp_path)
    unlabelled.run(colour_params(), tmp_path)
    boxes = pd.read_parquet(tmp_path / "out/unlabelled/boxes.parquet")
    assert list(boxes) == ["image_id", "name", "score", "x", "y", "width", "height"]
    assert len(boxes) == 20
    assert set(boxes["name"]) == {"person"}
    found = read(tmp_path / "out/unlabelled/findings.json")
    assert (found["count"], found["estimate"]) == (20, pytest.approx(18.0))
    assert found["classes"]["person"]["recall"] is None
    assert found["rows"][0] == {
        "rule": "unlabelled-kept-class", "severity": "warning", "split": "train", "image_id": 10, "file_name": "0.png", "class": "person",
        "score": pytest.approx(0.9), "bbox": [2.0, 2.0, 20.0, 20.0],
    }  # fmt: skip


def test_unlabelled_leaves_the_labelled_alone(tmp_path: Path) -> None:
    """Ten people are labelled, ten aren't; ten labels stand where nothing is, so that the detector's recall on labels is a half."""
    colour_project(tmp_path)
    tables = Tables.read(tmp_path / "out/validate")
    train = tables.images[tables.images["split"] == "train"]
    labelled, ghosts = train[(train["image_id"] - 10) % 3 == 0], train[(train["image_id"] - 10) % 3 == 2]
    people = pd.concat([labelled.assign(x=2.0, y=2.0), ghosts.assign(x=40.0, y=40.0)])
    people = people.assign(
        annotation_id=range(500, 520), category_id=8, width=20.0, height=20.0, area=400.0, iscrowd=False, segmentation=None
    )
    Tables(tables.images, pd.concat([tables.annotations, people[list(tables.annotations)]]), tables.categories).write(
        tmp_path / "out/validate"
    )
    unlabelled.run(colour_params(), tmp_path)
    found = read(tmp_path / "out/unlabelled/findings.json")
    assert {row["image_id"] for row in found["rows"]} == set(train["image_id"][(train["image_id"] - 10) % 3 == 1])
    entry = found["classes"]["person"]
    assert (entry["labelled"], entry["count"], entry["recall"]) == (20, 10, 0.5)
    assert (entry["expected"], entry["estimate"]) == (pytest.approx(9.0), pytest.approx(18.0))


@pytest.mark.parametrize(("whole", "count"), [((0.0, 0.0, 30.0, 44.0), 19), ((12.0, 2.0, 40.0, 40.0), 20)], ids=["torso", "neighbour"])
def test_unlabelled_leaves_parts_of_the_labelled_alone(tmp_path: Path, whole: tuple[float, ...], count: int) -> None:
    """A detection of 20 by 20 at (2, 2) overlaps either label by less than 0.31 of both together; it lies within the first, and by half in the second."""
    colour_project(tmp_path)
    tables = Tables.read(tmp_path / "out/validate")
    first = tables.images[tables.images["image_id"] == 10]
    person = first.assign(
        **dict(zip(("x", "y", "width", "height"), whole, strict=True)),
        annotation_id=500, category_id=8, area=whole[2] * whole[3], iscrowd=False, segmentation=None,
    )  # fmt: skip
    Tables(tables.images, pd.concat([tables.annotations, person[list(tables.annotations)]]), tables.categories).write(
        tmp_path / "out/validate"
    )
    unlabelled.run(colour_params(unlabelled={"max_iou": 0.31}), tmp_path)
    assert read(tmp_path / "out/unlabelled/findings.json")["count"] == count


def test_unlabelled_inside_an_object_of_another_class(tmp_path: Path) -> None:
    """A driver lies within the forklift; only an annotation of its own class makes a person labelled."""
    colour_project(tmp_path)
    tables = Tables.read(tmp_path / "out/validate")
    categories = tables.categories[tables.categories["split"] == "train"]
    other = categories[categories["name"] == "forklift"]["category_id"].item()
    around = tables.images[tables.images["image_id"] == 10].assign(
        x=0.0, y=0.0, width=30.0, height=44.0, annotation_id=500, category_id=other, area=1320.0, iscrowd=False, segmentation=None
    )
    tables = Tables(tables.images, pd.concat([tables.annotations, around[list(tables.annotations)]]), tables.categories)
    driver = pd.DataFrame(
        {"image_id": [10], "label": [1], "name": ["person"], "score": [0.9], "x": [2.0], "y": [2.0], "width": [20.0], "height": [20.0]}
    )
    truth = truth_of(tables, "train", ("person", "forklift"))
    assert len(find_unlabelled(truth, driver, UnlabelledParams()).boxes) == 1
    assert find_unlabelled(truth, driver.assign(name="forklift"), UnlabelledParams()).boxes.empty


def test_unlabelled_without_kept_class(tmp_path: Path) -> None:
    colour_project(tmp_path)
    unlabelled.run(colour_params(surgery={"classes": {"helmet": "new"}}, retention={}), tmp_path)
    assert pd.read_parquet(tmp_path / "out/unlabelled/boxes.parquet").empty
    assert read(tmp_path / "out/unlabelled/findings.json")["count"] == 0
