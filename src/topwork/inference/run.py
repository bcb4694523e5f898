"""A project's detectors, run over its splits."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch

from topwork.classes import ClassPlan
from topwork.dataset.split_images import SplitImages
from topwork.dataset.tables import Tables
from topwork.detectors.builders import load
from topwork.events import ProgressEvent, emit
from topwork.files import atomic_folder
from topwork.inference.device import machine_facts
from topwork.inference.outputs import write_predictions
from topwork.inference.prediction import predict
from topwork.inference.progress import ImageProgress
from topwork.metrics.sets import rename_kept
from topwork.params.predict import PredictParams
from topwork.project.predictions import PredictionRecord
from topwork.weights.format import read_weights


def predict_splits(
    model: str,
    path: Path,
    splits: Sequence[str],
    images: SplitImages,
    plan: ClassPlan,
    *,
    params: PredictParams,
    device: torch.device,
) -> dict[str, pd.DataFrame]:
    """One detector's detections on some splits, under the target's class names.

    Args:
        model: `pretrained`, `grafted` or `finetuned`; of the pretrained detector's classes only the
            kept ones are handed on.
        path: its weights.
        splits: which.
        images: the data set's.
        plan: the class plan.
        params: batch size and precision.
        device: where.
    """
    detector = load(read_weights(path, trust=True))
    found = {}
    for done, split in enumerate(splits, start=1):
        openers = images.openers(split)
        progress = ImageProgress(f"{model} on {split}", len(openers))
        try:
            table = predict(
                detector,
                openers,
                batch_size=params.batch_size,
                device=device,
                precision=params.precision,
                watch=progress.update,
            )
        finally:
            progress.end()
        found[split] = rename_kept(table, plan) if model == "pretrained" else table
        emit(ProgressEvent(done=done, total=len(splits), unit="split", text=f"{model}, {split}"))
    return found


def write_run(
    folder: Path, found: Mapping[str, Mapping[str, pd.DataFrame]], tables: Tables, plan: ClassPlan
) -> None:
    """Write detections (model -> split -> table) into a folder, whole or not at all."""
    labels = {name: label for label, name in enumerate(plan.names, start=1)}
    with atomic_folder(folder) as temporary:
        for model, by_split in found.items():
            for split, table in by_split.items():
                write_predictions(temporary / f"{model}.{split}", table, tables, split, labels)


def record_of(
    found: Mapping[str, Mapping[str, pd.DataFrame]],
    weights: Mapping[str, str],
    params: PredictParams,
    device: torch.device,
) -> PredictionRecord:
    """How the detections were computed; `weights` are the hashes of the files, by model."""
    return PredictionRecord(
        machine=machine_facts(device),
        batch_size=params.batch_size,
        precision=params.precision,
        weights=dict(weights),
        splits={model: list(by_split) for model, by_split in found.items()},
    )
