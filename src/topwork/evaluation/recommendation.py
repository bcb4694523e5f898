"""Which way of protecting suits a project: by how the pretrained detector does on its pictures."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from topwork.classes import ClassPlan
from topwork.dataset.tables import Tables
from topwork.metrics.coco import score
from topwork.metrics.sets import classes_of
from topwork.metrics.truth import detections_of, truth_of
from topwork.project.predictions import TRAINING, predictions_path
from topwork.project.validate import FOLDER

KEPT_WELL = 0.5
"""Pretrained AP on the own pictures over that on the source domain, from which a class is worth
keeping as it is. Measured cases lie far to both sides: 1.0 (docs/keeping.md, the real case) and 0.2
(the demo).
"""


@dataclass(frozen=True)
class Recommendation:
    """What to write under `finetune.protect`, and why.

    Attributes:
        protect: `branch`, `weights`, or None where nothing can be recommended.
        figures: kept class -> pretrained AP on the own training pictures, and on the source set.
        sentence: all of it in words.
    """

    protect: str | None
    figures: dict[str, tuple[float, float]]
    sentence: str


def recommend(plan: ClassPlan, root: Path = Path()) -> Recommendation:
    """Compare the pretrained detector's AP of kept classes on the training pictures, which it
    hasn't seen, with that on the source domain; both from the stage `baseline`.
    """
    missing = _missing(plan, root)
    if missing:
        return _none(missing)
    tables = Tables.read(root / FOLDER, segmentation=False)
    found = {
        "train": _ap(plan, tables, "train", root / TRAINING),
        "source": _ap(plan, tables, "source", root / predictions_path("pretrained", "source")),
    }
    figures = {
        name: (own, there)
        for name in plan.kept
        if (own := found["train"].get(name)) is not None
        and (there := found["source"].get(name)) is not None
    }
    if not figures:
        return _none("annotated objects of a kept class on both sets are")
    poor = [name for name, (own, there) in figures.items() if own < KEPT_WELL * there]
    protect = "weights" if poor else "branch"
    listed = "; ".join(
        f"{name}: AP {own:.2f} on the own training pictures, {there:.2f} on the source set"
        for name, (own, there) in figures.items()
    )
    why = (
        f"{', '.join(poor)} must be adapted to the own pictures; with `branch: {{kept: mix}}` it is"
        " a little, with `weights` wholly"
        if poor
        else "kept classes are found as well as they ever were, so leave them as they are"
    )
    return Recommendation(
        protect, figures, f"recommended: finetune.protect: {protect} ({listed}; {why})"
    )


def _none(missing: str) -> Recommendation:
    return Recommendation(
        None,
        {},
        f"no way of protecting can be recommended: {missing} missing (docs/keeping.md says how to"
        " choose)",
    )


def _missing(plan: ClassPlan, root: Path) -> str:
    """What it takes and isn't there."""
    if not plan.kept:
        return "a kept class is"
    if not (root / FOLDER / "images.parquet").is_file():
        return "the tables of the stage `validate` are"
    tables = Tables.read(root / FOLDER, segmentation=False)
    if "source" not in tables.splits:
        return "images of the source domain (dataset.source) are"
    needed = (root / TRAINING, root / predictions_path("pretrained", "source"))
    if not all(path.is_file() for path in needed):
        return "predictions of the stage `baseline` (dvc repro baseline) are"
    return ""


def _ap(plan: ClassPlan, tables: Tables, split: str, path: Path) -> dict[str, float | None]:
    names = set(tables.names(split).values())
    wanted = {
        name: sources
        for name, sources in classes_of(plan, tables, split).items()
        if name in plan.kept and names & set(sources)
    }
    if not wanted:
        return {}
    predictions = pd.read_parquet(path)
    truth = truth_of(tables, split, wanted)
    detections = detections_of(predictions[predictions["name"].isin(list(wanted))], truth)
    scores = score(truth, detections)
    return {name: scores.ap(name) for name in wanted}
