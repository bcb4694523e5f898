"""One model on one set, and the tables made of all models on all sets."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from topwork.classes import ClassPlan
from topwork.evaluation.calibration import expected_error
from topwork.evaluation.confusion import confident
from topwork.evaluation.exactness import Proof
from topwork.evaluation.retention import (
    contract_record,
    learned_record,
    ratio,
    ratio_interval,
)
from topwork.metrics.bootstrap import Interval, draw_weights, interval, weighted_ap
from topwork.metrics.coco import Scores, score
from topwork.metrics.curves import BestThreshold, best_threshold
from topwork.metrics.matching import Matches, match
from topwork.metrics.truth import Detections, Truth, detections_of
from topwork.params.evaluate import EvaluateParams
from topwork.params.learned import LearnParams
from topwork.params.retention import KeepParams
from topwork.project.evaluate import (
    BestThresholdRecord,
    ClassAp,
    ClassesRecord,
    ClassRecord,
    ContractRecord,
    MeanFigures,
    MetricsRecord,
    ModelFigures,
    ModelTable,
    TableRecord,
    VerdictRecord,
)
from topwork.project.names import HELD_OUT


@dataclass(frozen=True)
class Assessment:
    """How good one model's predictions on one set are.

    Attributes:
        truth: the ground truth, of the classes that the model has; the others' figures are
            undefined for it.
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
        """The classes that the model has, of those that the set is evaluated on."""
        return self.truth.classes

    def ap(self, name: str) -> float | None:
        """AP of a class; None where the model lacks the class, or the set an object of it."""
        return self.scores.ap(name) if name in self.classes else None

    def interval(self, name: str) -> Interval | None:
        """Interval of a class's AP."""
        return interval(self.resampled[name], self.confidence) if name in self.resampled else None

    def threshold(self, name: str) -> BestThreshold:
        """Where a class's F1 is highest, at IoU 0.5."""
        return best_threshold(self.matches, self.truth.classes.index(name) + 1)

    @cached_property
    def confident(self) -> NDArray[np.bool_]:
        """bool[D]: detections that reach their class's best threshold."""
        return confident(
            self.matches, {name: self.threshold(name).threshold for name in self.classes}
        )


def assess(
    truth: Truth,
    predictions: pd.DataFrame,
    params: EvaluateParams,
    *,
    classes: Sequence[str] | None = None,
    what: str = "predictions",
) -> Assessment:
    """Compare predictions with the ground truth.

    Args:
        truth: the ground truth.
        predictions: table of `prediction.predict`.
        params: resamples, confidence, seed.
        classes: the truth's classes that the model has; all where left out.
        what: where the predictions come from, for messages.

    Raises:
        EvaluationError: the predictions aren't valid (see `truth.detections_of`).
    """
    truth = truth if classes is None else truth.only(classes)
    detections = detections_of(predictions, truth, what=what)
    matches = match(truth, detections)
    objects = truth.objects
    weights = draw_weights(len(truth.image_ids), params.bootstrap, params.seed)
    resampled = {
        name: weighted_ap(matches, label, weights)
        for label, name in enumerate(truth.classes, start=1)
        if params.bootstrap and objects[name]
    }
    return Assessment(
        truth, detections, score(truth, detections), matches, resampled, params.confidence
    )


Assessments = Mapping[str, Mapping[str, Assessment]]
"""Set -> model -> assessment."""


def metrics_record(
    assessments: Assessments, contracts: Sequence[ContractRecord], plan: ClassPlan
) -> MetricsRecord:
    """The figures that one decides by: retention of kept classes, AP of the others, mAP."""
    test = assessments["test"]["finetuned"]
    return MetricsRecord(
        retention={name: _retention(assessments, contracts, name) for name in plan.kept},
        ap={row.name: test.ap(row.name) for row in plan.rows if row.origin != "keep"},
        map=test.scores.ap(),
    )


def table_record(assessments: Assessments, *, masks: bool = False) -> TableRecord:
    """Set -> model -> means and classes' figures; of masks, too, where asked for.

    Raises:
        EvaluationError: masks are asked for, and the predictions or an annotation have none.
    """
    return TableRecord(
        sets={
            split: {
                model: ModelTable(
                    **_means(assessment.scores, assessment.classes).model_dump(),
                    masks=_mask_means(assessment) if masks else None,
                )
                for model, assessment in models.items()
            }
            for split, models in assessments.items()
        }
    )


def _means(scores: Scores, classes: Sequence[str]) -> MeanFigures:
    full = scores.table()
    return MeanFigures(
        map=full["map"],
        map_50=full["map_50"],
        map_75=full["map_75"],
        mar_100=full["mar_100"],
        classes={
            name: ClassAp(ap=scores.ap(name), ap_50=scores.ap(name, iou=0.5)) for name in classes
        },
    )


def _mask_means(assessment: Assessment) -> MeanFigures:
    scores = score(assessment.truth, assessment.detections, "segm")
    return _means(scores, scores.classes)


def _retention(
    assessments: Assessments, contracts: Sequence[ContractRecord], name: str
) -> float | None:
    """Where the contract wants it measured; else on the source set if the class is there, else on
    the test set.
    """
    for contract in contracts:
        if contract.name == name:
            return contract.found
    for split in reversed(HELD_OUT):
        models = assessments.get(split, {})
        if models and name in models["finetuned"].truth.classes:
            return ratio(models["finetuned"].ap(name), models["pretrained"].ap(name))
    return None


def classes_record(assessments: Assessments, plan: ClassPlan) -> ClassesRecord:
    """One row a set and class, with intervals, sizes, best thresholds, and a note where something
    is undefined.
    """
    origins = {row.name: row.origin for row in plan.rows}
    return ClassesRecord(
        classes=tuple(
            _class_record(split, models, name, origins[name])
            for split, models in assessments.items()
            for name in models["finetuned"].truth.classes
        )
    )


def _class_record(
    split: str, models: Mapping[str, Assessment], name: str, origin: str
) -> ClassRecord:
    before, after = models["pretrained"], models["finetuned"]
    truth = after.truth
    label = truth.classes.index(name) + 1
    objects = truth.objects[name]
    return ClassRecord(
        split=split,
        name=name,
        origin=origin,
        objects=objects,
        images=len(np.unique(truth.image[(truth.label == label) & ~truth.crowd])),
        note=_note(split, name, origin, objects),
        models={model: _figures(assessment, name) for model, assessment in models.items()},
        retention=ratio(after.ap(name), before.ap(name)),
        interval_retention=_paired(before, after, name),
    )


def _figures(assessment: Assessment, name: str) -> ModelFigures:
    if name not in assessment.classes:
        return ModelFigures(ap=None, interval=None, figures=None, best=None, ece=None)
    label = assessment.truth.classes.index(name) + 1
    return ModelFigures(
        ap=assessment.ap(name),
        interval=assessment.interval(name),
        figures=assessment.scores.table(name),
        best=BestThresholdRecord(**asdict(assessment.threshold(name))),
        ece=expected_error(assessment.matches, label),
    )


def _note(split: str, name: str, origin: str, objects: int) -> str | None:
    if not objects:
        return f"the {split} set has no object of the class {name}: its AP is undefined"
    return (
        None
        if origin == "keep"
        else "the pretrained detector has no such class, so there is nothing to retain"
    )


def _paired(before: Assessment, after: Assessment, name: str) -> Interval | None:
    if name not in before.resampled or name not in after.resampled:
        return None
    return ratio_interval(after.resampled[name], before.resampled[name], after.confidence)


def verdict_record(
    contract: Mapping[str, KeepParams],
    learned: Mapping[str, LearnParams],
    assessments: Assessments,
    proofs: Mapping[str, Proof] | None = None,
) -> VerdictRecord:
    """Every contract, of kept classes and of new ones, against what was measured, or proved of
    classes that are kept exactly.
    """
    contracts = []
    for name, asked in contract.items():
        before, after = assessments[asked.on]["pretrained"], assessments[asked.on]["finetuned"]
        note = (
            None if after.truth.objects[name] else f"the {asked.on} set has no object of the class"
        )
        between = _paired(before, after, name)
        contracts.append(
            contract_record(
                name,
                asked,
                before.ap(name),
                after.ap(name),
                between,
                note,
                (proofs or {}).get(name),
            )
        )
    reached = []
    for name, asked_ap in learned.items():
        after = assessments[asked_ap.on]["finetuned"]
        reached.append(learned_record(name, asked_ap, after.ap(name), after.interval(name)))
    return VerdictRecord(
        holds=all(kept.holds for kept in contracts) and all(new.holds for new in reached),
        contracts=tuple(contracts),
        learned=tuple(reached),
    )
