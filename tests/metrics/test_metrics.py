"""COCO metrics: compared with pycocotools itself."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evaluation.worlds import pycoco, random_world, stats
from topwork.dataset.tables import Tables
from topwork.errors import EvaluationError
from topwork.evaluation.assessment import assess, table_record
from topwork.metrics.coco import IOU_THRESHOLDS, RECALL_THRESHOLDS, Scores, score
from topwork.metrics.matching import match
from topwork.metrics.truth import Truth, detections_of, truth_of
from topwork.params.evaluate import EvaluateParams

CASES = {
    "plain": {},
    "crowds": {"crowds": 0.4},
    "tied overlaps": {"grid": 16.0},
    "tied scores": {"ties": True},
    "ties of both": {"grid": 16.0, "ties": True, "crowds": 0.3},
    "an empty class": {"empty_class": True},
    "more than 100 detections an image and class": {
        "images": 2,
        "classes": 1,
        "found": 900,
        "objects": 300,
    },
    "small objects": {"scale": 2.5},
    "large objects": {"scale": 5.0},
    "no detections": {"found": 0},
    "no objects": {"objects": 0},
    "only crowds": {"crowds": 1.0},
    "one image": {"images": 1},
}


def assert_equal(ours: Scores, theirs: object) -> None:
    arrays = theirs.eval  # type: ignore[attr-defined]
    np.testing.assert_allclose(ours.precision, arrays["precision"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(ours.recall, arrays["recall"], rtol=0, atol=1e-10)
    table = [-1.0 if value is None else value for value in ours.table().values()]
    np.testing.assert_allclose(table, stats(theirs), rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_pycocotools(case: dict[str, object], seed: int) -> None:
    truth, predictions = random_world(seed, **case)  # type: ignore[arg-type]
    assert_equal(score(truth, detections_of(predictions, truth)), pycoco(truth, predictions))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_matches_equal_pycocotools(case: dict[str, object]) -> None:
    """Our own matching, detection by detection and threshold by threshold, against pycocotools'
    evalImgs.
    """
    truth, predictions = random_world(7, **case)  # type: ignore[arg-type]
    matches = match(truth, detections_of(predictions, truth))
    evaluation = pycoco(truth, predictions)
    everything = [entry for entry in evaluation.evalImgs if entry and entry["aRng"] == [0, 1e10]]
    theirs = {}
    for entry in everything:
        for column, found in enumerate(entry["dtIds"]):
            theirs[found - 1] = (
                entry["dtMatches"][:, column].astype(int) - 1,
                entry["dtIgnore"][:, column].astype(bool),
            )
    assert set(theirs) == set(matches.order.tolist())
    for column, found in enumerate(matches.order.tolist()):
        np.testing.assert_array_equal(matches.taken[:, column], theirs[found][0])
        np.testing.assert_array_equal(matches.ignored[:, column], theirs[found][1])


@pytest.fixture(scope="module")
def example(real: Path) -> tuple[Truth, pd.DataFrame]:
    """COCO's own evaluation example."""
    folder = real / "coco_reference_pair"
    data = json.loads((folder / "instances_val2014_100.json").read_text())
    names = {entry["id"]: entry["name"] for entry in data["categories"]}
    boxes = {
        place: [entry["bbox"][place_index] for entry in data["annotations"]]
        for place_index, place in enumerate(("x", "y", "width", "height"))
    }
    tables = Tables(
        pd.DataFrame(
            {
                "split": "test",
                "image_id": [i["id"] for i in data["images"]],
                "width": [i["width"] for i in data["images"]],
                "height": [i["height"] for i in data["images"]],
            }
        ),
        pd.DataFrame(
            {
                "split": "test",
                **{
                    key: [entry[source] for entry in data["annotations"]]
                    for key, source in (
                        ("annotation_id", "id"),
                        ("image_id", "image_id"),
                        ("category_id", "category_id"),
                        ("area", "area"),
                    )
                },
                **boxes,
                "iscrowd": [bool(entry["iscrowd"]) for entry in data["annotations"]],
                "segmentation": [
                    json.dumps(entry["segmentation"]) for entry in data["annotations"]
                ],
            }
        ),
        pd.DataFrame({"split": "test", "category_id": list(names), "name": list(names.values())}),
    )
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    predictions = pd.DataFrame(
        {
            "image_id": [r["image_id"] for r in results],
            "name": [names[r["category_id"]] for r in results],
            "score": [r["score"] for r in results],
        }
    )
    predictions[["x", "y", "width", "height"]] = np.asarray([r["bbox"] for r in results])
    return truth_of(tables, "test", list(names.values())), predictions


def test_published_example(example: tuple[Truth, pd.DataFrame]) -> None:
    """The twelve figures that pycocotools' own example prints."""
    truth, predictions = example
    ours = score(truth, detections_of(predictions, truth))
    assert_equal(ours, pycoco(truth, predictions))
    published = [0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564]
    assert [round(value or 0, 3) for value in ours.table().values()] == published


def test_torchmetrics_agrees(example: tuple[Truth, pd.DataFrame]) -> None:
    """torchmetrics' own front end, fed as its users feed it: tensors, image by image."""
    import torch
    from torchmetrics.detection import MeanAveragePrecision

    truth, predictions = example
    found = detections_of(predictions, truth)
    metric = MeanAveragePrecision(
        box_format="xywh",
        backend="pycocotools",
        class_metrics=True,
        # its own are rounded to single precision: 0.001 of mAP here
        iou_thresholds=list(IOU_THRESHOLDS),
        rec_thresholds=list(RECALL_THRESHOLDS),
    )
    for image in range(len(truth.image_ids)):
        mine, its = found.image == image, truth.image == image
        metric.update(
            [
                {
                    "boxes": torch.tensor(found.boxes[mine]),
                    "scores": torch.tensor(found.score[mine]),
                    "labels": torch.tensor(found.label[mine]),
                }
            ],
            [
                {
                    "boxes": torch.tensor(truth.boxes[its]),
                    "labels": torch.tensor(truth.label[its]),
                    "iscrowd": torch.tensor(truth.crowd[its]).int(),
                    "area": torch.tensor(truth.area[its]),
                }
            ],
        )
    theirs = metric.compute()
    ours = score(truth, found)
    for key, value in ours.table().items():
        # torchmetrics keeps boxes and results in single precision
        assert float(theirs[key]) == pytest.approx(value, abs=1e-6), key
    classes = [truth.classes[int(label) - 1] for label in theirs["classes"]]
    for name, value in zip(classes, theirs["map_per_class"].tolist(), strict=True):
        assert value == pytest.approx(-1 if ours.ap(name) is None else ours.ap(name), abs=1e-6), (
            name
        )


def test_masks_equal_pycocotools() -> None:
    """Masks as rectangles cut by a diagonal: their IoU isn't their boxes'."""
    from pycocotools import mask

    truth, predictions = random_world(3, objects=40, found=120, crowds=0.15)

    def shape(box: np.ndarray) -> list[list[float]]:
        x, y, w, h = box.tolist()
        return [[x, y, x + w, y, x, y + h]]

    ours = [shape(box) for box in truth.boxes]
    segmentations = [
        s if not crowd else mask.merge(mask.frPyObjects(s, 480, 640))
        for s, crowd in zip(ours, truth.crowd, strict=True)
    ]
    texts = tuple(
        json.dumps(
            s if isinstance(s, list) else {"size": list(s["size"]), "counts": s["counts"].decode()}
        )
        for s in segmentations
    )
    area = np.array([float(mask.area(mask.merge(mask.frPyObjects(s, 480, 640)))) for s in ours])
    truth = replace(truth, segmentation=texts, area=area)
    found = [
        mask.merge(mask.frPyObjects(shape(box), 480, 640))
        for box in predictions[["x", "y", "width", "height"]].to_numpy()
    ]
    predictions["segmentation"] = [
        json.dumps({"size": list(rle["size"]), "counts": rle["counts"].decode()}) for rle in found
    ]
    theirs = pycoco(truth, predictions, "segm", (segmentations, found))
    detections = detections_of(predictions, truth)
    assert_equal(score(truth, detections, "segm"), theirs)
    assert score(truth, detections, "segm").ap() != score(truth, detections).ap()
    assessment = assess(truth, predictions, EvaluateParams(bootstrap=0))
    masks = (
        table_record({"test": {"finetuned": assessment}}, masks=True)
        .sets["test"]["finetuned"]
        .masks
    )
    assert masks is not None
    assert masks.map == pytest.approx(stats(theirs)[0], abs=1e-10)
    assert masks.classes["class 1"].ap_50 == score(truth, detections, "segm").ap("class 1", iou=0.5)


def test_masks_missing_are_named() -> None:
    truth, predictions = random_world(3)
    with pytest.raises(EvaluationError, match="masks: the predictions have boxes alone"):
        score(truth, detections_of(predictions, truth), "segm")
    predictions["segmentation"] = '{"size": [480, 640], "counts": ""}'
    with pytest.raises(
        EvaluationError, match=r"annotation 1, 2, 3, 4, 5 and others \(60\) has no segmentation"
    ):
        score(truth, detections_of(predictions, truth), "segm")


def test_class_without_objects_is_undefined() -> None:
    truth, predictions = random_world(1, empty_class=True)
    scores = score(truth, detections_of(predictions, truth))
    assert truth.objects["class 3"] == 0
    assert scores.ap("class 3") is None
    assert scores.ap() == pytest.approx(
        np.mean([scores.ap(f"class {index}") for index in range(3)]), abs=1e-12
    )
    with pytest.raises(
        EvaluationError, match="class 'tree': not evaluated here; evaluated are class 0"
    ):
        scores.ap("tree")


def test_one_box_by_hand() -> None:
    """One object, found at IoU 2/3 below a stray detection: precision 1/2 at each recall, at the
    four thresholds up to 0.65.
    """
    truth, _ = random_world(0, images=1, objects=1, classes=1, crowds=0.0)
    truth = replace(truth, boxes=np.array([[0.0, 0.0, 10.0, 10.0]]), area=np.array([100.0]))
    rows = [(0.9, 300.0, 300.0, 10.0, 10.0), (0.8, 0.0, 2.0, 10.0, 10.0)]
    predictions = pd.DataFrame(
        [
            {
                "image_id": truth.image_ids[0],
                "name": "class 0",
                "score": s,
                "x": x,
                "y": y,
                "width": w,
                "height": h,
            }
            for s, x, y, w, h in rows
        ]
    )
    scores = score(truth, detections_of(predictions, truth))
    assert scores.ap("class 0", iou=0.5) == pytest.approx(0.5, abs=1e-12)
    assert scores.ap("class 0", iou=0.75) == 0.0
    assert scores.ap("class 0") == pytest.approx(0.5 * 4 / 10, abs=1e-12)
    assert scores.ap("class 0", area="small") == pytest.approx(0.5 * 4 / 10, abs=1e-12)
    assert scores.ap("class 0", area="large") is None


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("score", np.nan, r"predictions: row 4 .*score nan.*1 such rows"),
        ("x", np.inf, r"row 4 \(image \d+\): score .*box \[inf"),
        ("width", -1.0, "no negative width or height"),
        ("image_id", 99_999, "image id 99999: not among the 12 images of the ground truth"),
    ],
    ids=["nan score", "infinite x", "negative width", "unknown image"],
)
def test_unsound_predictions_are_refused(column: str, value: float, message: str) -> None:
    truth, predictions = random_world(5)
    predictions.loc[4, column] = value
    with pytest.raises(EvaluationError, match=message):
        detections_of(predictions, truth)


def test_missing_column_is_named() -> None:
    truth, predictions = random_world(5)
    with pytest.raises(
        EvaluationError, match="predictions of grafted on test: no column score; found image_id"
    ):
        detections_of(
            predictions.drop(columns="score"), truth, what="predictions of grafted on test"
        )


def test_unknown_class_is_left_out() -> None:
    truth, predictions = random_world(5)
    other = predictions.assign(name="tree")
    assert len(detections_of(pd.concat([predictions, other]), truth)) == len(predictions)
