"""Row protection: which rows of which tensors belong to which classes, as data that training
reads.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from topwork.detectors.axes import anatomy
from topwork.weights.format import Weights


@dataclass(frozen=True)
class RowGroup:
    """Rows of one tensor along its class axis.

    Attributes:
        axis: the class dimension.
        rows: indices along it, ascending.
    """

    axis: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Protection:
    """Who owns what in a grafted detector, by class name and by tensor.

    Attributes:
        kept, like, new, background, absorbed: tensor name -> its rows of that origin.
        trunk: names of the parameters and buffers below the head.
        head: names of all the others.
    """

    kept: Mapping[str, RowGroup]
    like: Mapping[str, RowGroup]
    new: Mapping[str, RowGroup]
    background: Mapping[str, RowGroup]
    absorbed: Mapping[str, RowGroup]
    trunk: tuple[str, ...]
    head: tuple[str, ...]


def rows_of(weights: Weights, names: Iterable[str]) -> dict[str, RowGroup]:
    """Tensor name -> rows of the named classes (`__background__` included, if named); tensors
    without such rows are left out.
    """
    wanted = set(names)
    columns = [index for index, name in enumerate(weights.columns) if name in wanted]
    return _rows(weights, columns)


def protection_of(weights: Weights, origins: Mapping[str, str] | None = None) -> Protection:
    """Sort a grafted detector's rows by origin.

    Args:
        weights: grafted weights.
        origins: target class -> `keep`, `like` or `new`; by default what the graft wrote into the
            weights' provenance. Classes that aren't named count as kept.
    """
    if origins is None:
        origins = dict(weights.provenance.get("graft", {}).get("rows", {}))
    by_origin: dict[str, list[int]] = {"keep": [], "like": [], "new": []}
    for index, name in enumerate(weights.columns[1:], start=1):
        by_origin[origins.get(name, "keep")].append(index)
    found = anatomy(
        weights.builder, len(weights.columns), weights.builder_args, len(weights.absorbed)
    )
    trunk = tuple(name for name in weights.state_dict if name.startswith(found.trunk))
    wide = len(weights.columns) + len(weights.absorbed)
    return Protection(
        kept=_rows(weights, by_origin["keep"]),
        like=_rows(weights, by_origin["like"]),
        new=_rows(weights, by_origin["new"]),
        background=_rows(weights, [0]),
        absorbed=_rows(weights, range(len(weights.columns), wide)),
        trunk=trunk,
        head=tuple(name for name in weights.state_dict if name not in set(trunk)),
    )


def _rows(weights: Weights, columns: Iterable[int]) -> dict[str, RowGroup]:
    found = anatomy(
        weights.builder, len(weights.columns), weights.builder_args, len(weights.absorbed)
    )
    columns = list(columns)
    groups = {
        axis.tensor: RowGroup(
            axis.axis, tuple(sorted(row for column in columns for row in axis.rows(column)))
        )
        for axis in found.axes
    }
    return {name: group for name, group in groups.items() if group.rows}
