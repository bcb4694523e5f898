"""Stage `evaluate`: measure what was kept, learned and lost, from predictions alone.

Reads params `evaluate`, `retention`, `learned` and `surgery.classes`, the tables of `validate`, the
predictions of `baseline` and `predict` with their records, and the receipt of the fine-tuned
weights, which proves what is kept exactly. Writes out/metrics.json (what one decides by, for DVC)
and out/evaluate: table.json, classes.json, verdict.json, images.parquet (F1 of each image) and
plots/ (for `dvc plots`). Runs no model; repeats to the byte. Stopped by a contract that can't be
measured and by inputs that change meanwhile; a contract that is breached doesn't stop it: the stage
`gate` does.
"""

from pathlib import Path

import pandas as pd
from rich.console import Console

from topwork.dataset.tables import Tables
from topwork.evaluation.assessment import Assessment, assess
from topwork.evaluation.console import print_classes
from topwork.evaluation.contract import check_measurable
from topwork.evaluation.exactness import Proof, prove
from topwork.evaluation.outputs import write_evaluation
from topwork.files import HeldInputs
from topwork.metrics.sets import truths_of
from topwork.params.evaluate import EvaluateParams
from topwork.params.learned import LearnParams
from topwork.params.retention import KeepParams
from topwork.params.section import Sections
from topwork.params.surgery import SurgeryParams
from topwork.project.finetune import RECEIPT, KeepingReceipt
from topwork.project.names import MODELS
from topwork.project.predictions import (
    PredictionRecord,
    predictions_folder,
    predictions_path,
    record_path,
)
from topwork.project.validate import FOLDER, table_paths
from topwork.stages import in_project, main_of


class Params(Sections):
    """What the stage reads of params.yaml."""

    surgery: SurgeryParams
    evaluate: EvaluateParams = EvaluateParams()
    retention: dict[str, KeepParams] = {}
    learned: dict[str, LearnParams] = {}


@in_project
def run(params: Params) -> None:
    """Evaluate the three models on the custom test set and the source set."""
    folders = {f"predictions of {model}": predictions_folder(model) for model in MODELS}
    records = {model: record_path(model) for model in ("pretrained", "finetuned")}
    exact = [name for name, asked in params.retention.items() if asked.exact]
    proving = {**records, "receipt": RECEIPT} if exact else {}
    held = HeldInputs({**folders, **proving, **table_paths()})
    plan = params.surgery.plan()
    tables = Tables.read(FOLDER)
    check_measurable(params.retention, params.learned, plan, tables)
    assessments: dict[str, dict[str, Assessment]] = {}
    for split, truth in truths_of(plan, tables).items():
        for model in MODELS:
            print(
                f"{model} on {split}: {len(truth.image_ids)} images, {params.evaluate.bootstrap}"
                " resamples",
                flush=True,
            )
            assessments.setdefault(split, {})[model] = assess(
                truth,
                pd.read_parquet(predictions_path(model, split)),
                params.evaluate,
                classes=tuple(plan.kept) if model == "pretrained" else plan.names,
                what=f"predictions of {model} on {split}",
            )
    proofs = _proofs(exact, records, list(assessments))
    held.check()
    classes, verdict = write_evaluation(
        assessments, plan, params.evaluate, params.retention, params.learned, proofs
    )
    print_classes(Console(), classes, verdict)


def _proofs(exact: list[str], records: dict[str, Path], splits: list[str]) -> dict[str, Proof]:
    """Of each class that is to be kept exactly."""
    if not exact:
        return {}
    receipt = KeepingReceipt.read(RECEIPT)
    how = {model: PredictionRecord.read(path) for model, path in records.items()}
    detections = {
        split: (
            pd.read_parquet(predictions_path("pretrained", split)),
            pd.read_parquet(predictions_path("finetuned", split)),
        )
        for split in splits
    }
    return {name: prove(name, receipt, how, detections) for name in exact}


def main() -> int:
    """Run the stage alone."""
    return main_of(run, Params)


if __name__ == "__main__":
    raise SystemExit(main())
