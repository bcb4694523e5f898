"""Confidence intervals: average precision resampled over images.

A resample draws as many images as there are, with replacement; an image drawn twice counts twice.
Images are matched once (`matching.match`): a resample only gives them weights, so that hundreds
cost what a few evaluations do. With all weights 1 the result is COCO's AP itself.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
"""

import numpy as np
from numpy.typing import NDArray

from topwork.metrics.coco import RECALL_THRESHOLDS
from topwork.metrics.matching import Matches

_CHUNK_CELLS = 8_000_000
"""Resamples x detections handled together: bounds the memory to about 0.3 GiB."""

Interval = tuple[float, float]


def draw_weights(images: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """How often each image is drawn, int64[resamples, images]; the same seed gives the same draws
    for every model on a set.
    """
    generator = np.random.default_rng(seed)
    weights = np.zeros((resamples, images), dtype=np.int64)
    for row in weights:
        row += np.bincount(generator.integers(0, images, images), minlength=images) if images else 0
    return weights


def weighted_ap(matches: Matches, label: int, weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Average precision of one class for each row of image weights.

    Args:
        matches: the matches of one set of predictions.
        label: the class.
        weights: int64[B, I], how often each image counts.

    Returns:
        float64[B]; NaN where no object of the class is drawn.
    """
    truth = matches.truth
    objects = (truth.label == label) & ~truth.crowd
    total = weights @ np.bincount(truth.image[objects], minlength=len(truth.image_ids))  # (B,)
    where = matches.of(label)
    result = np.empty(len(weights))
    step = max(1, _CHUNK_CELLS // max(1, where.stop - where.start))
    for start in range(0, len(weights), step):
        rows = slice(start, start + step)
        # (b, D): detections up to here, all of them
        counted = np.cumsum(weights[rows][:, matches.image[where]], axis=1)
        by_threshold = [
            _interpolated(
                matches.true[t, where],
                matches.ignored[t, where],
                counted,
                weights[rows],
                matches.image[where],
                total[rows],
            )
            for t in range(len(matches.thresholds))
        ]
        result[rows] = np.mean(by_threshold, axis=0)
    result[total == 0] = np.nan
    return result


def _interpolated(
    true: NDArray[np.bool_],
    ignored: NDArray[np.bool_],
    counted: NDArray[np.int64],
    weights: NDArray[np.int64],
    image: NDArray[np.int64],
    total: NDArray[np.int64],
) -> NDArray[np.float64]:
    """COCO's mean of interpolated precision at 101 recalls; precision only matters where a true
    detection raises the recall.
    """
    hits = np.flatnonzero(true)
    if not len(hits):
        return np.zeros(len(weights))
    # (b, H): true detections up to each true one
    found = np.cumsum(weights[:, image[hits]], axis=1)
    so_far = counted[:, hits]
    if ignored.any():
        lost = np.flatnonzero(ignored)
        gone = np.pad(np.cumsum(weights[:, image[lost]], axis=1), ((0, 0), (1, 0)))
        so_far = so_far - gone[:, np.searchsorted(lost, hits)]
    precision = found / (so_far + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = found / np.maximum(total, 1)[:, None]
    padded = np.pad(envelope, ((0, 0), (0, 1)))  # recall never reached: precision 0
    means = [
        row[np.searchsorted(reached, RECALL_THRESHOLDS, side="left")].mean()
        for row, reached in zip(padded, recall, strict=True)
    ]
    return np.asarray(means)


def interval(values: NDArray[np.float64], confidence: float) -> Interval | None:
    """Percentile interval that covers the true figure with this confidence.

    Args:
        values: resampled figures; undefined ones (NaN) are left out.
        confidence: 0.95, say.

    Returns:
        Lower and upper end; None with fewer than 20 defined resamples.
    """
    defined = values[np.isfinite(values)]
    if len(defined) < 20:
        return None
    low, high = np.quantile(defined, ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(low), float(high)
