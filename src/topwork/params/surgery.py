"""Section `surgery`: the class plan."""

from typing import Any, Literal

from pydantic import Field, field_validator

from topwork.classes import ClassPlan
from topwork.params.section import Section


class SurgeryParams(Section):
    """The class plan: read by `surgery`, `classes` by all later stages."""

    classes: dict[str, Any]
    """Target classes in order: `keep`, `{keep: NAME}`, `{like: NAME}`, `{like: [NAMES]}`, `{like:
    {NAME: weight}}`, `{new: prior|reference|zero}`.
    """
    dropped: Literal["remove", "absorb"] = "absorb"
    """What becomes of the other rows of a softmax head: taken out, or kept frozen as part of
    background.
    """
    prior: float = Field(default=0.01, gt=0, lt=1)
    """Probability at which a `new: prior` row starts."""
    seed: int = 0
    """For `new: reference` (the builder's own random init)."""

    @field_validator("classes")
    @classmethod
    def _not_empty(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not value:
            raise ValueError("names no class; write at least one, such as `person: keep`")
        return value

    def plan(self) -> ClassPlan:
        """The class plan that this section describes.

        Raises:
            ClassPlanError: an unknown rule, a reserved or duplicate name, weights that aren't
                positive; all at once.
        """
        return ClassPlan.parse(self.classes, dropped=self.dropped, prior=self.prior, seed=self.seed)
