"""Section `learned`: the learning contract, by new class."""

from typing import Literal

from pydantic import Field

from topwork.params.section import Section


class LearnParams(Section):
    """What the learning contract asks for one class that isn't kept."""

    min: float = Field(gt=0, le=1)
    """Least AP (IoU 0.50 to 0.95) of the fine-tuned detector."""
    on: Literal["test"] = "test"
    """The set it is measured on: nobody annotated new classes in the source set."""
    by: Literal["estimate", "interval"] = "estimate"
    """What has to reach `min`: the AP itself, or the lower end of its interval (stricter)."""
