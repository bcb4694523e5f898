"""One model on one set, and the tables made of all models on all sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from topwork.classes import ClassPlan
from topwork.evaluation.bootstrap import Interval, draw_weights, interval, mean_of_classes, weighted_ap
from topwork.evaluation.calibration import expected_error
from topwork.evaluation.curves import BestThreshold, best_threshold
from topwork.evaluation.matching import Matches, match
from topwork.evaluation.metrics import IouType, Scores, score
from topwork.evaluation.retention import Verdict, judge, ratio, ratio_interval
from topwork.evaluation.truth import Detections, Truth, detections_of
from topwork.params import EvaluateParams, KeepParams

MODELS = ("pretrained", "grafted", "finetuned")


@dataclass(frozen=True)
class Assessment:
    """What one model's predictions on one set are worth.

    Attributes:
        truth: the ground truth, of the classes that the model has; the others' figures are undefined for it.
        detections: the predictions.
        scores: COCO's arrays.
        matches: which detection found which object.
        resampled: class -> AP of each resample of the images, float64[B].
        confidence: coverage of the intervals.
    """

    truth: Truth
    detections: Detections
    scores: Scores
    matches: Matches
    resampled: Mapping[str, NDArray[np.float64]]
    confidence: float

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that the model has, of those that the set can speak of."""
        return self.truth.classes

    def ap(self, name: str) -> float | None:
        """AP of a class; None where the model hasn't the class or the set no object of it."""
        return self.scores.ap(name) if name in self.classes else None

    def interval(self, name: str) -> Interval | None:
        """Interval of a class's AP."""
        return interval(self.resampled[name], self.confidence) if name in self.resampled else None

    def map_interval(self) -> Interval | None:
        """Interval of the mean AP."""
        return interval(mean_of_classes(list(self.resampled.values())), self.confidence) if self.resampled else None

    def threshold(self, name: str) -> BestThreshold:
        """Where a class's F1 is highest, at IoU 0.5."""
        return best_threshold(self.matches, self.truth.classes.index(name) + 1)


def assess(
    truth: Truth,
    predictions: pd.DataFrame,
    params: EvaluateParams,
    *,
    classes: Sequence[str] | None = None,
    what: str = "predictions",
    iou_type: IouType = "bbox",
) -> Assessment:
    """Hold predictions against the truth.

    Args:
        truth: the ground truth.
        predictions: table of `predict.predict`.
        params: resamples, confidence, seed.
        classes: the truth's classes that the model has; all where left out.
        what: where the predictions come from, for messages.
        iou_type: boxes or masks.

    Raises:
        EvaluationError: the predictions aren't sound (see `truth.detections_of`).
    """
    truth = truth if classes is None else truth.only(classes)
    detections = detections_of(predictions, truth, what=what)
    matches = match(truth, detections, iou_type)
    objects = truth.objects
    weights = draw_weights(len(truth.image_ids), params.bootstrap, params.seed)
    resampled = {
        name: weighted_ap(matches, label, weights)
        for label, name in enumerate(truth.classes, start=1)
        if params.bootstrap and objects[name]
    }
    return Assessment(truth, detections, score(truth, detections, iou_type), matches, resampled, params.confidence)


Assessments = Mapping[str, Mapping[str, Assessment]]
"""Set -> model -> assessment."""


def metrics_table(assessments: Assessments, verdicts: Sequence[Verdict], plan: ClassPlan) -> dict[str, Any]:
    """For metrics.json: set -> model -> means and classes' figures; and each kept class's retention."""
    table: dict[str, Any] = {}
    for split, models in assessments.items():
        table[split] = {}
        for model, assessment in models.items():
            means = _means(assessment)
            classes = {
                name if name not in means else f"class {name}": {
                    "ap": assessment.scores.ap(name), "ap_50": assessment.scores.ap(name, iou=0.5),
                }
                for name in assessment.classes
            }  # fmt: skip
            table[split][model] = {**means, **classes}
    table["retention"] = {name: _retention(assessments, verdicts, name) for name in plan.kept}
    return table


def mask_table(assessment: Assessment) -> dict[str, Any]:
    """The same figures for one model's masks, for `metrics.json`'s set -> model -> masks.

    Raises:
        EvaluationError: the predictions or an annotation have no masks.
    """
    scores = score(assessment.truth, assessment.detections, "segm")
    full = scores.table()
    means = {key: full[key] for key in ("map", "map_50", "map_75", "mar_100")}
    classes = {name: {"ap": scores.ap(name), "ap_50": scores.ap(name, iou=0.5)} for name in scores.classes}
    return {**means, **{name if name not in means else f"class {name}": figures for name, figures in classes.items()}}


def _means(assessment: Assessment) -> dict[str, float | None]:
    full = assessment.scores.table()
    return {key: full[key] for key in ("map", "map_50", "map_75", "mar_100")}


def _retention(assessments: Assessments, verdicts: Sequence[Verdict], name: str) -> float | None:
    """Where the contract wants it measured; else on the source set if the class is there, else on the test set."""
    for verdict in verdicts:
        if verdict.name == name:
            return verdict.found
    for split in ("source", "test"):
        models = assessments.get(split, {})
        if models and name in models["finetuned"].truth.classes:
            return ratio(models["finetuned"].ap(name), models["pretrained"].ap(name))
    return None


def class_table(assessments: Assessments, plan: ClassPlan) -> list[dict[str, Any]]:
    """For classes.json: one row a set and class, with intervals, sizes, best thresholds, and a note where something is undefined."""
    return [
        _class_row(split, models, name, next(row.origin for row in plan.rows if row.name == name))
        for split, models in assessments.items()
        for name in models["finetuned"].truth.classes
    ]


def _class_row(split: str, models: Mapping[str, Assessment], name: str, origin: str) -> dict[str, Any]:
    truth = models["finetuned"].truth
    label = truth.classes.index(name) + 1
    objects = truth.objects[name]
    row: dict[str, Any] = {
        "set": split, "class": name, "origin": origin, "objects": objects,
        "images": len(np.unique(truth.image[(truth.label == label) & ~truth.crowd])),
        "note": _note(split, name, origin, objects),
    }  # fmt: skip
    for model, assessment in models.items():
        has = name in assessment.classes
        between = assessment.interval(name)
        row[f"ap_{model}"] = assessment.ap(name)
        row[f"interval_{model}"] = list(between) if between else None
        row[f"figures_{model}"] = assessment.scores.table(name) if has else None
        row[f"best_{model}"] = assessment.threshold(name).__dict__ if has else None
        row[f"ece_{model}"] = expected_error(assessment.matches, assessment.truth.classes.index(name) + 1) if has else None
    before, after = models["pretrained"], models["finetuned"]
    row["retention"] = ratio(after.ap(name), before.ap(name))
    row["interval_retention"] = _paired(before, after, name)
    return row


def _note(split: str, name: str, origin: str, objects: int) -> str | None:
    if not objects:
        return f"the {split} set has no object of the class {name}: its AP is undefined"
    return None if origin == "keep" else "learned: the pretrained detector has no such class, so there is nothing to retain"


def _paired(before: Assessment, after: Assessment, name: str) -> list[float] | None:
    if name not in before.resampled or name not in after.resampled:
        return None
    between = ratio_interval(after.resampled[name], before.resampled[name], after.confidence)
    return list(between) if between else None


def verdicts_of(contract: Mapping[str, KeepParams], assessments: Assessments) -> list[Verdict]:
    """Every contract, judged."""
    verdicts = []
    for name, asked in contract.items():
        before, after = assessments[asked.on]["pretrained"], assessments[asked.on]["finetuned"]
        between = _paired(before, after, name)
        note = None if after.truth.objects[name] else f"the {asked.on} set has no object of the class"
        verdicts.append(judge(name, asked, before.ap(name), after.ap(name), (between[0], between[1]) if between else None, note))
    return verdicts
