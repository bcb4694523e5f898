"""Section `retention`: the contract, by kept class."""

from typing import Literal

from pydantic import Field, model_validator

from topwork.params.section import Section


class KeepParams(Section):
    """What the retention contract asks for one kept class."""

    min: float | None = Field(default=None, gt=0)
    """Least fine-tuned AP over pretrained AP."""
    exact: bool = False
    """In place of `min`: the class's detections are the pretrained detector's, bit for bit, proved
    from the weights files (needs `finetune: {protect: branch}`).
    """
    on: Literal["source", "test"] = "source"
    """The set it is measured on."""
    by: Literal["estimate", "interval"] = "estimate"
    """What has to reach `min`: the retention itself, or the lower end of its interval (stricter: no
    luck involved).
    """

    @model_validator(mode="after")
    def _one_measure(self) -> "KeepParams":
        if self.exact == (self.min is not None):
            raise ValueError("needs one of `min` (such as 0.95) and `exact: true`, not both")
        return self

    @property
    def least(self) -> float:
        """Least retention; 1 where the class is kept exactly."""
        return 1.0 if self.min is None else self.min

    @property
    def measure(self) -> str:
        """What has to reach it: `exact`, `estimate` or `interval`."""
        return "exact" if self.exact else self.by
