"""Section `retention`: the contract, by kept class."""

from typing import Literal

from pydantic import Field

from topwork.params.section import Section


class KeepParams(Section):
    """What the retention contract asks for one kept class."""

    min: float = Field(gt=0)
    """Least fine-tuned AP over pretrained AP."""
    on: Literal["source", "test"] = "source"
    """The set it is measured on."""
    by: Literal["estimate", "interval"] = "estimate"
    """What has to reach `min`: the retention itself, or the lower end of its interval (stricter: no
    luck involved).
    """
