"""A small table: rows of named values, printed to fit a screen, handed to pandas where that is
installed.
"""

import csv
import io
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import pandas as pd

WIDTH = 80
"""Columns of a terminal that doesn't say how wide it is."""
NARROWEST = 24
"""Columns that are left to the first column of a table, however long its texts are."""


class Table(Sequence[dict[str, Any]]):
    """Rows of named values.

    Attributes:
        columns: their names.
        rows: one dictionary a row.
        attrs: what holds for the whole table.
        brief: the columns that are shown where all of them don't fit the screen.

    Example:
        >>> table = Table(("class", "moved"), [{"class": "person", "moved": 0.0}])
        >>> table
        class   moved
        person      0
        >>> [row["class"] for row in table if row["moved"] == 0]
        ['person']
    """

    def __init__(
        self,
        columns: Sequence[str],
        rows: Sequence[dict[str, Any]],
        attrs: dict[str, Any] | None = None,
        brief: Sequence[str] = (),
    ) -> None:
        self.columns, self.rows, self.attrs = tuple(columns), list(rows), attrs or {}
        self.brief = tuple(brief) or self.columns

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        return self.rows[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return self.text()

    def only(self, rows: Sequence[dict[str, Any]]) -> "Table":
        """The same table with some of its rows."""
        return Table(self.columns, rows, self.attrs, self.brief)

    def frame(self) -> "pd.DataFrame":
        """The table as a pandas data frame, `attrs` included (the extra `pipeline` brings
        pandas).
        """
        import pandas as pd

        frame = pd.DataFrame(self.rows, columns=list(self.columns))
        frame.attrs.update(self.attrs)
        return frame

    def csv(self) -> str:
        """As CSV; undefined numbers are empty."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(
            ["" if _undefined(row[name]) else row[name] for name in self.columns] for row in self
        )
        return stream.getvalue()

    def json(self) -> str:
        """As JSON, one object a row; undefined numbers are null."""
        rows = [
            {name: None if _undefined(row[name]) else row[name] for name in self.columns}
            for row in self
        ]
        return json.dumps(rows, indent=2)

    def text(self, width: int | None = None) -> str:
        """Aligned for reading: all columns where the screen has room for them, else the brief ones;
        long texts of the first one lose their middle.

        Args:
            width: columns of the screen; those of the terminal where left out.
        """
        if not self.rows:
            return "nothing to show"
        wide = width or shutil.get_terminal_size((WIDTH, 24)).columns
        columns = self.columns
        cells, widths = self._cells(columns)
        if sum(widths) + 2 * len(widths) - 2 > wide:
            columns = self.brief
            cells, widths = self._cells(columns)
        widths[0] = min(widths[0], max(NARROWEST, wide - sum(width + 2 for width in widths[1:])))
        numeric = [all(isinstance(row[name], int | float) for row in self) for name in columns]
        lines = []
        for row in [list(columns), *cells]:
            parts = [
                text.rjust(width) if number else text.ljust(width)
                for text, width, number in zip(row, widths, numeric, strict=True)
            ]
            parts[0] = _elided(row[0], widths[0]).ljust(widths[0])
            lines.append("  ".join(parts).rstrip())
        return "\n".join(lines)

    def _cells(self, columns: Sequence[str]) -> tuple[list[list[str]], list[int]]:
        """The cells as text, and how wide each column is."""
        cells = [[_shown(row[name]) for name in columns] for row in self]
        widths = [
            max(len(name), *(len(row[place]) for row in cells))
            for place, name in enumerate(columns)
        ]
        return cells, widths


def _undefined(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    if isinstance(value, list):
        return ", ".join(f"{name} {number:.2f}" for name, number in value)
    return str(value)


def _elided(text: str, width: int) -> str:
    """A text of at most so many letters: its middle goes, since names of tensors differ at both
    ends.
    """
    if len(text) <= width:
        return text
    end = (width - 1) * 2 // 3
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"
