"""Outs of the stages `baseline` (pretrained and grafted detector) and `predict` (fine-tuned
detector).
"""

from pathlib import Path
from typing import Any

from topwork.project.record import Record

BASELINE = Path("out/baseline")
PREDICT = Path("out/predict")
TRAINING = BASELINE / "training.parquet"
"""What the pretrained detector sees on the training images, for the stage `unlabelled`."""


def predictions_folder(model: str) -> Path:
    """The folder of a model's detections."""
    return (PREDICT if model == "finetuned" else BASELINE) / "predictions"


def predictions_path(model: str, split: str) -> Path:
    """The table of a model's detections on a split; COCO results lie next to it, as JSON."""
    return predictions_folder(model) / f"{model}.{split}.parquet"


def record_path(model: str) -> Path:
    """How they were computed."""
    return (PREDICT if model == "finetuned" else BASELINE) / "record.json"


class PredictionRecord(Record):
    """How predictions were computed: figures can be compared where these agree.

    Attributes:
        machine: device, threads, instruction set, versions of torch and torchvision.
        batch_size: images a forward pass.
        precision: of the forward pass.
        weights: model -> SHA-256 of its weights file.
        splits: model -> splits that it was run on.
    """

    machine: dict[str, Any]
    batch_size: int
    precision: str = "float32"
    weights: dict[str, str]
    splits: dict[str, list[str]]
