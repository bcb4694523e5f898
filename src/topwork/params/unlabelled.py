"""Section `unlabelled`: the search for kept-class objects that the training annotations lack."""

from pydantic import Field

from topwork.params.section import Section


class UnlabelledParams(Section):
    """Search for kept-class objects that the training annotations lack: read by `unlabelled`."""

    min_score: float = Field(default=0.6, gt=0, lt=1)
    """Score from which the pretrained detector counts as confident."""
    max_iou: float = Field(default=0.3, ge=0, le=1)
    """A box that overlaps an annotation of its class by more is taken as labelled."""
    max_inside: float = Field(default=0.5, ge=0, le=1)
    """So is a box of which a larger fraction lies in an annotation of its class: a torso in its
    person.
    """
