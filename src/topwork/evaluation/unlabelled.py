"""Kept classes left unlabelled: confident detections of the pretrained detector that the training annotations lack.

Every such object teaches the fine-tuning that what was kept is background, and most custom sets are full of them: who collects helmets
labels helmets.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from topwork.evaluation.matching import match
from topwork.evaluation.truth import Detections, Truth, detections_of
from topwork.params import UnlabelledParams

LEAST_LABELLED = 20
"""Labelled objects of a class from which the detector's recall on them says something."""


@dataclass(frozen=True)
class Unlabelled:
    """What was found.

    Attributes:
        boxes: image_id, name, score, x, y, width, height: one row a box, by image, best first.
        classes: class -> count, expected, recall, estimate.
    """

    boxes: pd.DataFrame
    classes: dict[str, dict[str, Any]]

    @property
    def estimate(self) -> float:
        """How many objects of all kept classes are unlabelled, as far as the detector can tell."""
        return float(sum(entry["estimate"] for entry in self.classes.values()))


def find_unlabelled(truth: Truth, predictions: pd.DataFrame, params: UnlabelledParams) -> Unlabelled:
    """Confident boxes of kept classes that overlap no annotation of their class.

    Estimates, a class: `expected` is the sum of the boxes' scores (how many of them are real, were the scores calibrated); `recall` the
    share of labelled objects that the detector finds at that score (None below 20 labelled objects); `estimate` is expected over recall,
    since what the detector misses among the labelled it misses among the unlabelled, too.

    Args:
        truth: annotations of the kept classes; crowds count as labels of all that lies in them.
        predictions: the pretrained detector's, under the target's class names.
        params: least score, largest overlap.
    """
    confident = predictions[predictions["score"] >= params.min_score].reset_index(drop=True)
    detections = detections_of(confident, truth, what="predictions of pretrained on train")
    labelled = _labelled(truth, detections, params.max_iou)
    known = confident[confident["name"].isin(truth.classes)].reset_index(drop=True)
    boxes = known[~labelled].sort_values(["image_id", "score"], ascending=[True, False], kind="stable")
    found = match(truth, detections, thresholds=(0.5,))
    classes = {}
    for label, name in enumerate(truth.classes, start=1):
        scores = boxes["score"][boxes["name"] == name]
        objects = int(np.sum((truth.label == label) & ~truth.crowd))
        recall = float(found.true[0, found.of(label)].sum() / objects) if objects >= LEAST_LABELLED else None
        expected = float(scores.sum())
        classes[name] = {
            "count": len(scores), "expected": expected, "labelled": objects, "recall": recall,
            "estimate": expected / recall if recall else expected,
        }  # fmt: skip
    columns = ["image_id", "name", "score", "x", "y", "width", "height"]
    return Unlabelled(boxes[columns].reset_index(drop=True), classes)


def _labelled(truth: Truth, detections: Detections, max_iou: float) -> NDArray[np.bool_]:
    """bool[D]: the detection overlaps an annotation of its class by more than `max_iou`."""
    found = match(truth, detections, thresholds=(0.5,), least_iou=np.nextafter(max_iou, 2.0))
    pairs = found.pairs
    same = found.label[pairs.detection] == truth.label[pairs.object]
    labelled = np.ones(len(detections), dtype=np.bool_)  # beyond the 100 best an image and class: not looked at, so not reported
    labelled[found.order] = False
    labelled[found.order[pairs.detection[same]]] = True
    return labelled
