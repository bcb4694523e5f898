"""Outs of the stage `fetch`, and the folder of the user's own weights."""

from pathlib import Path

from pydantic import ConfigDict

from topwork.project.record import Record

FOLDER = Path("out/fetch")
PRETRAINED = FOLDER / "pretrained.safetensors"
PROVENANCE = FOLDER / "provenance.json"
WEIGHTS_LOCK = Path("weights.lock")
OWN_WEIGHTS = Path("weights")
"""Where own weights files, builders and lists of class names lie: DVC watches it."""


class ProvenanceRecord(Record):
    """provenance.json: where the pretrained weights come from.

    Attributes:
        builder, builder_args, columns: the detector and the names of its class columns.
        tensors, values: how many tensors, and numbers in them.

    Further keys are the source's own facts: source, sha256, licence, recipe, published figures...
    """

    model_config = ConfigDict(extra="allow")

    builder: str
    builder_args: dict[str, object]
    columns: tuple[str, ...]
    tensors: int
    values: int
