"""Error kinds, confusion, calibration, thresholds: by hand, by hotcoco's TIDE, and by their own
definition.
"""

import hotcoco
import numpy as np
import pandas as pd
import pytest

from evaluation.worlds import random_world
from topwork.evaluation.calibration import expected_error, reliability
from topwork.evaluation.confusion import confident, confusion
from topwork.evaluation.images import image_f1
from topwork.evaluation.mistakes import KINDS, find_mistakes, worst_images
from topwork.metrics.coco import _datasets, score
from topwork.metrics.curves import best_threshold
from topwork.metrics.matching import Matches, match
from topwork.metrics.truth import Truth, detections_of

CLASSES = ("person", "helmet")


def scene(
    objects: list[tuple[int, str, tuple[float, ...]]],
    found: list[tuple[int, str, float, tuple[float, ...]]],
    crowd: tuple[int, ...] = (),
) -> Matches:
    """A scene by hand: (image, class, box) and (image, class, score, box)."""
    truth = Truth(
        classes=CLASSES,
        image_ids=np.array([5, 9]),
        sizes=np.array([[200, 200], [200, 200]]),
        image=np.array([i for i, *_ in objects]),
        label=np.array([CLASSES.index(c) + 1 for _, c, _ in objects]),
        boxes=np.array([b for *_, b in objects], dtype=float),
        area=np.array([b[2] * b[3] for *_, b in objects], dtype=float),
        crowd=np.isin(np.arange(len(objects)), crowd),
        annotation_ids=np.arange(len(objects)),
        segmentation=(None,) * len(objects),
    )
    table = pd.DataFrame(
        [
            {
                "image_id": truth.image_ids[i],
                "name": c,
                "score": s,
                **dict(zip(("x", "y", "width", "height"), map(float, b), strict=True)),
            }
            for i, c, s, b in found
        ],
        columns=["image_id", "name", "score", "x", "y", "width", "height"],
    )
    return match(truth, detections_of(table.astype({"image_id": "int64"}), truth))


PERSON, HELMET, LOST = (
    (0.0, 0.0, 100.0, 100.0),
    (150.0, 0.0, 20.0, 20.0),
    (150.0, 150.0, 40.0, 40.0),
)


@pytest.fixture
def all_kinds() -> Matches:
    """One mistake of each kind next to one true detection, in falling order of score."""
    return scene(
        [(0, "person", PERSON), (0, "helmet", HELMET), (0, "person", LOST), (1, "person", PERSON)],
        [
            (0, "person", 0.9, PERSON),  # true
            (0, "person", 0.8, (0.0, 0.0, 100.0, 90.0)),  # duplicate
            (0, "person", 0.7, (150.0, 0.0, 20.0, 19.0)),  # class: it's the helmet
            (1, "person", 0.6, (0.0, 0.0, 100.0, 40.0)),  # localisation: IoU 0.4
            (0, "helmet", 0.5, (0.0, 0.0, 100.0, 30.0)),  # both: a helmet, IoU 0.3 with a person
            (1, "helmet", 0.4, (150.0, 150.0, 20.0, 20.0)),  # background
        ],
    )


def test_every_kind_by_hand(all_kinds: Matches) -> None:
    mistakes = find_mistakes(all_kinds)
    assert mistakes.counts() == dict.fromkeys(KINDS, 1)
    kinds = {
        round(float(s), 1): KINDS[k]
        for s, k in zip(all_kinds.score, mistakes.kind, strict=True)
        if k < len(KINDS)
    }
    assert kinds == {
        0.8: "duplicate",
        0.7: "class",
        0.6: "localisation",
        0.5: "both",
        0.4: "background",
    }
    assert np.flatnonzero(mistakes.missed).tolist() == [2]
    assert mistakes.counts(1) == {
        "localisation": 1,
        "class": 1,
        "both": 0,
        "duplicate": 1,
        "background": 0,
        "missed": 1,
    }
    assert mistakes.counts(2) == {
        "localisation": 0,
        "class": 0,
        "both": 1,
        "duplicate": 0,
        "background": 1,
        "missed": 0,
    }


def test_costs_by_hand(all_kinds: Matches) -> None:
    """Person: 3 objects, the first detection true: recall 1/3, 34 of 101 recalls, AP 34/101.

    Helmet: 0. Mean: 17/101.
    """
    mistakes = find_mistakes(all_kinds)
    assert mistakes.ap_50 == pytest.approx(17 / 101)
    costs = mistakes.costs()
    # localisation: its detection, fourth of four, is true: precision 2/4 from recall 34/101 to
    # 67/101: 67 recalls reached
    assert costs["localisation"] == pytest.approx((34 + 33 / 2) / 101 / 2 - 17 / 101)
    # class: the helmet is found first of all helmets (0.7 > 0.5 > 0.4): AP 1
    assert costs["class"] == pytest.approx(0.5)
    # missed: 2 objects are asked for: recall 1/2, 51 of 101 recalls
    assert costs["missed"] == pytest.approx((51 - 34) / 101 / 2)
    assert costs["duplicate"] == costs["both"] == costs["background"] == 0


@pytest.mark.parametrize("seed", range(6))
def test_shares_add_up(seed: int) -> None:
    truth, predictions = random_world(
        seed, crowds=0.1, images=6, classes=3, empty_class=seed % 2 == 0
    )
    mistakes = find_mistakes(match(truth, detections_of(predictions, truth)))
    shares = mistakes.shares()
    assert mistakes.ap_50 is not None
    assert sum(value or 0 for value in shares.values()) == pytest.approx(
        1 - mistakes.ap_50, abs=1e-12
    )
    assert mistakes.fixed(KINDS) == pytest.approx(1, abs=1e-12)
    assert all((value or 0) > -1e-12 for value in shares.values())


@pytest.mark.parametrize("seed", range(6))
def test_kinds_agree_with_hotcoco(seed: int) -> None:
    """hotcoco's TIDE is an independent implementation of the same kinds and single fixes."""
    truth, predictions = random_world(seed, crowds=0.0, images=6, classes=3)
    found = detections_of(predictions, truth)
    evaluation = hotcoco.COCOeval(*_datasets(truth, found, "bbox"), "bbox")
    evaluation.evaluate()
    theirs = evaluation.tide_errors(pos_thr=0.5, bg_thr=0.1)
    mistakes = find_mistakes(match(truth, found))
    names = {
        "localisation": "Loc",
        "class": "Cls",
        "both": "Both",
        "duplicate": "Dupe",
        "background": "Bkg",
        "missed": "Miss",
    }
    assert mistakes.ap_50 == pytest.approx(score(truth, found).ap(iou=0.5), abs=1e-10)
    assert mistakes.ap_50 == pytest.approx(theirs["ap_base"], abs=1e-10)
    assert {names[kind]: count for kind, count in mistakes.counts().items()} == theirs["counts"]
    for kind, cost in mistakes.costs().items():
        assert cost == pytest.approx(theirs["delta_ap"][names[kind]], abs=1e-10), kind


def test_worst_images_by_hand(all_kinds: Matches) -> None:
    mistakes = find_mistakes(all_kinds)
    worst = worst_images(mistakes, "background")
    assert [(image.image_id, image.count, round(image.weight, 3)) for image in worst] == [
        (9, 1, 0.4)
    ]
    assert [
        (image.image_id, image.count, image.weight) for image in worst_images(mistakes, "missed")
    ] == [(5, 1, 1.0)]
    confident_only = find_mistakes(all_kinds, all_kinds.score >= 0.65)
    assert worst_images(confident_only, "background") == []
    # without the detection meant for it, the person of the second image is missed, too
    assert [image.image_id for image in worst_images(confident_only, "missed")] == [5, 9]


def test_confusion_by_hand(all_kinds: Matches) -> None:
    table = confusion(all_kinds, np.ones(len(all_kinds), dtype=bool))
    cells = {
        (row.actual, row.predicted): row.count for row in table.itertuples(index=False, name="Row")
    }
    cells = {
        key: int(value)
        for key, value in zip(
            zip(table["actual"], table["predicted"], strict=True), table["count"], strict=True
        )
    }
    assert cells == {
        ("person", "person"): 1,
        ("helmet", "person"): 1,
        ("person", "background"): 2,
        ("background", "person"): 2,
        ("background", "helmet"): 2,
    }


@pytest.mark.parametrize("seed", range(4))
def test_confusion_agrees_with_hotcoco(seed: int) -> None:
    truth, predictions = random_world(seed, crowds=0.0, images=8, classes=3)
    found = detections_of(predictions, truth)
    matrix = hotcoco.COCOeval(*_datasets(truth, found, "bbox"), "bbox").confusion_matrix(
        iou_thr=0.5, max_det=10_000, min_score=0.4
    )["matrix"]
    matches = match(truth, found)
    table = confusion(matches, matches.score >= 0.4)
    names = [*truth.classes, "background"]
    ours = np.zeros_like(matrix)
    for actual, predicted, count in zip(
        table["actual"], table["predicted"], table["count"], strict=True
    ):
        ours[names.index(actual), names.index(predicted)] = count
    np.testing.assert_array_equal(ours, matrix)


def test_crowd_takes_without_blame() -> None:
    matches = scene(
        [(0, "person", PERSON), (1, "person", PERSON)],
        [
            (0, "person", 0.9, PERSON),
            (1, "person", 0.8, PERSON),
            (1, "person", 0.7, (10.0, 10.0, 20.0, 20.0)),
        ],
        crowd=(1,),
    )
    assert sum(find_mistakes(matches).counts().values()) == 0
    assert confusion(matches, np.ones(3, dtype=bool)).to_dict("records") == [
        {"actual": "person", "predicted": "person", "count": 1}
    ]
    assert expected_error(matches) == pytest.approx(0.1)


def test_threshold_by_hand(all_kinds: Matches) -> None:
    """Person: 3 objects; after each detection F1 = 2/4, 2/5, 2/6, 2/7."""
    best = best_threshold(all_kinds, 1)
    assert (best.threshold, best.f1, best.precision, best.recall) == (
        0.9,
        0.5,
        1.0,
        pytest.approx(1 / 3),
    )
    nothing = best_threshold(all_kinds, 2)
    assert (nothing.threshold, nothing.f1, nothing.recall) == (None, None, 0.0)
    kept = confident(all_kinds, {"person": 0.65, "helmet": None})
    assert sorted(all_kinds.score[kept].tolist()) == [0.5, 0.7, 0.8, 0.9]


def test_threshold_takes_equal_scores_together() -> None:
    """Two detections of score 0.5, one true: no threshold separates them."""
    matches = scene([(0, "person", PERSON)], [(0, "person", 0.5, PERSON), (0, "person", 0.5, LOST)])
    best = best_threshold(matches, 1)
    assert (best.threshold, best.precision, best.recall) == (0.5, 0.5, 1.0)


def test_threshold_is_the_best_of_all() -> None:
    truth, predictions = random_world(11, ties=True, images=5, classes=2)
    matches = match(truth, detections_of(predictions, truth))
    for label in (1, 2):
        where = matches.of(label)
        counted = ~matches.ignored[0, where]
        true, scores = matches.true[0, where][counted], matches.score[where][counted]
        objects = int(np.sum((truth.label == label) & ~truth.crowd))
        f1 = {
            t: 2 * true[scores >= t].sum() / ((scores >= t).sum() + objects)
            for t in np.unique(scores)
        }
        best = best_threshold(matches, label)
        assert best.f1 == pytest.approx(max(f1.values()))
        assert f1[best.threshold] == pytest.approx(best.f1)


def test_reliability_by_hand(all_kinds: Matches) -> None:
    """Six detections in bins of 0.1; one is true (0.9): gaps 0.1, 0.8, 0.7, 0.6, 0.5, 0.4."""
    table = reliability(all_kinds)
    assert table["count"].sum() == 6
    assert table["precision"].tolist() == [0.0] * (len(table) - 1) + [1.0]
    assert expected_error(all_kinds) == pytest.approx((0.1 + 0.8 + 0.7 + 0.6 + 0.5 + 0.4) / 6)
    assert expected_error(all_kinds, 2) == pytest.approx(0.45)


def test_nothing_detected() -> None:
    matches = scene([(0, "person", PERSON)], [])
    mistakes = find_mistakes(matches)
    assert mistakes.counts()["missed"] == 1
    assert mistakes.shares()["missed"] == pytest.approx(1.0)
    assert expected_error(matches) is None
    assert reliability(matches).empty
    assert confusion(matches, np.zeros(0, dtype=bool)).to_dict("records") == [
        {"actual": "person", "predicted": "background", "count": 1}
    ]


def test_f1_of_images_by_hand(all_kinds: Matches) -> None:
    """First image: one hit of 3 objects and 4 detections: 2/7; second: no hit of 1 and 2."""
    everything = np.ones(len(all_kinds), dtype=bool)
    assert image_f1(all_kinds, everything).tolist() == [pytest.approx(2 / 7), 0.0]
    assert image_f1(all_kinds, all_kinds.score >= 0.65).tolist() == [pytest.approx(2 / 6), 0.0]


def test_f1_of_an_image_with_nothing_is_one() -> None:
    matches = scene([(0, "person", PERSON)], [])
    assert image_f1(matches, np.zeros(0, dtype=bool)).tolist() == [0.0, 1.0]
    stray = scene([(0, "person", PERSON)], [(1, "person", 0.9, PERSON)])
    assert image_f1(stray, np.ones(1, dtype=bool)).tolist() == [0.0, 0.0]


def test_f1_of_an_image_leaves_out_crowds() -> None:
    inside = (10.0, 10.0, 20.0, 20.0)
    matches = scene([(0, "person", PERSON)], [(0, "person", 0.9, inside)], crowd=(0,))
    assert image_f1(matches, np.ones(1, dtype=bool)).tolist() == [1.0, 1.0]
