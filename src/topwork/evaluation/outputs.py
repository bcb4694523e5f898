"""What the stage `evaluate` writes, file by file."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from topwork.classes import ClassPlan
from topwork.evaluation.assessment import (
    Assessments,
    classes_record,
    metrics_record,
    table_record,
    verdict_record,
)
from topwork.evaluation.exactness import Proof
from topwork.evaluation.images import image_scores
from topwork.evaluation.plots import Plots, mistake_boxes
from topwork.files import atomic_path, write_text
from topwork.params.evaluate import EvaluateParams
from topwork.params.learned import LearnParams
from topwork.params.retention import KeepParams
from topwork.project.evaluate import (
    CLASSES,
    ERRORS,
    IMAGES,
    METRICS,
    MISTAKES,
    PLOTS,
    TABLE,
    VERDICT,
    ClassesRecord,
    VerdictRecord,
)


def write_evaluation(
    assessments: Assessments,
    plan: ClassPlan,
    params: EvaluateParams,
    contract: Mapping[str, KeepParams],
    learned: Mapping[str, LearnParams],
    proofs: Mapping[str, Proof] | None = None,
) -> tuple[ClassesRecord, VerdictRecord]:
    """Write out/metrics.json and all of out/evaluate; return the class table and the verdict.

    Raises:
        EvaluationError: masks are asked for, and the predictions or an annotation have none.
    """
    classes = classes_record(assessments, plan)
    verdict = verdict_record(contract, learned, assessments, proofs)
    table = table_record(assessments, masks=params.masks)
    plots = Plots(assessments)
    for name, frame in plots.tables().items():
        write_csv(PLOTS / name, frame)
    plots.errors().write(ERRORS)
    write_table(MISTAKES, mistake_boxes(assessments))
    write_table(IMAGES, image_scores(assessments))
    classes.write(CLASSES)
    verdict.write(VERDICT)
    table.write(TABLE)
    metrics_record(assessments, verdict.contracts, plan).write(METRICS)
    return classes, verdict


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write an exact table as Parquet, whole or not at all."""
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd")


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV; 6 significant digits, which is more than a plot shows."""
    write_text(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
