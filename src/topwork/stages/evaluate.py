"""Stage `evaluate`: measure what was kept, learned and lost.

Reads params `evaluate`, `retention` and `surgery.classes`, the tables of `validate` with their images, and the pretrained, grafted and
fine-tuned weights. Writes out/evaluate: metrics.json (for DVC), classes.json, verdict.json, predictions/ (Parquet and COCO results) and
plots/ (for `dvc plots`). On the CPU of one kind of machine it repeats to the byte; a GPU may differ in the last digits. Stopped by a
contract that can't be measured, by weights that give NaN, and by inputs that change meanwhile; a contract that is breached doesn't stop it: the
stage `gate` does.
"""

from pathlib import Path

import pandas as pd
from rich.console import Console

from topwork.classes import ClassPlan
from topwork.coco.tables import Tables
from topwork.detectors.builders import load
from topwork.errors import EvaluationError
from topwork.evaluation.assess import MODELS, Assessment, assess, class_table, mask_table, metrics_table, verdicts_of
from topwork.evaluation.predict import choose_device, predict
from topwork.evaluation.retention import check_contract
from topwork.evaluation.sets import SETS, Pictures, classes_of, rename_kept, truths_of
from topwork.evaluation.tell import print_classes
from topwork.evaluation.truth import Truth
from topwork.evaluation.written import write_evaluation, write_predictions
from topwork.files import HeldInputs
from topwork.params import Params
from topwork.stages import main_of
from topwork.weights.weights import read_weights

FOLDER = Path("out/evaluate")
WEIGHTS = {
    "pretrained": Path("out/fetch/pretrained.safetensors"),
    "grafted": Path("out/surgery/grafted.safetensors"),
    "finetuned": Path("out/finetune/weights.safetensors"),
}
TABLES = Path("out/validate")


def run(params: Params, root: Path = Path()) -> None:
    """Evaluate the three models on the custom test set and the source set."""
    held = HeldInputs({**{name: root / path for name, path in WEIGHTS.items()}, "tables": root / TABLES})
    plan = ClassPlan.parse(params.surgery.classes)
    tables = Tables.read(root / TABLES)
    truths = truths_of(plan, tables)
    if "test" not in truths:
        raise EvaluationError("evaluate: no test set; name one as dataset.test in params.yaml, or let dataset.split part one off.")
    check_contract(
        params.retention, plan,
        {split: tuple(name for name in classes_of(plan, tables, split) if name in plan.kept) for split in SETS if split in tables.splits},
    )  # fmt: skip
    pictures = Pictures(root)
    stamps = {split: pictures.stamps(tables, split) for split in truths}
    predictions = {model: _predictions(model, params, plan, tables, truths, pictures, root) for model in MODELS}
    assessments = {
        split: {model: _assessment(model, split, predictions[model][split], truth, params, plan) for model in MODELS}
        for split, truth in truths.items()
    }
    verdicts = verdicts_of(params.retention, assessments)
    metrics = metrics_table(assessments, verdicts, plan)
    if params.evaluate.masks:
        for split, models in assessments.items():
            for model, assessment in models.items():
                metrics[split][model]["masks"] = mask_table(assessment)
    held.check()
    if any(pictures.stamps(tables, split) != stamps[split] for split in truths):
        raise EvaluationError("evaluate: images changed while the stage was reading them. Nothing was written; run the stage again.")
    categories = {name: label for label, name in enumerate(plan.names, start=1)}
    for model in MODELS:
        for split in truths:
            write_predictions(root / FOLDER / "predictions" / f"{model}.{split}", predictions[model][split], tables, split, categories)
    write_evaluation(root / FOLDER, metrics, class_table(assessments, plan), verdicts, assessments)
    print_classes(Console(), class_table(assessments, plan), verdicts)


def _predictions(
    model: str, params: Params, plan: ClassPlan, tables: Tables, truths: dict[str, Truth], pictures: Pictures, root: Path
) -> dict[str, pd.DataFrame]:
    """One model's predictions on every set, under the target's class names."""
    device = choose_device(params.evaluate.device)
    detector = load(read_weights(root / WEIGHTS[model], trust=True))
    found = {}
    for split in truths:
        table = predict(detector, pictures.of(tables, split), batch_size=params.evaluate.batch_size, device=device)
        found[split] = rename_kept(table, plan) if model == "pretrained" else table
    return found


def _assessment(model: str, split: str, table: pd.DataFrame, truth: Truth, params: Params, plan: ClassPlan) -> Assessment:
    classes = tuple(plan.kept) if model == "pretrained" else plan.names
    return assess(truth, table, params.evaluate, classes=classes, what=f"predictions of {model} on {split}")


def main() -> int:
    """Run the stage alone."""
    return main_of(run)


if __name__ == "__main__":
    raise SystemExit(main())
