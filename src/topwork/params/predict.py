"""Section `predict`: how detectors are run over images."""

from typing import Literal

from pydantic import Field

from topwork.params.section import Section

Precision = Literal["float32", "tf32", "bfloat16"]


class PredictParams(Section):
    """Prediction: read by `baseline`, `predict` and the validation inside `finetune`."""

    batch_size: int = Field(default=8, ge=1)
    """Images a forward pass. The last digits of a score depend on it."""
    precision: Precision = "float32"
    """Of the forward pass: `float32` for figures on record; `tf32` (NVIDIA GPUs) and `bfloat16`
    are faster on a GPU and less exact. Part of the record.
    """
