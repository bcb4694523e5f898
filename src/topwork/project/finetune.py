"""Outs of the stage `finetune`."""

from pathlib import Path
from typing import Any

from topwork.project.record import Record

FOLDER = Path("out/finetune")
FINETUNED = FOLDER / "weights.safetensors"
RECORD = FOLDER / "record.json"
CURVES = FOLDER / "curves"


USE = f"""\
the fine-tuned detector: {FINETUNED}; in Python:
  import topwork
  model = topwork.load("{FINETUNED.as_posix()}")
  found = topwork.predict(model, ["image.jpg"])[0]  # boxes, scores, labels, names"""
"""What is said of the weights when a run has ended."""


class Determinism(Record):
    """How exactly the run repeats itself: `bit-exact`, `same-device` or `statistical`; and why."""

    level: str
    reasons: tuple[str, ...]


class Interpolation(Record):
    """Alpha, the fraction of the way from the grafted to the fine-tuned weights that was kept, and
    the alphas tried with their validation mAP.
    """

    alpha: float
    tried: tuple[dict[str, float], ...]


class RunRecord(Record):
    """record.json: how a fine-tuning ran. No clock time, no resumption: two runs of the same bits
    have the same record.

    Attributes:
        determinism: level and reasons.
        machine: what of the machine decides the bits.
        versions: every installed distribution and its version, `python`, and `platform` without the
            kernel's release.
        epochs, steps: that were trained.
        stopped_early: whether validation ended it.
        interpolation: between grafted and fine-tuned weights.
        accumulate: micro-batches a step at the end.
        images: how many images were trained on and replayed.
        history: one row an epoch.
        notes: what else there is to know.
    """

    determinism: Determinism
    machine: dict[str, Any]
    versions: dict[str, str]
    epochs: int
    steps: int
    stopped_early: bool
    interpolation: Interpolation
    accumulate: int
    images: dict[str, int]
    history: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
