"""How the rows of one class lie along a class axis, and the proof of it.

A class axis of a head with K columns and multiplicity m has K * m rows. Seen as an array [outer, K,
inner] with outer * inner = m, column c owns `[:, c, :]`: `class-major` is outer 1, `anchor-major`
is inner 1, and with m = 1 the two are the same (`plain`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from topwork.detectors.families import Role


@dataclass(frozen=True)
class ClassAxis:
    """Which rows of a tensor belong to which class column.

    Attributes:
        tensor: name in the state_dict.
        axis: the dimension that runs over classes.
        outer, inner: the axis is [outer, columns, inner], flattened.
        columns: class columns that the axis spans, background included where it has rows.
        background: whether column 0 has rows (False in heads that count real classes alone).
        role: what the rows decide: `scores`, `boxes` or `masks`.
    """

    tensor: str
    axis: int
    outer: int
    inner: int
    columns: int
    background: bool
    role: Role

    @property
    def multiplicity(self) -> int:
        """Rows a class."""
        return self.outer * self.inner

    @property
    def layout(self) -> str:
        """`plain`, `class-major`, `anchor-major`, or `OUTER x class x INNER`."""
        return layout_name(self.outer, self.inner)

    def rows(self, column: int) -> list[int]:
        """Indices along the axis that belong to a column; empty where the column has none."""
        skipped = 0 if self.background else 1
        if not skipped <= column < self.columns:
            return []
        return rows_of_column(self.outer, self.inner, self.columns - skipped, column - skipped)


def layout_name(outer: int, inner: int) -> str:
    """A layout in words."""
    if outer == inner == 1:
        return "plain"
    if outer == 1:
        return "class-major"
    return "anchor-major" if inner == 1 else f"{outer} x class x {inner}"


def rows_of_column(outer: int, inner: int, columns: int, column: int) -> list[int]:
    """Indices of `[:, column, :]` in a flattened [outer, columns, inner]."""
    return [(o * columns + column) * inner + i for o in range(outer) for i in range(inner)]


def factorizations(multiplicity: int) -> Iterator[tuple[int, int]]:
    """(outer, inner) pairs whose product is the multiplicity."""
    for outer in range(1, multiplicity + 1):
        if multiplicity % outer == 0:
            yield outer, multiplicity // outer
