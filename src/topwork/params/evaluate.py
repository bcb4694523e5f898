"""Section `evaluate`: metrics and their intervals."""

from pydantic import Field

from topwork.params.section import Section


class EvaluateParams(Section):
    """Evaluation: read by `evaluate`."""

    bootstrap: int = Field(default=200, ge=0)
    """Resamples of the images for confidence intervals; 0 leaves them out."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Coverage of the intervals."""
    seed: int = 0
    """Draws of the resamples; the same for every model, so that differences are paired."""
    masks: bool = False
    """Also evaluate masks (Mask R-CNN, annotations with segmentation)."""
