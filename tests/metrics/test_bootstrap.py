"""Intervals: equal to COCO at weight 1, equal to a data set written out, and covering what they
claim to.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from evaluation.worlds import random_world
from topwork.evaluation.retention import ratio_interval
from topwork.metrics.bootstrap import (
    draw_weights,
    interval,
    weighted_ap,
)
from topwork.metrics.coco import score
from topwork.metrics.matching import match
from topwork.metrics.truth import Truth, detections_of


@pytest.mark.parametrize(
    "case",
    [{}, {"crowds": 0.4}, {"ties": True, "grid": 16.0}, {"found": 0}, {"images": 1}],
    ids=["plain", "crowds", "ties", "nothing found", "one image"],
)
def test_weight_one_is_coco(case: dict[str, object]) -> None:
    truth, predictions = random_world(2, **case)  # type: ignore[arg-type]
    found = detections_of(predictions, truth)
    matches, scores = match(truth, found), score(truth, found)
    ones = np.ones((1, len(truth.image_ids)), dtype=np.int64)
    for label, name in enumerate(truth.classes, start=1):
        if truth.objects[name]:
            assert weighted_ap(matches, label, ones)[0] == pytest.approx(scores.ap(name), abs=1e-10)


def written_out(
    truth: Truth, predictions: pd.DataFrame, weights: np.ndarray
) -> tuple[Truth, pd.DataFrame]:
    """A data set in which an image stands as often as its weight says."""
    image = np.repeat(np.arange(len(weights)), weights)
    objects = [np.flatnonzero(truth.image == index) for index in image]
    rows = np.concatenate(objects)
    place = np.repeat(np.arange(len(image)), [len(part) for part in objects])
    bigger = replace(
        truth,
        image_ids=np.arange(len(image)),
        sizes=truth.sizes[image],
        image=place,
        label=truth.label[rows],
        boxes=truth.boxes[rows],
        area=truth.area[rows],
        crowd=truth.crowd[rows],
        annotation_ids=np.arange(len(rows)),
        segmentation=(None,) * len(rows),
    )
    parts = [
        predictions[predictions["image_id"] == truth.image_ids[index]].assign(image_id=number)
        for number, index in enumerate(image)
    ]
    return bigger, pd.concat(parts, ignore_index=True)


def test_weights_are_copies() -> None:
    """Each resample equals COCO's evaluation of a set in which the drawn images are written out."""
    truth, predictions = random_world(4, crowds=0.2)
    matches = match(truth, detections_of(predictions, truth))
    weights = draw_weights(len(truth.image_ids), 5, seed=1)
    assert weights.sum(axis=1).tolist() == [12] * 5
    ours = [weighted_ap(matches, label, weights) for label in range(1, 5)]
    for row, drawn in enumerate(weights):
        bigger, table = written_out(truth, predictions, drawn)
        scores = score(bigger, detections_of(table, bigger))
        for label, name in enumerate(truth.classes):
            expected = scores.ap(name)
            assert ours[label][row] == pytest.approx(
                np.nan if expected is None else expected, abs=1e-10, nan_ok=True
            )


def test_draws_repeat() -> None:
    np.testing.assert_array_equal(draw_weights(30, 7, seed=3), draw_weights(30, 7, seed=3))
    assert (draw_weights(30, 7, seed=3) != draw_weights(30, 7, seed=4)).any()


def test_interval_by_hand() -> None:
    values = np.r_[np.arange(101) / 100, np.nan]
    assert interval(values, 0.9) == (pytest.approx(0.05), pytest.approx(0.95))
    assert interval(values[:10], 0.9) is None
    assert interval(np.full(30, np.nan), 0.9) is None


def test_paired_interval_is_narrow() -> None:
    """Two models that fail on the same images: their ratio is surer than either figure."""
    random = np.random.default_rng(1)
    before = random.uniform(0.3, 0.7, 500)
    low, high = ratio_interval(before * random.normal(0.9, 0.005, 500), before, 0.95) or (0, 0)
    assert (low, high) == (pytest.approx(0.89, abs=0.003), pytest.approx(0.91, abs=0.003))
    assert ratio_interval(before, np.zeros(500), 0.95) is None


def population(
    random: np.random.Generator, images: int, skill: float = 0.0
) -> tuple[Truth, pd.DataFrame]:
    """Images of one world: easy and hard ones, one class, 1 to 6 objects each, and false
    detections.
    """
    ease = random.beta(4, 2, images)
    counts = random.integers(1, 7, images)
    image = np.repeat(np.arange(images), counts)
    objects = len(image)
    boxes = np.hstack([random.uniform(0, 500, (objects, 2)), random.uniform(20, 100, (objects, 2))])
    truth = Truth(
        classes=("person",),
        image_ids=np.arange(images),
        sizes=np.full((images, 2), 640),
        image=image,
        label=np.ones(objects, dtype=np.int64),
        boxes=boxes,
        area=boxes[:, 2] * boxes[:, 3],
        crowd=np.zeros(objects, dtype=bool),
        annotation_ids=np.arange(objects),
        segmentation=(None,) * objects,
    )
    hit = random.random(objects) < ease[image] + skill
    shake = random.normal(0, 0.08, (objects, 2)) * (1.3 - ease[image])[:, None]
    near = boxes[hit] + np.hstack([shake * boxes[:, 2:], np.zeros((objects, 2))])[hit]
    strays = random.poisson(2.0 * (1 - ease))
    stray_image = np.repeat(np.arange(images), strays)
    stray = np.hstack(
        [
            random.uniform(0, 500, (len(stray_image), 2)),
            random.uniform(20, 100, (len(stray_image), 2)),
        ]
    )
    found = np.vstack([near, stray])
    table = pd.DataFrame(
        {
            "image_id": np.r_[image[hit], stray_image],
            "name": "person",
            "score": np.r_[random.beta(4, 2, hit.sum()), random.beta(2, 4, len(stray_image))],
        }
    )
    table[["x", "y", "width", "height"]] = found
    return truth, table


def coverage(
    trials: int, images: int, resamples: int, confidence: float = 0.9
) -> tuple[float, float, float]:
    """Share of simulated test sets whose interval holds the true AP, and the shares that miss it
    above and below.
    """
    random = np.random.default_rng(0)
    truth, table = population(random, 20_000)
    true_ap = float(
        weighted_ap(
            match(truth, detections_of(table, truth)), 1, np.ones((1, 20_000), dtype=np.int64)
        )[0]
    )
    low_miss = high_miss = 0
    for trial in range(trials):
        truth, table = population(random, images)
        matches = match(truth, detections_of(table, truth))
        values = weighted_ap(matches, 1, draw_weights(images, resamples, seed=trial))
        low, high = interval(values, confidence) or (0, 1)
        low_miss += true_ap < low
        high_miss += true_ap > high
    return 1 - (low_miss + high_miss) / trials, low_miss / trials, high_miss / trials


@pytest.mark.long
def test_coverage_by_simulation() -> None:
    """Test sets of 60 images drawn from a world whose AP is known: intervals of 90% hold it 86 to
    94% of the time.
    """
    covered, _, _ = coverage(trials=400, images=60, resamples=200)
    assert 0.86 <= covered <= 0.94


def test_coverage_in_short() -> None:
    """As above with fewer trials: gross errors show (the standard error is 0.03)."""
    covered, _, _ = coverage(trials=80, images=40, resamples=100)
    assert 0.8 <= covered <= 0.99
