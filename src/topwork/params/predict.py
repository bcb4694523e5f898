"""Section `predict`: how detectors are run over images."""

from pydantic import Field

from topwork.params.section import Section


class PredictParams(Section):
    """Prediction: read by `baseline`, `predict` and the validation inside `finetune`."""

    batch_size: int = Field(default=8, ge=1)
    """Images a forward pass. The last digits of a score depend on it."""
