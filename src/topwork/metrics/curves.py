"""Curves for `dvc plots` and the report: precision against recall, F1 against the score
threshold.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from topwork.metrics.coco import RECALL_THRESHOLDS, Scores
from topwork.metrics.matching import Matches


@dataclass(frozen=True)
class BestThreshold:
    """The score threshold at which a class's F1 is highest.

    Attributes:
        threshold: detections of this score or more are taken; None for a class without objects or
            without true detections.
        f1: at that threshold.
        precision: at that threshold.
        recall: at that threshold.
    """

    threshold: float | None
    f1: float | None
    precision: float | None
    recall: float | None


def f1_score(
    true: NDArray[np.int64], detections: NDArray[np.int64], objects: NDArray[np.int64] | int
) -> NDArray[np.float64]:
    """F1: the harmonic mean of precision and recall; 1 where there's neither a detection nor an
    object.

    Args:
        true: how many detections found an object.
        detections: how many there are.
        objects: how many there are to find.
    """
    total = np.asarray(detections + objects, dtype=np.float64)
    return np.divide(2 * true, total, out=np.ones_like(total), where=total > 0)


def best_threshold(matches: Matches, label: int) -> BestThreshold:
    """Score threshold that maximises F1 of one class at IoU 0.5, the matches' first threshold; of
    equals the highest score.

    F1 counts only at the end of a run of equal scores: a threshold takes all of them or none.
    """
    where = matches.of(label)
    objects = int(np.sum((matches.truth.label == label) & ~matches.truth.crowd))
    counted = ~matches.ignored[0, where]
    true, score = matches.true[0, where][counted], matches.score[where][counted]
    if not objects or not true.any():
        return BestThreshold(
            None, None, 0.0 if objects and len(true) else None, 0.0 if objects else None
        )
    found, taken = np.cumsum(true, dtype=np.int64), np.arange(1, len(true) + 1)
    f1 = f1_score(found, taken, objects)
    f1[:-1][score[:-1] == score[1:]] = -1.0
    best = int(np.argmax(f1))
    return BestThreshold(
        float(score[best]),
        float(f1[best]),
        float(found[best] / taken[best]),
        float(found[best] / objects),
    )


def pr_curves(scores: Scores) -> pd.DataFrame:
    """Interpolated precision at 101 recalls, a row a class and recall.

    Returns:
        class, recall, precision_50 (at IoU 0.5), precision (mean over IoU 0.5 to 0.95); classes
        without objects are left out.
    """
    parts = []
    for index, name in enumerate(scores.classes):
        curve: NDArray[np.float64] = scores.precision[:, :, index, 0, -1]
        if (curve < 0).any():
            continue
        parts.append(
            pd.DataFrame(
                {
                    "class": name,
                    "recall": RECALL_THRESHOLDS,
                    "precision_50": curve[0],
                    "precision": curve.mean(axis=0),
                }
            )
        )
    if not parts:
        return pd.DataFrame(
            {"class": pd.Series(dtype="str"), "recall": [], "precision_50": [], "precision": []}
        )
    return pd.concat(parts, ignore_index=True)
