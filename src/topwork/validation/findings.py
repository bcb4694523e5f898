"""Findings: what the checks found in a data set, rule by rule."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pandas as pd

from topwork.validation.rules import RULES, SEVERITIES, Severity

Box = tuple[float, float, float, float]


class Finding(NamedTuple):
    """One fault: which rule, where (annotation file, image, ids), what was found.

    `box` is xywh in pixels; `other_split` and `other_image_id` name the second image where two look
    the same.
    """

    rule: str
    split: str
    file: str
    message: str
    image_id: int | None = None
    annotation_id: int | None = None
    image: str | None = None
    box: Box | None = None
    other_split: str | None = None
    other_image_id: int | None = None

    @property
    def severity(self) -> Severity:
        """Severity of its rule."""
        return RULES[self.rule].severity

    def text(self) -> str:
        """Where and what, in one line."""
        if self.annotation_id is not None:
            within = f" (image {self.image_id})" if self.image_id is not None else ""
            return f"{self.file}: annotation {self.annotation_id}{within}: {self.message}"
        if self.image_id is not None:
            named = f" ({self.image})" if self.image is not None else ""
            return f"{self.file}: image {self.image_id}{named}: {self.message}"
        return f"{self.file}: {self.message}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values; NaN in a box becomes None, since JSON has no NaN."""
        box = (
            None
            if self.box is None
            else [number if number - number == 0 else None for number in self.box]
        )
        return {**self._asdict(), "severity": self.severity, "box": box}


class Findings:
    """A growing list of findings."""

    def __init__(self, rows: Iterable[Finding] = ()) -> None:
        self.rows = list(rows)

    def add(
        self,
        rule: str,
        split: str,
        file: str,
        message: str,
        *,
        image_id: int | None = None,
        annotation_id: int | None = None,
        image: str | None = None,
        box: Box | None = None,
        other: tuple[str, int] | None = None,
    ) -> None:
        """Add one; the rule must be in the registry."""
        if rule not in RULES:
            raise KeyError(f"rule {rule!r} isn't in the registry")
        self.rows.append(
            Finding(
                rule,
                split,
                file,
                message,
                image_id,
                annotation_id,
                image,
                box,
                *(other or (None, None)),
            )
        )

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def sorted(self) -> "Findings":
        """Errors first, then by rule, split and ids: the same set gives the same order."""
        rank = {severity: index for index, severity in enumerate(SEVERITIES)}

        def key(row: Finding) -> tuple[Any, ...]:
            lowest = -(1 << 63)
            return (
                rank[row.severity],
                row.rule,
                row.split,
                lowest if row.image_id is None else row.image_id,
                lowest if row.annotation_id is None else row.annotation_id,
                row.file,
                row.message,
            )

        return Findings(sorted(self.rows, key=key))

    def by_rule(self) -> dict[str, int]:
        """Rule -> number of findings, in the registry's order."""
        counts = Counter(row.rule for row in self.rows)
        return {name: counts[name] for name in RULES if counts[name]}

    def by_severity(self) -> dict[str, int]:
        """Severity -> number of findings; zero where there's none."""
        counts = Counter(row.severity for row in self.rows)
        return {severity: counts[severity] for severity in SEVERITIES}

    def frame(self) -> pd.DataFrame:
        """One row a finding; the box in four columns."""
        columns: dict[str, Any] = {
            "rule": [row.rule for row in self.rows],
            "severity": [row.severity for row in self.rows],
            "split": [row.split for row in self.rows],
            "file": [row.file for row in self.rows],
            "image": [row.image for row in self.rows],
            "image_id": pd.array([row.image_id for row in self.rows], dtype="Int64"),
            "annotation_id": pd.array([row.annotation_id for row in self.rows], dtype="Int64"),
            "other_split": [row.other_split for row in self.rows],
            "other_image_id": pd.array([row.other_image_id for row in self.rows], dtype="Int64"),
            "message": [row.message for row in self.rows],
        }
        for index, name in enumerate(("x", "y", "width", "height")):
            columns[name] = pd.array(
                [None if row.box is None else row.box[index] for row in self.rows],
                dtype="float64[pyarrow]",
            )
        return pd.DataFrame(columns)
