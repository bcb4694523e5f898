"""Stages unlabelled, evaluate and gate on a project whose every figure is known."""

import math
from pathlib import Path

import pandas as pd
import pytest

from evaluation.colours import colour_params, colour_project, colour_weights, read, run_stages
from topwork.dataset.tables import Tables
from topwork.errors import EvaluationError, RetentionError, TopworkError
from topwork.evaluation.unlabelled import find_unlabelled
from topwork.files import sha256_file, write_text
from topwork.metrics.truth import truth_of
from topwork.params.unlabelled import UnlabelledParams
from topwork.project.evaluate import CLASSES, IMAGES, METRICS, TABLE
from topwork.project.names import HELD_OUT, MODELS
from topwork.project.predictions import (
    PredictionRecord,
    predictions_folder,
    predictions_path,
    record_path,
)
from topwork.project.surgery import GRAFTED
from topwork.stages import baseline, evaluate, gate, predict, unlabelled
from topwork.weights.format import write_weights


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("colours")
    colour_project(root)
    run_stages(root, colour_params())
    return root


def test_metrics_by_hand(project: Path) -> None:
    """Overlap 0.81 is found at seven of ten thresholds, 0.98 at all; 0.01 at none."""
    sets = read(project / TABLE)["sets"]
    means = {"map": 1.0, "map_50": 1.0, "map_75": 1.0, "mar_100": 1.0}
    assert sets["test"]["pretrained"] == {
        **means,
        "classes": {"person": {"ap": 1.0, "ap_50": 1.0}},
        "masks": None,
    }
    assert sets["test"]["grafted"]["classes"]["person"]["ap"] == 1.0
    assert sets["test"]["grafted"]["classes"]["helmet"]["ap"] == 0.0
    assert sets["test"]["finetuned"]["classes"]["person"] == {
        "ap": pytest.approx(0.7),
        "ap_50": 1.0,
    }
    assert sets["test"]["finetuned"]["map"] == pytest.approx((0.7 + 1 + 1) / 3)
    assert set(sets["source"]["finetuned"]["classes"]) == {"person"}
    assert read(project / METRICS) == {
        "retention": {"person": pytest.approx(0.7)},
        "ap": {"helmet": 1.0, "forklift": 1.0},
        "map": pytest.approx((0.7 + 1 + 1) / 3),
    }


def test_a_class_named_like_a_metric_keeps_its_name(tmp_path: Path) -> None:
    colour_project(tmp_path, helmet="map")
    run_stages(
        tmp_path,
        colour_params(
            surgery={"classes": {"person": "keep", "map": "new", "forklift": {"like": "truck"}}}
        ),
    )
    assert read(tmp_path / TABLE)["sets"]["test"]["finetuned"]["classes"]["map"] == {
        "ap": 1.0,
        "ap_50": 1.0,
    }
    assert read(tmp_path / METRICS)["ap"] == {"map": 1.0, "forklift": 1.0}


def test_class_rows(project: Path) -> None:
    rows = {(row["set"], row["class"]): row for row in read(project / CLASSES)["classes"]}
    assert set(rows) == {
        ("test", "person"),
        ("test", "helmet"),
        ("test", "forklift"),
        ("source", "person"),
    }
    person = rows["source", "person"]
    assert (person["objects"], person["images"], person["origin"], person["note"]) == (
        20,
        20,
        "keep",
        None,
    )
    before, after = person["models"]["pretrained"], person["models"]["finetuned"]
    assert (before["ap"], after["ap"], person["retention"]) == (
        1.0,
        pytest.approx(0.7),
        pytest.approx(0.7),
    )
    assert person["interval_retention"] == [pytest.approx(0.7), pytest.approx(0.7)]
    assert after["best"]["threshold"] == pytest.approx(0.9)
    assert after["ece"] == pytest.approx(0.1)
    assert after["figures"]["ap_small"] == pytest.approx(0.7)
    assert after["figures"]["ap_large"] is None
    helmet = rows["test", "helmet"]
    unknown = {"ap": None, "interval": None, "figures": None, "best": None, "ece": None}
    assert (helmet["models"]["pretrained"], helmet["retention"]) == (unknown, None)
    assert "nothing to retain" in helmet["note"]


def test_predictions_bear_target_names(project: Path) -> None:
    names = {
        model: sorted(path.name for path in (project / predictions_folder(model)).iterdir())
        for model in MODELS
    }
    expected = {
        "pretrained": ("test", "source"),
        "grafted": ("test", "source"),
        "finetuned": ("test", "source"),
    }
    files = {
        m: [f"{m}.{split}.{kind}" for split in splits for kind in ("json", "parquet")]
        for m, splits in expected.items()
    }
    assert names["finetuned"] == sorted(files["finetuned"])
    assert names["pretrained"] == names["grafted"] == sorted(files["pretrained"] + files["grafted"])
    table = pd.read_parquet(project / predictions_path("pretrained", "source"))
    assert set(table["name"]) == {"person"}
    assert set(table["label"]) == {1}
    results = read((project / predictions_path("finetuned", "test")).with_suffix(".json"))
    assert {result["category_id"] for result in results} == {3, 5, 8}  # the set's own ids
    assert results[0] == {
        "image_id": 10,
        "category_id": 8,
        "bbox": [3.0, 3.0, 18.0, 18.0],
        "score": 0.9,
    }


def test_predictions_say_how_they_were_computed(project: Path) -> None:
    record = PredictionRecord.read(project / record_path("grafted"))
    assert record.machine["device"] == "cpu"
    assert record.batch_size == 4
    assert record.weights["grafted"] == sha256_file(project / GRAFTED)
    assert record.splits == {
        "pretrained": ["test", "source", "train"],
        "grafted": ["test", "source"],
    }


def test_plots(project: Path) -> None:
    folder = project / "out/evaluate/plots"
    wide = pd.read_csv(folder / "pr_source.csv")
    assert list(wide) == ["recall", "pretrained", "grafted", "finetuned"]
    assert (wide["finetuned"] == 1).all()
    confusion = pd.read_csv(folder / "confusion.csv")
    cells = confusion[(confusion["set"] == "test") & (confusion["model"] == "finetuned")]
    assert {
        (a, p): n
        for a, p, n in zip(cells["actual"], cells["predicted"], cells["count"], strict=True)
    } == {
        ("person", "person"): 12,
        ("helmet", "helmet"): 12,
        ("forklift", "forklift"): 8,
    }
    assert len(pd.read_csv(folder / "confusion_test.csv")) == 32
    calibration = pd.read_csv(folder / "calibration.csv")
    assert set(calibration["class"]) == {"all", "person", "helmet", "forklift"}
    assert list(pd.read_csv(folder / "calibration_test.csv")) == [
        "score",
        "ideal",
        "pretrained",
        "grafted",
        "finetuned",
    ]
    errors = read(folder / "errors.json")
    grafted = errors["sets"]["test"]["grafted"]
    assert grafted["kinds"]["missed"]["count"] + grafted["kinds"]["background"]["count"] == 40
    shares = [entry["share"] for entry in grafted["kinds"].values()]
    assert math.fsum(shares) == pytest.approx(1 - grafted["ap_50"], abs=1e-12)
    boxes = pd.read_parquet(folder / "mistakes.parquet")
    assert len(boxes[(boxes["model"] == "grafted") & (boxes["kind"] == "missed")]) == 20


def test_f1_of_each_image(project: Path) -> None:
    """The fine-tuned detector finds all at IoU 0.5; the grafted one people alone, its other boxes
    are too small: image 10 has a person and a helmet, 12 a helmet, 13 a person, 15 nothing.
    """
    table = pd.read_parquet(project / IMAGES)
    assert list(table) == ["set", "model", "image_id", "f1"]
    f1 = {
        key: dict(zip(rows["image_id"], rows["f1"], strict=True))
        for key, rows in table.groupby(["set", "model"])
    }
    assert set(f1) == {(split, model) for split in HELD_OUT for model in MODELS}
    assert set(f1["test", "finetuned"].values()) == {1.0}
    assert len(f1["test", "finetuned"]) == 24
    grafted = f1["test", "grafted"]
    assert [grafted[image_id] for image_id in (13, 15)] == [1.0, 1.0]
    assert grafted[12] == 0.0
    assert grafted[10] == pytest.approx(2 / 4)


def test_outputs_repeat_to_the_byte(project: Path, tmp_path: Path) -> None:
    colour_project(tmp_path)
    run_stages(tmp_path, colour_params())
    files = sorted(
        path.relative_to(project) for path in (project / "out").rglob("*") if path.is_file()
    )
    assert len(files) > 25
    for file in files:
        assert (project / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_no_nan_and_no_path_in_json(project: Path) -> None:
    for path in (project / "out").rglob("*.json"):
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
    before = (project / TABLE).read_bytes()
    evaluate.run(strict, project)  # a breach doesn't stop it
    with pytest.raises(
        RetentionError,
        match=(
            r"person on source: AP 1\.000 pretrained, 0\.700 fine-tuned: retention 0\.700 .*asked"
            r" for 0\.95 at least"
        ),
    ):
        gate.run(strict, project)
    assert (project / TABLE).read_bytes() == before
    evaluate.run(colour_params(), project)


def test_gate_holds_what_was_learned(tmp_path: Path) -> None:
    """Both ways; the pretrained detector has no helmet, so that only its own AP counts."""
    colour_project(tmp_path)
    asked = {"helmet": {"min": 0.3, "on": "test"}, "forklift": {"min": 1.0, "by": "interval"}}
    held = colour_params(learned=asked)
    run_stages(tmp_path, held)
    verdict = read(tmp_path / "out/evaluate/verdict.json")
    assert [(row["class"], row["found"], row["holds"]) for row in verdict["learned"]] == [
        ("helmet", 1.0, True),
        ("forklift", 1.0, True),
    ]
    write_text(tmp_path / "out/report/report.html", "<html></html>")
    gate.run(held, tmp_path)
    other = colour_params(learned={"helmet": {"min": 0.9}})
    with pytest.raises(
        RetentionError, match=r"learned in params.yaml asks helmet: 0\.9 .*older than the contract"
    ):
        gate.run(other, tmp_path)
    tables = Tables.read(tmp_path / "out/validate")
    rows = tables.annotations
    Tables(
        tables.images,
        rows[~((rows["split"] == "test") & (rows["category_id"] == 3))],
        tables.categories,
    ).write(tmp_path / "out/validate")
    evaluate.run(held, tmp_path)
    with pytest.raises(
        RetentionError,
        match=r"learning contract breached: \w+ on test: AP undefined \(the test set has no object"
        r" of the class\), asked for .*Train longer or with more images",
    ):
        gate.run(held, tmp_path)


@pytest.mark.parametrize(
    ("learned", "message"),
    [
        ({"person": {"min": 0.3}}, "learned: person: a kept class; .* stands in `retention`"),
        ({"tree": {"min": 0.3}}, "learned: tree: no target class .surgery.classes has person"),
    ],
    ids=["kept", "unknown"],
)
def test_a_learning_contract_that_cannot_be_measured(
    project: Path, learned: dict[str, object], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate.run(colour_params(learned=learned), project)


def test_gate_wants_the_report_first(tmp_path: Path) -> None:
    write_text(tmp_path / "out/evaluate/verdict.json", '{"holds": true, "contracts": []}')
    with pytest.raises(TopworkError, match=r"report\.html: no such file"):
        gate.run(colour_params(retention={}), tmp_path)


@pytest.mark.parametrize(
    ("retention", "message"),
    [
        (
            {"forklift": {"min": 0.9}},
            "forklift: not a kept class .`like` in surgery.classes.*kept are person",
        ),
        (
            {"tree": {"min": 0.9}},
            r"tree: no target class \(surgery.classes has person, helmet, forklift\)",
        ),
        (
            {"helmet": {"min": 0.9}, "tree": {"min": 0.9}},
            "helmet: not a kept class.*tree: no target class",
        ),
    ],
    ids=["not kept", "unknown", "both named"],
)
def test_contract_that_cannot_be_measured(
    project: Path, retention: dict[str, object], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate.run(colour_params(retention=retention), project)


def _without(root: Path, split: str) -> None:
    tables = Tables.read(root / "out/validate")
    Tables.join([tables.split(name) for name in tables.splits if name != split]).write(
        root / "out/validate"
    )


def test_sets_that_are_missing(tmp_path: Path) -> None:
    colour_project(tmp_path)
    baseline.run(colour_params(), tmp_path)
    predict.run(colour_params(), tmp_path)
    _without(tmp_path, "source")
    with pytest.raises(
        EvaluationError,
        match=r"person: on: source, and dataset.source isn't given; sets to measure on are test",
    ):
        evaluate.run(colour_params(), tmp_path)
    run_stages(tmp_path, colour_params(retention={}))
    assert set(read(tmp_path / TABLE)["sets"]) == {"test"}
    assert read(tmp_path / METRICS)["retention"] == {"person": pytest.approx(0.7)}
    _without(tmp_path, "test")
    with pytest.raises(EvaluationError, match=r"no test set; name one as dataset\.test"):
        evaluate.run(colour_params(retention={}), tmp_path)


def test_class_without_objects_has_a_note_and_no_ap(tmp_path: Path) -> None:
    colour_project(tmp_path)
    tables = Tables.read(tmp_path / "out/validate")
    rows = tables.annotations
    Tables(
        tables.images,
        rows[~((rows["split"] == "test") & (rows["category_id"].isin([3, 8])))],
        tables.categories,
    ).write(tmp_path / "out/validate")
    run_stages(tmp_path, colour_params(retention={"person": {"min": 0.9, "on": "test"}}))
    row = next(
        row
        for row in read(tmp_path / CLASSES)["classes"]
        if (row["set"], row["class"]) == ("test", "person")
    )
    assert (row["models"]["finetuned"]["ap"], row["retention"]) == (None, None)
    assert row["note"] == "the test set has no object of the class person: its AP is undefined"
    verdict = read(tmp_path / "out/evaluate/verdict.json")
    assert verdict["holds"] is False
    assert (
        verdict["contracts"][0]["sentence"]
        == "person on test: retention undefined (the test set has no object of the class), asked"
        " for 0.9 at least"
    )
    # the helmet's alone
    assert read(tmp_path / TABLE)["sets"]["test"]["finetuned"]["map"] == pytest.approx(1.0)


def test_contract_by_interval(tmp_path: Path) -> None:
    """A retention of 0.7 in each image: the interval has no width, and its lower end holds at 0.7
    but for rounding.
    """
    colour_project(tmp_path)
    run_stages(
        tmp_path,
        colour_params(retention={"person": {"min": 0.699, "on": "source", "by": "interval"}}),
    )
    assert read(tmp_path / "out/evaluate/verdict.json")["holds"] is True
    evaluate.run(
        colour_params(
            retention={"person": {"min": 0.1, "by": "interval"}}, evaluate={"bootstrap": 0}
        ),
        tmp_path,
    )
    contract = read(tmp_path / "out/evaluate/verdict.json")["contracts"][0]
    assert (contract["holds"], contract["note"]) == (
        False,
        "no interval: evaluate.bootstrap is too small",
    )


def test_spoiled_weights_write_nothing(tmp_path: Path) -> None:
    colour_project(tmp_path)
    weights = colour_weights(("person", "helmet", "forklift"))
    weights.state_dict["score"][1] = math.nan
    write_weights(tmp_path / "out/finetune/weights.safetensors", weights)
    with pytest.raises(EvaluationError, match=r"image 10: .* boxes or scores are NaN or infinite"):
        predict.run(colour_params(), tmp_path)
    assert not (tmp_path / "out/predict").exists()


def test_masks_of_a_box_detector_are_refused(tmp_path: Path) -> None:
    colour_project(tmp_path)
    baseline.run(colour_params(), tmp_path)
    predict.run(colour_params(), tmp_path)
    with pytest.raises(EvaluationError, match="masks: the predictions have boxes alone"):
        evaluate.run(colour_params(evaluate={"masks": True, "bootstrap": 0}), tmp_path)
    assert not (tmp_path / "out/evaluate").exists()


def test_missing_weights_are_named(tmp_path: Path) -> None:
    colour_project(tmp_path)
    (tmp_path / "out/surgery/grafted.safetensors").unlink()
    with pytest.raises(
        TopworkError, match=r"grafted\.safetensors: no such file or folder, and this stage reads it"
    ):
        baseline.run(colour_params(), tmp_path)


def test_unlabelled_kept_class(tmp_path: Path) -> None:
    """Twenty people in the training images, none labelled: all found, at 0.9 each; the labelled
    helmets aren't kept, so nobody asks.
    """
    colour_project(tmp_path)
    params = colour_params()
    baseline.run(params, tmp_path)
    unlabelled.run(params, tmp_path)
    boxes = pd.read_parquet(tmp_path / "out/unlabelled/boxes.parquet")
    assert list(boxes) == ["image_id", "name", "score", "x", "y", "width", "height"]
    assert len(boxes) == 20
    assert set(boxes["name"]) == {"person"}
    found = read(tmp_path / "out/unlabelled/findings.json")
    assert (found["count"], found["estimate"]) == (20, pytest.approx(18.0))
    assert found["classes"]["person"]["recall"] is None
    assert found["rows"][0] == {
        "rule": "unlabelled-kept-class",
        "severity": "warning",
        "split": "train",
        "image_id": 10,
        "file_name": "0.png",
        "class": "person",
        "score": pytest.approx(0.9),
        "bbox": [2.0, 2.0, 20.0, 20.0],
    }


def test_unlabelled_leaves_the_labelled_alone(tmp_path: Path) -> None:
    """Ten people are labelled, ten aren't; ten labels stand where nothing is, so that the
    detector's recall on labels is a half.
    """
    colour_project(tmp_path)
    tables = Tables.read(tmp_path / "out/validate")
    train = tables.images[tables.images["split"] == "train"]
    labelled, ghosts = (
        train[(train["image_id"] - 10) % 3 == 0],
        train[(train["image_id"] - 10) % 3 == 2],
    )
    people = pd.concat([labelled.assign(x=2.0, y=2.0), ghosts.assign(x=40.0, y=40.0)])
    people = people.assign(
        annotation_id=range(500, 520),
        category_id=8,
        width=20.0,
        height=20.0,
        area=400.0,
        iscrowd=False,
        segmentation=None,
    )
    Tables(
        tables.images,
        pd.concat([tables.annotations, people[list(tables.annotations)]]),
        tables.categories,
    ).write(tmp_path / "out/validate")
    params = colour_params()
    baseline.run(params, tmp_path)
    unlabelled.run(params, tmp_path)
    found = read(tmp_path / "out/unlabelled/findings.json")
    assert {row["image_id"] for row in found["rows"]} == set(
        train["image_id"][(train["image_id"] - 10) % 3 == 1]
    )
    entry = found["classes"]["person"]
    assert (entry["labelled"], entry["count"], entry["recall"]) == (20, 10, 0.5)
    assert (entry["expected"], entry["estimate"]) == (pytest.approx(9.0), pytest.approx(18.0))


@pytest.mark.parametrize(
    ("whole", "count"),
    [((0.0, 0.0, 30.0, 44.0), 19), ((12.0, 2.0, 40.0, 40.0), 20)],
    ids=["torso", "neighbour"],
)
def test_unlabelled_leaves_parts_of_the_labelled_alone(
    tmp_path: Path, whole: tuple[float, ...], count: int
) -> None:
    """A detection of 20 by 20 at (2, 2) overlaps either label by less than 0.31 of both together;
    it lies within the first, and by half in the second.
    """
    colour_project(tmp_path)
    tables = Tables.read(tmp_path / "out/validate")
    first = tables.images[tables.images["image_id"] == 10]
    person = first.assign(
        **dict(zip(("x", "y", "width", "height"), whole, strict=True)),
        annotation_id=500,
        category_id=8,
        area=whole[2] * whole[3],
        iscrowd=False,
        segmentation=None,
    )
    Tables(
        tables.images,
        pd.concat([tables.annotations, person[list(tables.annotations)]]),
        tables.categories,
    ).write(tmp_path / "out/validate")
    params = colour_params(unlabelled={"max_iou": 0.31})
    baseline.run(params, tmp_path)
    unlabelled.run(params, tmp_path)
    assert read(tmp_path / "out/unlabelled/findings.json")["count"] == count


def test_unlabelled_inside_an_object_of_another_class(tmp_path: Path) -> None:
    """A driver lies within the forklift; only an annotation of its own class makes a person
    labelled.
    """
    colour_project(tmp_path)
    tables = Tables.read(tmp_path / "out/validate")
    categories = tables.categories[tables.categories["split"] == "train"]
    other = categories[categories["name"] == "forklift"]["category_id"].item()
    around = tables.images[tables.images["image_id"] == 10].assign(
        x=0.0,
        y=0.0,
        width=30.0,
        height=44.0,
        annotation_id=500,
        category_id=other,
        area=1320.0,
        iscrowd=False,
        segmentation=None,
    )
    tables = Tables(
        tables.images,
        pd.concat([tables.annotations, around[list(tables.annotations)]]),
        tables.categories,
    )
    driver = pd.DataFrame(
        {
            "image_id": [10],
            "label": [1],
            "name": ["person"],
            "score": [0.9],
            "x": [2.0],
            "y": [2.0],
            "width": [20.0],
            "height": [20.0],
        }
    )
    truth = truth_of(tables, "train", ("person", "forklift"))
    assert len(find_unlabelled(truth, driver, UnlabelledParams()).boxes) == 1
    assert find_unlabelled(truth, driver.assign(name="forklift"), UnlabelledParams()).boxes.empty


def test_unlabelled_without_kept_class(tmp_path: Path) -> None:
    colour_project(tmp_path)
    params = colour_params(surgery={"classes": {"helmet": "new"}}, retention={})
    baseline.run(params, tmp_path)
    unlabelled.run(params, tmp_path)
    assert pd.read_parquet(tmp_path / "out/unlabelled/boxes.parquet").empty
    assert read(tmp_path / "out/unlabelled/findings.json")["count"] == 0
