"""Outs of the stage `finetune`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from topwork.project.record import Record

FOLDER = Path("out/finetune")
FINETUNED = FOLDER / "weights.safetensors"
RECORD = FOLDER / "record.json"
RECEIPT = FOLDER / "receipt.json"
CURVES = FOLDER / "curves"
KEEPING_VERSION = 1

Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


USE = f"""\
the fine-tuned detector: {FINETUNED}; in Python:
  import topwork
  model = topwork.load("{FINETUNED.as_posix()}")
  found = topwork.predict(model, ["image.jpg"])[0]  # boxes, scores, labels, names"""
"""Printed when a run has ended: where the weights are, and how to use them."""


class Determinism(Record):
    """How exactly the run repeats itself: `bit-exact`, `same-device` or `statistical`; and why."""

    level: str
    reasons: tuple[str, ...]


class Interpolation(Record):
    """Alpha, the fraction of the way from the grafted to the fine-tuned weights that was kept, and
    what was tried: rows of `alpha` or `mix` (a branch's share in kept classes), with the validation
    `map`, or with the least `retention` of a kept class on held-out images of dataset.replay.
    """

    alpha: float
    tried: tuple[dict[str, float], ...]


class RunRecord(Record):
    """record.json: how a fine-tuning ran. No clock time, no resumption: two runs of the same bits
    have the same record.

    Attributes:
        determinism: level and reasons.
        seed: of every random draw.
        inputs: name -> SHA-256 of the files that were read (images by their tables).
        machine: what of the machine decides the bits.
        versions: every installed distribution and its version, `python`, and `platform` without the
            kernel's release.
        epochs, steps: that were trained.
        stopped_early: whether validation ended it.
        interpolation: between grafted and fine-tuned weights.
        accumulate: micro-batches a step at the end.
        images: how many images were trained on and replayed.
        history: one row an epoch.
        notes: what else there is to know.
    """

    determinism: Determinism
    seed: int | None = None
    inputs: dict[str, str] = Field(default_factory=dict)
    machine: dict[str, Any]
    versions: dict[str, str]
    epochs: int
    steps: int
    stopped_early: bool
    interpolation: Interpolation
    accumulate: int
    images: dict[str, int]
    history: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]


class FileHashes(Record):
    """A weights file: a hash over `NAME NUL HASH LF` of all tensors by name, and the file's own."""

    sha256: Hash
    file_sha256: Hash


class KeptTensor(Record):
    """One tensor of the fine-tuned file.

    Attributes:
        name: in the file.
        dtype, shape: of it.
        sha256: of its numbers.
        part: `stock` (a tensor of the source, bit for bit), `scion` (learned or copied, of a new
            branch), or `detector` (of a single detector that was trained).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: Hash
    part: Literal["stock", "scion", "detector"]


class ScionRecord(Record):
    """A branch: where it leaves the stock, its own head's columns, and what it hands on."""

    cut: str | None
    columns: tuple[str, ...]
    absorbed: tuple[str, ...]
    learned: tuple[str, ...]


class KeepingReceipt(Record):
    """receipt.json: what of the pretrained weights is in the fine-tuned file, bit for bit.

    `topwork verify-graft` checks all of it from the two files, without running a model. `sha256` is
    over this receipt's canonical JSON without that field.

    Attributes:
        topwork_keeping_receipt: version.
        protect: how kept classes were protected.
        builder, builder_args: what makes the detector; the same in both files.
        source: hash over the source's tensors by name, and of the file.
        result: the same of the fine-tuned file.
        columns: labels that the fine-tuned file hands on, background first.
        kept: class -> the stock's class; empty with `protect: weights`.
        exact: classes whose detections are the source's, bit for bit.
        mix: share of the branch in kept classes.
        shared: tensors below the lowest cut, which both branches use; counted once in the file.
        scions: the branches.
        tensors: every tensor of the file.
    """

    topwork_keeping_receipt: Literal[1]
    protect: Literal["weights", "branch"]
    builder: str
    builder_args: dict[str, Any]
    source: FileHashes
    result: FileHashes
    columns: tuple[str, ...]
    kept: dict[str, str]
    exact: tuple[str, ...]
    mix: float
    shared: int
    scions: tuple[ScionRecord, ...]
    tensors: tuple[KeptTensor, ...]
    sha256: Hash
