"""Which detection found which object: COCO's greedy matching, for all images, classes and IoU
thresholds at once.

hotcoco gives the metrics; what it can't give fast is the matches themselves, which intervals, error
kinds, curves and calibration are made of. The rule is pycocotools': best score first, at most 100
an image and class; a detection takes the free object of its class that it overlaps most (of equals
the last), else a crowd; what a crowd took isn't counted. Only pairs that overlap are
looked at, and detections of the same rank in all images and classes are matched together.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from topwork.metrics.coco import IOU_THRESHOLDS
from topwork.metrics.truth import Detections, Truth

MAX_DETECTIONS = 100
_CHUNK_PAIRS = 4_000_000
"""Pairs looked at together: bounds the memory to about 0.5 GiB."""


@dataclass(frozen=True)
class Pairs:
    """Detections and objects of one image that overlap, classes not yet looked at.

    Attributes:
        detection: int64[P], index into `order` (not into the detections as given).
        object: int64[P], index of the annotation.
        iou: float64[P]; for a crowd the share of the detection that lies in it.
    """

    detection: NDArray[np.int64]
    object: NDArray[np.int64]
    iou: NDArray[np.float64]


@dataclass(frozen=True)
class Matches:
    """The matches of one set of predictions.

    Attributes:
        truth: the ground truth.
        order: int64[D], the detections that count (100 best an image and class): by class, then by
            score from high to low, of equal scores by image; everything below stands in this order.
        image: int64[D], index of the image.
        label: int64[D].
        score: float64[D].
        thresholds: the IoU thresholds.
        taken: int64[T, D], index of the annotation found, or -1.
        ignored: bool[T, D], a crowd took it.
        pairs: what overlaps by 0.1 or more.
    """

    truth: Truth
    order: NDArray[np.int64]
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    score: NDArray[np.float64]
    thresholds: tuple[float, ...]
    taken: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    pairs: Pairs

    def __len__(self) -> int:
        return len(self.order)

    @property
    def true(self) -> NDArray[np.bool_]:
        """bool[T, D]: the detection found an object."""
        return (self.taken >= 0) & ~self.ignored

    def of(self, label: int) -> slice:
        """Where the detections of a class are."""
        return slice(
            int(np.searchsorted(self.label, label)),
            int(np.searchsorted(self.label, label, side="right")),
        )


def match(
    truth: Truth,
    detections: Detections,
    thresholds: tuple[float, ...] = IOU_THRESHOLDS,
    least_iou: float = 0.1,
) -> Matches:
    """Match boxes of detections and objects as pycocotools does, objects of all sizes.

    Args:
        truth: the ground truth.
        detections: the predictions.
        thresholds: IoU thresholds, rising.
        least_iou: pairs that overlap by less aren't kept in `Matches.pairs`; at most the lowest
            threshold.
    """
    order = _ranked(detections)
    kept = detections.keep(order)
    pairs = _box_pairs(truth, kept, least_iou)
    taken, ignored = _greedy(truth, kept, pairs, thresholds)
    return Matches(
        truth, order, kept.image, kept.label, kept.score, thresholds, taken, ignored, pairs
    )


def _ranked(detections: Detections) -> NDArray[np.int64]:
    """Detections that count, by class and falling score; of equal scores the earlier image, then
    the earlier row, comes first.
    """
    # stable, as pycocotools' mergesort is
    by_image = np.lexsort((-detections.score, detections.image, detections.label))
    group = (
        detections.label[by_image] * (int(detections.image.max(initial=0)) + 1)
        + detections.image[by_image]
    )
    counted = by_image[_rank_in(group) < MAX_DETECTIONS]
    return counted[np.lexsort((-detections.score[counted], detections.label[counted]))]


def _rank_in(group: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, 2... within each run of equal values."""
    if not len(group):
        return np.zeros(0, dtype=np.int64)
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    return np.arange(len(group)) - np.repeat(starts, np.diff(np.r_[starts, len(group)]))


def _box_pairs(truth: Truth, kept: Detections, least_iou: float) -> Pairs:
    by_image = np.argsort(truth.image, kind="stable")
    first = np.searchsorted(truth.image[by_image], np.arange(len(truth.image_ids) + 1))
    counts = (first[1:] - first[:-1])[kept.image]  # objects that each detection could have found
    ends = np.cumsum(counts)
    found = []
    start = 0
    while start < len(kept):
        stop = max(
            start + 1,
            int(
                np.searchsorted(
                    ends, (ends[start - 1] if start else 0) + _CHUNK_PAIRS, side="right"
                )
            ),
        )
        chunk = np.arange(start, stop)
        detection = np.repeat(chunk, counts[chunk])
        within = np.arange(len(detection)) - np.repeat(
            np.cumsum(counts[chunk]) - counts[chunk], counts[chunk]
        )
        thing = by_image[np.repeat(first[kept.image[chunk]], counts[chunk]) + within]
        iou = box_iou(kept.boxes[detection], truth.boxes[thing], truth.crowd[thing])
        near = iou >= least_iou
        found.append((detection[near], thing[near], iou[near]))
        start = stop
    return _joined(found)


def box_iou(
    found: NDArray[np.float64], things: NDArray[np.float64], crowd: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """IoU of pairs of COCO boxes, float64[P, 4] each; for a crowd, intersection over the detection.

    Bit-equal to pycocotools.
    """
    corner = np.maximum(found[:, :2], things[:, :2])
    size = np.minimum(found[:, 2:] + found[:, :2], things[:, 2:] + things[:, :2]) - corner
    shared = np.where((size > 0).all(axis=1), size[:, 0] * size[:, 1], 0.0)
    own = found[:, 2] * found[:, 3]
    union = np.where(crowd, own, own + things[:, 2] * things[:, 3] - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def _joined(found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]) -> Pairs:
    if not found:
        return Pairs(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))
    detection, thing, iou = (np.concatenate(field) for field in zip(*found, strict=True))
    return Pairs(detection.astype(np.int64), thing.astype(np.int64), iou)


def _greedy(
    truth: Truth, kept: Detections, pairs: Pairs, thresholds: tuple[float, ...]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Matches of all images and classes, rank by rank: detections of one rank never want the same
    object.
    """
    taken = np.full((len(thresholds), len(kept)), -1, dtype=np.int64)
    ignored = np.zeros((len(thresholds), len(kept)), dtype=np.bool_)
    limits = np.minimum(thresholds, 1 - 1e-10)
    same = (kept.label[pairs.detection] == truth.label[pairs.object]) & (
        pairs.iou >= limits.min(initial=1.0)
    )
    detection, thing, iou = pairs.detection[same], pairs.object[same], pairs.iou[same]
    if not len(detection):
        return taken, ignored
    # Rank among the detections of one image and class that overlap anything: the others take
    # nothing.
    wanting = np.unique(detection)  # in order of class and falling score
    group = kept.label[wanting] * len(truth.image_ids) + kept.image[wanting]
    by_group = np.argsort(group, kind="stable")
    rank = np.empty(len(wanting), dtype=np.int64)
    rank[by_group] = _rank_in(group[by_group])
    pair_rank = rank[np.searchsorted(wanting, detection)]
    # By rank, then detection, then preference: objects before crowds, more overlap first, of equals
    # the last.
    crowd = truth.crowd[thing]
    best_first = np.lexsort((-thing, -iou, crowd, detection, pair_rank))
    detection, thing, iou, crowd, pair_rank = (
        field[best_first] for field in (detection, thing, iou, crowd, pair_rank)
    )
    free = np.ones((len(thresholds), len(truth)), dtype=np.bool_)
    bounds = np.searchsorted(pair_rank, np.arange(int(pair_rank[-1]) + 2))
    for start, stop in pairwise(bounds):
        d, g = detection[start:stop], thing[start:stop]
        able = (free[:, g] | crowd[start:stop]) & (iou[start:stop] >= limits[:, None])
        starts = np.flatnonzero(np.r_[True, d[1:] != d[:-1]])
        place = np.where(able, np.arange(len(d)), len(d))
        # (T, detections of this rank): best pair that is able
        first = np.minimum.reduceat(place, starts, axis=1)
        row, column = np.nonzero(first < len(d))
        pair = first[row, column]
        taken[row, d[pair]] = g[pair]
        ignored[row, d[pair]] = crowd[start:stop][pair]
        free[row, g[pair]] = False
    return taken, ignored
