"""Section `report`: the page of a run."""

from pydantic import Field

from topwork.params.section import Section


class ReportParams(Section):
    """The report: read by `report`."""

    title: str = "Fine-tuning report"
    """Heading of the page."""
    pictures: int = Field(default=6, ge=0)
    """Test images shown before and after."""
    min_score: float | None = Field(default=None, gt=0, lt=1)
    """Score from which detections are drawn on them; left out: each class's own, at which its F1 is
    highest.
    """
