"""Kept classes left unlabelled: confident detections of the pretrained detector that the training
annotations lack.

Every such object teaches the fine-tuning that what was kept is background, and most custom sets are
full of them: who collects helmets labels helmets.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from topwork.metrics.matching import match
from topwork.metrics.truth import Detections, Truth, detections_of
from topwork.params.unlabelled import UnlabelledParams
from topwork.project.unlabelled import UnlabelledClass

LEAST_LABELLED = 20
"""Labelled objects of a class from which the detector's recall on them says something."""


@dataclass(frozen=True)
class Unlabelled:
    """What was found.

    Attributes:
        boxes: image_id, name, score, x, y, width, height: one row a box, by image, best first.
        classes: class -> what was found of it.
    """

    boxes: pd.DataFrame
    classes: dict[str, UnlabelledClass]

    @property
    def estimate(self) -> float:
        """How many objects of all kept classes are unlabelled, as far as the detector can see."""
        return float(sum(entry.estimate for entry in self.classes.values()))


def find_unlabelled(
    truth: Truth, predictions: pd.DataFrame, params: UnlabelledParams
) -> Unlabelled:
    """Confident boxes of kept classes that neither overlap an annotation of their class nor lie
    inside one, as a torso does in its person.

    Estimates of each class: `expected` is the sum of the boxes' scores (how many of them are real,
    were the scores calibrated). `recall` is the share of labelled objects that the detector finds
    at that score (None below 20 labelled objects). `estimate` is expected over recall: what the
    detector misses among the labelled objects, it misses among the unlabelled ones, too.

    Args:
        truth: annotations of the kept classes; crowds count as labels of all that lies in them.
        predictions: the pretrained detector's, under the target's class names.
        params: least score, largest overlap, largest part inside.
    """
    confident = predictions[predictions["score"] >= params.min_score].reset_index(drop=True)
    detections = detections_of(confident, truth, what="predictions of pretrained on train")
    labelled = _labelled(truth, detections, params)
    known = confident[confident["name"].isin(truth.classes)].reset_index(drop=True)
    boxes = known[~labelled].sort_values(
        ["image_id", "score"], ascending=[True, False], kind="stable"
    )
    found = match(truth, detections, thresholds=(0.5,))
    classes = {}
    for label, name in enumerate(truth.classes, start=1):
        scores = boxes["score"][boxes["name"] == name]
        objects = int(np.sum((truth.label == label) & ~truth.crowd))
        recall = (
            float(found.true[0, found.of(label)].sum() / objects)
            if objects >= LEAST_LABELLED
            else None
        )
        expected = float(scores.sum())
        classes[name] = UnlabelledClass(
            count=len(scores),
            expected=expected,
            labelled=objects,
            recall=recall,
            estimate=expected / recall if recall else expected,
        )
    columns = ["image_id", "name", "score", "x", "y", "width", "height"]
    return Unlabelled(boxes[columns].reset_index(drop=True), classes)


def _labelled(truth: Truth, detections: Detections, params: UnlabelledParams) -> NDArray[np.bool_]:
    """bool[D]: the detection overlaps an annotation of its class by more than `max_iou`, or more of
    it than `max_inside` lies in one.
    """
    overlap = match(
        truth, detections, thresholds=(0.5,), least_iou=np.nextafter(params.max_iou, 2.0)
    )
    # a crowd's overlap is the part of the detection that lies in it
    all_crowds = replace(truth, crowd=np.ones_like(truth.crowd))
    inside = match(
        all_crowds, detections, thresholds=(0.5,), least_iou=np.nextafter(params.max_inside, 2.0)
    )
    # beyond the 100 best an image and class: not looked at, so not reported
    labelled = np.ones(len(detections), dtype=np.bool_)
    labelled[overlap.order] = False
    for found in (overlap, inside):
        same = found.label[found.pairs.detection] == truth.label[found.pairs.object]
        labelled[found.order[found.pairs.detection[same]]] = True
    return labelled
