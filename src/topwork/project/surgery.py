"""Outs of the stage `surgery`: grafted weights, and the receipt that a third party can check."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from topwork.project.record import Record

FOLDER = Path("out/surgery")
GRAFTED = FOLDER / "grafted.safetensors"
RECEIPT = FOLDER / "receipt.json"
RECEIPT_VERSION = 1

Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Rows = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Shape = list[Annotated[int, Field(ge=0)]]
Activation = Literal["softmax", "sigmoid"]
Init = Literal["prior", "reference", "zero"]


class _StrictRecord(Record):
    model_config = ConfigDict(strict=True)


class SourceRows(_StrictRecord):
    """Source rows of one class; one entry with weight 1 and the same hash where a row is a
    bit-identical copy.
    """

    name: str = Field(alias="class")
    weight: float
    rows: Rows
    sha256: Hash


class TargetRows(_StrictRecord):
    """The rows of one target column in a class-dependent tensor: indices along the class axis, and
    where they come from.
    """

    name: str = Field(alias="class")
    origin: Literal["background", "keep", "like", "new", "absorbed"]
    init: Init | None
    rows: Rows
    sha256: Hash
    sources: list[SourceRows] = Field(alias="from")


class LayoutRecord(_StrictRecord):
    """How classes lie along the axis: [outer, columns, inner], flattened."""

    name: str
    outer: int
    inner: int
    multiplicity: int


class ProofRecord(_StrictRecord):
    """How the layout was proved."""

    method: Literal["gradient"]
    columns: int
    activation: Activation


class UntouchedTensor(_StrictRecord):
    """A tensor that doesn't depend on the classes: its hash is the same before and after."""

    name: str
    dtype: str
    shape_before: Shape
    shape_after: Shape
    sha256_before: Hash
    sha256_after: Hash
    status: Literal["untouched"]


class ChangedTensor(_StrictRecord):
    """A class-dependent tensor, row by row."""

    name: str
    dtype: str
    shape_before: Shape
    shape_after: Shape
    sha256_before: Hash
    sha256_after: Hash
    status: Literal["changed"]
    role: Literal["scores", "boxes", "masks"]
    axis: Annotated[int, Field(ge=0)]
    layout: LayoutRecord
    proof: ProofRecord
    rows: list[TargetRows]


class SourceFile(_StrictRecord):
    """The weights before: names of columns, a hash over `NAME NUL HASH LF` of all tensors by name,
    and the file's own.
    """

    columns: list[str]
    absorbed: list[str]
    sha256: Hash
    file_sha256: Hash | None


class ResultFile(_StrictRecord):
    """The weights after."""

    columns: list[str]
    absorbed: list[str]
    file_sha256: Hash | None


class PlanRow(_StrictRecord):
    """One target class of the plan."""

    name: str
    origin: Literal["keep", "like", "new"]
    sources: dict[str, Annotated[float, Field(gt=0, le=1)]]
    init: Init | None


class PlanRecord(_StrictRecord):
    """The class plan."""

    classes: Annotated[list[PlanRow], Field(min_length=1)]
    dropped: Literal["remove", "absorb"]
    prior: Annotated[float, Field(gt=0, lt=1)]
    seed: int


class DroppedRecord(_StrictRecord):
    """Source columns that no target class keeps.

    `exact`: whether kept classes' probabilities are what they were, but for new rows (false where
    two classes keep one source: a
    softmax shares it among them).
    """

    done: Literal["absorbed", "removed"]
    exact: bool
    classes: list[str]


class ReceiptRecord(_StrictRecord):
    """receipt.json: what a graft did to every tensor and row of a detector's weights.

    `topwork verify-graft` computes all of it again from the two files. `sha256` is over this
    receipt's canonical JSON without that field.
    """

    topwork_receipt: Literal[1]
    versions: dict[str, str]
    builder: str
    builder_args: dict[str, Any]
    family: str
    activation: Activation
    source: SourceFile
    result: ResultFile
    plan: PlanRecord
    dropped: DroppedRecord
    tensors: list[Annotated[UntouchedTensor | ChangedTensor, Field(discriminator="status")]]
    sha256: Hash

    def changed(self) -> list[ChangedTensor]:
        """The class-dependent tensors."""
        return [tensor for tensor in self.tensors if isinstance(tensor, ChangedTensor)]

    def untouched(self) -> list[UntouchedTensor]:
        """The others."""
        return [tensor for tensor in self.tensors if isinstance(tensor, UntouchedTensor)]
