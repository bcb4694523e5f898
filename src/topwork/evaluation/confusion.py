"""Which class is taken for which: objects against detections, with background on both sides.

Detections count from their class's best threshold (highest F1). Best score first, each takes the
free object that it overlaps most, by 0.5 or more. An object that nothing takes is confused with
background, and so is a detection that takes nothing; a detection that only a crowd would take is
left out.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from topwork.evaluation.mistakes import FOUND_IOU
from topwork.metrics.matching import Matches

BACKGROUND_NAME = "background"


def confident(
    matches: Matches, thresholds: Mapping[str, float | None], default: float = 0.5
) -> NDArray[np.bool_]:
    """bool[D]: the detection reaches its class's threshold, or the default where the class has
    none.
    """
    least = [
        default if (found := thresholds.get(name)) is None else found
        for name in matches.truth.classes
    ]
    wanted: NDArray[np.float64] = np.asarray([np.inf, *least])
    return np.asarray(matches.score >= wanted[matches.label])


def confusion(matches: Matches, kept: NDArray[np.bool_]) -> pd.DataFrame:
    """The confusion matrix, one row a pair that occurs.

    Returns:
        actual, predicted (class names or `background`), count; ordered as the truth's classes,
        background last.
    """
    truth = matches.truth
    pairs = matches.pairs
    near = kept[pairs.detection] & (pairs.iou >= FOUND_IOU)
    detection, thing, iou = pairs.detection[near], pairs.object[near], pairs.iou[near]
    order = np.lexsort((thing, -iou, truth.crowd[thing], detection, -matches.score[detection]))
    taken: dict[int, int] = {}
    free = np.ones(len(truth), dtype=np.bool_)
    for d, g in zip(detection[order].tolist(), thing[order].tolist(), strict=True):
        if d not in taken and (free[g] or truth.crowd[g]):
            taken[d], free[g] = g, False
    background = len(truth.classes)
    matrix = np.zeros((background + 1, background + 1), dtype=np.int64)
    for d in np.flatnonzero(kept).tolist():
        found = taken.get(d)
        if found is None:
            matrix[background, matches.label[d] - 1] += 1
        elif not truth.crowd[found]:
            matrix[truth.label[found] - 1, matches.label[d] - 1] += 1
    np.add.at(matrix[:, background], truth.label[free & ~truth.crowd] - 1, 1)
    names = (*truth.classes, BACKGROUND_NAME)
    rows = [
        (names[actual], names[predicted], int(matrix[actual, predicted]))
        for actual, predicted in zip(*np.nonzero(matrix), strict=True)
    ]
    return pd.DataFrame(rows, columns=["actual", "predicted", "count"])
