"""What the stage `evaluate` writes, file by file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from topwork.coco.tables import Tables
from topwork.evaluation.assess import Assessments
from topwork.evaluation.plots import Plots, mistake_boxes
from topwork.evaluation.predict import coco_results
from topwork.evaluation.retention import Verdict
from topwork.files import atomic_path, write_json, write_text


def write_predictions(stem: Path, predictions: pd.DataFrame, tables: Tables, split: str, labels: Mapping[str, int]) -> None:
    """Write STEM.parquet (exact) and STEM.json (COCO results, rounded as COCO asks for).

    Category ids in the JSON are those of the set's annotations, so that it can be held against them as it is; a class that the set
    doesn't have gets an id beyond those.
    """
    with atomic_path(stem.with_name(f"{stem.name}.parquet")) as temporary:
        predictions.to_parquet(temporary, index=False, compression="zstd")
    ids = {name: key for key, name in tables.names(split).items()}
    beyond = max(ids.values(), default=0)
    results = coco_results(predictions, {name: ids.get(name, beyond + label) for name, label in labels.items()})
    lines = ",\n".join(json.dumps(result, sort_keys=True) for result in results)
    write_text(stem.with_name(f"{stem.name}.json"), f"[\n{lines}\n]\n" if lines else "[]\n")


def write_evaluation(
    folder: Path, metrics: Mapping[str, Any], classes: Sequence[Mapping[str, Any]], verdicts: Sequence[Verdict], assessments: Assessments
) -> None:
    """Write metrics.json, classes.json, verdict.json and plots/."""
    plots = Plots(assessments)
    for name, table in plots.tables().items():
        write_csv(folder / "plots" / name, table)
    write_json(folder / "plots" / "errors.json", plots.errors())
    with atomic_path(folder / "plots" / "mistakes.parquet") as temporary:
        mistake_boxes(assessments).to_parquet(temporary, index=False, compression="zstd")
    write_json(folder / "classes.json", list(classes))
    write_json(
        folder / "verdict.json",
        {"holds": all(verdict.holds for verdict in verdicts), "contracts": [verdict.as_json() for verdict in verdicts]},
    )
    write_json(folder / "metrics.json", dict(metrics))


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV; 6 significant digits, which is more than a plot shows."""
    write_text(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
