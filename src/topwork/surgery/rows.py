"""The rows of a class axis: taken from the source by name, or newly made."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from topwork.classes import BACKGROUND, UNUSED, ClassPlan, Row
from topwork.detectors.layouts import ClassAxis
from topwork.errors import SurgeryError


@dataclass(frozen=True)
class RowSource:
    """Where the rows of one target column come from.

    Attributes:
        name: the target column.
        origin: `background`, `keep`, `like`, `new` or `absorbed`.
        columns: source column -> weight; empty for `new`.
        init: how a `new` row starts.
    """

    name: str
    origin: str
    columns: Mapping[int, float]
    init: str | None = None


def row_sources(
    plan: ClassPlan, columns: Sequence[str], absorbed: Sequence[str], softmax: bool
) -> list[RowSource]:
    """One source a target column: background, the target classes in order, then the absorbed ones.

    Args:
        plan: the class plan, already held against the columns.
        columns: names of the source head's columns, background first.
        absorbed: names of its absorbed ones.
        softmax: sigmoid heads absorb nothing, since taking a class out leaves the others' scores as
            they were.
    """
    everything = [*columns, *absorbed]
    sources = [RowSource(BACKGROUND, "background", {0: 1.0})]
    for row in plan.rows:
        origin = {everything.index(name): weight for name, weight in row.sources.items()}
        # sorted: a sum's last bit depends on order
        sources.append(RowSource(row.name, row.origin, dict(sorted(origin.items())), row.init))
    if softmax and plan.dropped == "absorb":
        kept = set(kept_columns(plan.rows, everything))
        sources += [
            RowSource(name, "absorbed", {index: 1.0})
            for index, name in enumerate(everything)
            if index and index not in kept
        ]
    return sources


def kept_columns(rows: Sequence[Row], columns: Sequence[str]) -> list[int]:
    """Source columns that some target class keeps."""
    return [columns.index(next(iter(row.sources))) for row in rows if row.origin == "keep"]


def keeps_scores(plan: ClassPlan, dropped: Sequence[str], softmax: bool) -> bool:
    """Whether kept classes score as before, but for new rows: no competitor is gone, and none
    shares its probability with its double.
    """
    sources = list(plan.kept.values())
    return not softmax or (
        (plan.dropped == "absorb" or not dropped) and len(set(sources)) == len(sources)
    )


def real_columns(columns: Sequence[str]) -> list[int]:
    """Indices of the columns that name a class."""
    return [index for index, name in enumerate(columns) if name not in (BACKGROUND, UNUSED)]


def assemble(
    tensor: Tensor,
    source: ClassAxis,
    target: ClassAxis,
    sources: Sequence[RowSource],
    make: Callable[[RowSource, ClassAxis], Tensor],
) -> Tensor:
    """A target tensor, its rows copied or made as `sources` say; dtype as the source's.

    Args:
        tensor: the source tensor.
        source: its class axis.
        target: the class axis of the same tensor in the target detector.
        sources: one a target column; columns beyond the target axis (absorbed classes in box and
            mask layers) are left out.
        make: rows (multiplicity first) of a column that isn't a bit-identical copy.

    Raises:
        SurgeryError: a class whose rows the source doesn't have.
    """
    origin = torch.zeros(target.multiplicity * target_columns(target), dtype=torch.int64)
    made: list[tuple[list[int], RowSource]] = []
    for column, row in enumerate(sources):
        places = target.rows(column)
        if not places:
            continue
        check_rows(source, row)
        if row.origin in ("background", "keep", "absorbed"):
            (index,) = row.columns
            origin[places] = torch.tensor(source.rows(index))
        else:
            made.append((places, row))
    result = tensor.index_select(source.axis, origin)
    rows = result.movedim(target.axis, 0)
    for places, row in made:
        rows[places] = make(row, source).to(tensor.dtype)
    return result


def check_rows(source: ClassAxis, row: RowSource) -> None:
    """Hold a row's sources against the rows that are there.

    Raises:
        SurgeryError: an absorbed class, whose boxes and masks are gone.
    """
    if not all(source.rows(index) for index in row.columns):
        raise SurgeryError(
            f"{source.tensor}: {row.name} wants the rows of an absorbed class, which were cut when"
            " it was absorbed. Graft it from the pretrained weights instead."
        )


def target_columns(axis: ClassAxis) -> int:
    """Columns that have rows on the axis."""
    return axis.columns - (0 if axis.background else 1)


def rows_of(tensor: Tensor, axis: ClassAxis, column: int) -> Tensor:
    """Rows of one column, the class axis moved to the front: [multiplicity, ...]."""
    return tensor.index_select(
        axis.axis, torch.tensor(axis.rows(column), dtype=torch.int64)
    ).movedim(axis.axis, 0)


def mean_rows(tensor: Tensor, axis: ClassAxis, weights: Mapping[int, float]) -> Tensor:
    """Weighted mean of columns' rows in float64; the weights sum to 1.

    One column gives its own rows, bit for bit.
    """
    total = torch.zeros((), dtype=torch.float64)
    for column, weight in weights.items():
        total = total + weight * rows_of(tensor, axis, column).double()
    return total


def prior_rows(
    tensor: Tensor,
    axis: ClassAxis,
    *,
    softmax: bool,
    bias: bool,
    prior: float,
    classes: Sequence[int],
) -> Tensor:
    """Rows of a class that nothing is known of yet, but for the probability it starts with.

    - Scores of a softmax head: background's rows, with log(prior) added to the bias. The new
      class's probability is then `prior` times background's, everywhere, and no kept class's
      probability shifts by more than that.
    - Scores of a sigmoid head: zero weights and the bias log(prior / (1 - prior)), as in focal loss
      (RetinaNet, arXiv 1708.02002).
    - Boxes and masks: the mean of the source's classes.
    """
    if axis.role != "scores":
        return mean_rows(tensor, axis, {column: 1 / len(classes) for column in classes})
    if softmax:
        background = rows_of(tensor, axis, 0).double()
        return background + math.log(prior) if bias else background
    zeros = torch.zeros_like(rows_of(tensor, axis, 1), dtype=torch.float64)
    return zeros + math.log(prior / (1 - prior)) if bias else zeros
