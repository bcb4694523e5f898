"""What a graft would do, tensor by tensor and row by row, without doing it; and which classes a new
row might rather start from.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from topwork.classes import BACKGROUND, UNUSED, ClassPlan
from topwork.detectors.axes import head_spec, head_spec_of
from topwork.detectors.builders import Builder
from topwork.surgery.rows import check_rows, keeps_scores, kept_columns, row_sources
from topwork.weights.fit import check_fit
from topwork.weights.format import Weights


@dataclass(frozen=True)
class Preview:
    """A graft that wasn't done.

    Attributes:
        activation: `softmax` or `sigmoid`.
        classes: one dict a target column: column, class, origin, init, sources ({class: weight}),
            suggestions.
        dropped: classes whose rows aren't kept; done: `absorbed` or `removed`; exact: whether kept
            classes score as before.
        tensors: one dict a class-dependent tensor: tensor, role, layout, shape_before, shape_after,
            rows (list of {class, to, from}).
        untouched: number of tensors that are passed on as they are.
    """

    activation: str
    classes: list[dict[str, Any]]
    dropped: list[str]
    done: str
    exact: bool
    tensors: list[dict[str, Any]] = field(default_factory=list)
    untouched: int = 0


def preview(weights: Weights, plan: ClassPlan, *, builder: Builder | None = None) -> Preview:
    """Say what `graft(weights, plan)` would do.

    Raises:
        ClassPlanError, WeightsError, SurgeryError: as `graft` would.
    """
    everything = [*weights.columns, *weights.absorbed]
    plan.check(everything)
    function = builder or weights.builder
    before = head_spec_of(weights, function)
    check_fit(weights, before.shapes)
    sources = row_sources(plan, weights.columns, weights.absorbed, before.softmax)
    after = head_spec(
        function, len(plan.columns), weights.builder_args, len(sources) - len(plan.columns)
    )
    classes = [
        {
            "column": column,
            "class": row.name,
            "origin": row.origin,
            "init": row.init,
            "sources": {everything[index]: weight for index, weight in row.columns.items()},
            "suggestions": near_classes(row.name, everything) if row.origin == "new" else [],
        }
        for column, row in enumerate(sources)
    ]
    tensors = []
    for old, new in zip(before.axes, after.axes, strict=True):
        for column, row in enumerate(sources):
            if new.rows(column):
                check_rows(old, row)
        moves = [
            {
                "class": row.name,
                "to": new.rows(column),
                "from": {everything[index]: old.rows(index) for index in row.columns},
            }
            for column, row in enumerate(sources)
            if new.rows(column)
        ]
        shapes = {
            "shape_before": list(before.shapes[old.tensor]),
            "shape_after": list(after.shapes[old.tensor]),
        }
        tensors.append(
            {"tensor": old.tensor, "role": old.role, "layout": old.layout, **shapes, "rows": moves}
        )
    kept = kept_columns(plan.rows, everything)
    columns = [name for index, name in enumerate(everything) if index and index not in kept]
    absorbs = before.softmax and plan.dropped == "absorb"
    activation = "softmax" if before.softmax else "sigmoid"
    return Preview(
        activation,
        classes,
        [name for name in columns if name != UNUSED],
        "absorbed" if absorbs else "removed",
        keeps_scores(plan, columns, before.softmax),
        tensors,
        len(before.shapes) - len(tensors),
    )


def near_classes(name: str, columns: Sequence[str], count: int = 3) -> list[str]:
    """Classes whose names are near: spelt alike, or with a word in common; nearest first."""
    wanted = name.lower()
    scored = []
    for other in columns:
        if other in (BACKGROUND, UNUSED):
            continue
        shared = len(_words(name) & _words(other)) / max(len(_words(name) | _words(other)), 1)
        score = max(
            difflib.SequenceMatcher(None, wanted, other.lower()).ratio(),
            0.5 + shared / 2 if shared else 0.0,
        )
        if score >= 0.65 or shared:
            scored.append((-score, other))
    return [other for _, other in sorted(scored)[:count]]


def _words(name: str) -> set[str]:
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)  # policeCar
    return {word for word in re.split(r"[\W_]+", parted.lower()) if len(word) > 1}
