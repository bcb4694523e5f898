"""Section `runtime`: how a run is carried out.

No stage tracks it, since no past result becomes stale by it.
"""

from typing import Annotated, Literal

from pydantic import Field

from topwork.params.section import Section


class RuntimeParams(Section):
    """How a run is carried out: read by every stage that computes, tracked by none.

    Each output names the device that made it.
    """

    device: str = "auto"
    """`auto` (the accelerator that torch finds, else the CPU), `cpu`, `cuda`, `cuda:1`..."""
    workers: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    """Processes that load training images; any number gives the same bits. `auto`: one where
    training runs on a CPU, which needs its cores; for a GPU as many as there are cores, up to
    twelve.
    """
    image_cache_mib: int = Field(default=512, ge=0)
    """Memory for decoded training images; a set that fits is decoded once."""
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Steps between checkpoints; there is one per epoch in any case."""
