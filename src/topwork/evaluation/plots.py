"""Tables for `dvc plots` and the report: curves, confusion, calibration, error kinds.

The long tables (pr.csv, confusion.csv, calibration.csv, errors.json) hold every set, model and
class. The wide ones are for `dvc plots`, which draws a line for each column: pr_SET.csv and
calibration_SET.csv have a column for each model, confusion_SET.csv a row for each object or stray
detection of the fine-tuned model.
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property

import numpy as np
import pandas as pd

from topwork.evaluation.assessment import Assessment, Assessments
from topwork.evaluation.calibration import expected_error, reliability
from topwork.evaluation.confusion import confusion
from topwork.evaluation.mistakes import KINDS, Mistakes, find_mistakes, worst_images
from topwork.metrics.coco import RECALL_THRESHOLDS
from topwork.metrics.curves import pr_curves
from topwork.project.evaluate import ErrorsRecord, KindRecord, ModelErrors, WorstImageRecord


class Plots:
    """All of it for one evaluation.

    Args:
        assessments: set -> model -> assessment.
    """

    def __init__(self, assessments: Assessments) -> None:
        self.assessments = assessments

    @cached_property
    def pr(self) -> pd.DataFrame:
        """Columns: class, recall, precision_50, precision, set, model."""
        return self._each(lambda a: pr_curves(a.scores))

    @cached_property
    def confusion(self) -> pd.DataFrame:
        """Columns: actual, predicted, count, set, model."""
        return self._each(lambda a: confusion(a.matches, a.confident))

    @cached_property
    def calibration(self) -> pd.DataFrame:
        """Columns: class (`all` first), low, high, confidence, precision, count, set, model."""
        return self._each(_calibration)

    def pr_wide(self, split: str) -> pd.DataFrame:
        """Mean precision at IoU 0.5 over a model's classes at 101 recalls, a column a model; empty
        where a model has no class there.
        """
        rows = self.pr[self.pr["set"] == split]
        means = rows.groupby(["model", "recall"])["precision_50"].mean()
        models = [model for model in self.assessments[split] if model in set(rows["model"])]
        return pd.DataFrame(
            {"recall": RECALL_THRESHOLDS, **{model: means[model].to_numpy() for model in models}}
        )

    def calibration_wide(self, split: str) -> pd.DataFrame:
        """Precision of each bin of scores, a column a model, next to the diagonal that calibrated
        scores would follow.
        """
        rows = self.calibration[
            (self.calibration["set"] == split) & (self.calibration["class"] == "all")
        ]
        table = rows.pivot_table(
            index=["low", "high"], columns="model", values="precision"
        ).reset_index()
        table.insert(0, "score", (table["low"] + table["high"]) / 2)
        table.insert(1, "ideal", table["score"])
        models = [model for model in self.assessments[split] if model in table]
        return table[["score", "ideal", *models]].rename_axis(columns=None)

    def confusion_rows(self, split: str) -> pd.DataFrame:
        """The fine-tuned model's confusion, each pair as often as it occurs: what DVC's template
        `confusion` counts.
        """
        rows = self.confusion[
            (self.confusion["set"] == split) & (self.confusion["model"] == "finetuned")
        ]
        return rows.loc[rows.index.repeat(rows["count"]), ["actual", "predicted"]].reset_index(
            drop=True
        )

    def errors(self) -> ErrorsRecord:
        """Set -> model -> AP at IoU 0.5, and each kind's count, cost, share, classes, worst
        images.
        """
        return ErrorsRecord(
            sets={
                split: {model: _errors(assessment) for model, assessment in models.items()}
                for split, models in self.assessments.items()
            }
        )

    def tables(self) -> dict[str, pd.DataFrame]:
        """File name -> table."""
        tables = {
            "pr.csv": self.pr,
            "confusion.csv": self.confusion,
            "calibration.csv": self.calibration,
        }
        for split in self.assessments:
            tables[f"pr_{split}.csv"] = self.pr_wide(split)
            tables[f"calibration_{split}.csv"] = self.calibration_wide(split)
            tables[f"confusion_{split}.csv"] = self.confusion_rows(split)
        return tables

    def _each(self, make: Callable[[Assessment], pd.DataFrame]) -> pd.DataFrame:
        parts = [
            make(a).assign(set=split, model=model)
            for split, models in self.assessments.items()
            for model, a in models.items()
        ]
        full = [part for part in parts if len(part)]
        return pd.concat(full, ignore_index=True) if full else parts[0]


def _calibration(assessment: Assessment) -> pd.DataFrame:
    labels = {
        "all": None,
        **{name: assessment.truth.classes.index(name) + 1 for name in assessment.classes},
    }
    parts = [
        reliability(assessment.matches, label).assign(**{"class": name})
        for name, label in labels.items()
    ]
    full = [part for part in parts if len(part)]
    table = pd.concat(full, ignore_index=True) if full else parts[0]
    return table[["class", "low", "high", "confidence", "precision", "count"]]


def _errors(assessment: Assessment) -> ModelErrors:
    everything = find_mistakes(assessment.matches)
    sure = find_mistakes(assessment.matches, assessment.confident)
    counts, sure_counts, costs, shares = (
        everything.counts(),
        sure.counts(),
        everything.costs(),
        everything.shares(),
    )
    return ModelErrors(
        ap_50=everything.ap_50,
        ece=expected_error(assessment.matches),
        kinds={
            kind: KindRecord(
                count=counts[kind],
                confident=sure_counts[kind],
                cost=costs[kind],
                share=shares[kind],
                classes=_by_class(sure, assessment, kind),
                worst=tuple(
                    WorstImageRecord(**asdict(image)) for image in worst_images(sure, kind)
                ),
            )
            for kind in KINDS
        },
    )


def _by_class(mistakes: Mistakes, assessment: Assessment, kind: str) -> dict[str, int]:
    return {
        name: mistakes.counts(assessment.truth.classes.index(name) + 1)[kind]
        for name in assessment.classes
    }


def mistake_boxes(assessments: Assessments) -> pd.DataFrame:
    """Every confident mistake as a box, for pictures: what `errors.json` counts as `confident`.

    Returns:
        set, model, image_id, kind, name (as predicted; as annotated for missed objects), score (NaN
        for missed ones), x, y, width, height.
    """
    parts = []
    for split, models in assessments.items():
        for model, assessment in models.items():
            mistakes = find_mistakes(assessment.matches, assessment.confident)
            parts.append(_boxes(mistakes, assessment).assign(set=split, model=model))
    table = pd.concat(parts, ignore_index=True)
    return table[["set", "model", "image_id", "kind", "name", "score", "x", "y", "width", "height"]]


def _boxes(mistakes: Mistakes, assessment: Assessment) -> pd.DataFrame:
    truth, matches = assessment.truth, assessment.matches
    names = np.asarray(["", *truth.classes], dtype=object)
    wrong, missed = np.flatnonzero(mistakes.kind < len(KINDS)), np.flatnonzero(mistakes.missed)
    boxes = np.vstack([assessment.detections.boxes[matches.order[wrong]], truth.boxes[missed]])
    return pd.DataFrame(
        {
            "image_id": truth.image_ids[np.r_[matches.image[wrong], truth.image[missed]]],
            "kind": [*(KINDS[code] for code in mistakes.kind[wrong]), *["missed"] * len(missed)],
            "name": names[np.r_[matches.label[wrong], truth.label[missed]]],
            "score": np.r_[matches.score[wrong], np.full(len(missed), np.nan)],
            **{key: boxes[:, place] for place, key in enumerate(("x", "y", "width", "height"))},
        }
    )
