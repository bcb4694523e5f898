"""Class names: the class plan, the columns of a head, label maps.

A head has one *column* a class. Column 0 is background in softmax heads, and unused in
torchvision's sigmoid heads; both are written `__background__` here, so that a label (1, 2, ...) is
its column's index everywhere.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

from topwork.errors import ClassPlanError

BACKGROUND = "__background__"
UNUSED = "N/A"
LARGEST_WEIGHT = 1e100  # far from what a sum of them overflows at


CATEGORY_SETS = ("coco-91", "coco-80", "voc-21", "open-images-601")


def category_set(name: str) -> tuple[str, ...]:
    """The columns of a shipped category set, background first.

    Raises:
        ClassPlanError: no set of that name.

    Example:
        >>> category_set("coco-91")[:3], len(category_set("coco-91")), len(category_set("voc-21"))
        (('__background__', 'person', 'bicycle'), 91, 21)
    """
    if name not in CATEGORY_SETS:
        near = difflib.get_close_matches(name, CATEGORY_SETS, n=1)
        hint = f" (nearest: {near[0]})" if near else ""
        raise ClassPlanError(
            f"fetch.classes: {name!r} is no category set{hint}; topwork ships"
            f" {', '.join(CATEGORY_SETS)}. Or give a list of names (--classes helmet,forklift), or"
            " a text file."
        )
    text = files("topwork").joinpath("category_sets", f"{name}.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line and not line.startswith("#"))


@dataclass(frozen=True)
class Row:
    """Where one target class's rows come from.

    Attributes:
        name: the target class.
        origin: `keep` (bit-identical copy), `like` (weighted mean of source classes) or `new`.
        sources: source class -> weight; weights sum to 1; empty for `new`.
        init: how a `new` row starts: `prior`, `reference` or `zero`; None otherwise.
    """

    name: str
    origin: Literal["keep", "like", "new"]
    sources: Mapping[str, float]
    init: Literal["prior", "reference", "zero"] | None = None


@dataclass(frozen=True)
class ClassPlan:
    """The target classes, in order, and where each one's rows come from; the order gives the labels
    1, 2, ...
    """

    rows: tuple[Row, ...]
    dropped: Literal["remove", "absorb"] = "absorb"
    prior: float = 0.01
    seed: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Target class names; label = index + 1."""
        return tuple(row.name for row in self.rows)

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names of the target head, background first."""
        return (BACKGROUND, *self.names)

    @property
    def kept(self) -> dict[str, str]:
        """Kept target class -> its source class."""
        return {row.name: next(iter(row.sources)) for row in self.rows if row.origin == "keep"}

    @classmethod
    def parse(
        cls,
        classes: Mapping[str, Any] | Sequence[str],
        *,
        dropped: str = "absorb",
        prior: float = 0.01,
        seed: int = 0,
    ) -> "ClassPlan":
        """Read a plan as params.yaml writes it; a plain list of names means `keep` for each.

        Raises:
            ClassPlanError: an empty, duplicate or background name, an unknown rule, weights that
                aren't positive, a prior that is no probability, a seed that torch doesn't take; all
                at once.
        """
        if isinstance(classes, str) or not isinstance(classes, Mapping | Sequence):
            raise ClassPlanError(
                f"class plan: found {classes!r}, expected rules by class name such as `person:"
                " keep`, or a list of names."
            )
        if not isinstance(classes, Mapping):
            doubles = sorted({name for name in classes if list(classes).count(name) > 1})
            if doubles:
                raise ClassPlanError(
                    f"class plan: {', '.join(doubles)} named twice; each target class is one"
                    " column."
                )
            classes = dict.fromkeys(classes, "keep")
        if not classes:
            raise ClassPlanError(
                "class plan: no class named; write at least one, such as `person: keep`."
            )
        if dropped not in ("remove", "absorb"):
            raise ClassPlanError(
                f"class plan: dropped is {dropped!r}, expected `remove` or `absorb`."
            )
        if not 0 < prior < 1:
            raise ClassPlanError(
                f"class plan: prior is {prior!r}, expected a probability between 0 and 1."
            )
        if not -(2**63) <= seed < 2**64:
            raise ClassPlanError(f"class plan: seed is {seed!r}, expected a number of 64 bits.")
        rows, faults = [], []
        for name, rule in classes.items():
            try:
                rows.append(_parse_row(name, rule))
            except ValueError as error:
                faults.append(str(error))
        if faults:
            raise ClassPlanError(
                f"class plan: {'; '.join(faults)}. Mend surgery.classes in params.yaml."
            )
        return cls(tuple(rows), dropped, prior, seed)  # type: ignore[arg-type]

    def check(self, columns: Sequence[str]) -> None:
        """Compare the plan with the source head's columns.

        Raises:
            ClassPlanError: a source class that the head doesn't have (the nearest names are shown),
                or has twice.
        """
        known = [name for name in columns if name not in (BACKGROUND, UNUSED)]
        faults = []
        for row in self.rows:
            for source in row.sources:
                count = known.count(source)
                if count == 0:
                    near = difflib.get_close_matches(source, known, n=3, cutoff=0.6)
                    hint = f"; near: {', '.join(near)}" if near else ""
                    faults.append(
                        f"{row.name} wants {source!r}, which isn't among the weights' {len(known)}"
                        f" classes{hint}"
                    )
                elif count > 1:
                    faults.append(
                        f"{row.name} wants {source!r}, which {count} columns of the weights have"
                    )
        if faults:
            raise ClassPlanError(
                f"class plan: {'; '.join(faults)}. The weights have: {', '.join(known[:100])}. Mend"
                " surgery.classes in params.yaml."
            )


def _parse_row(name: Any, rule: Any) -> Row:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{name!r} is no class name, expected text")
    if name != name.strip() or not name.isprintable():
        raise ValueError(
            f"{name!r} begins or ends with a space or has a character that can't be seen, expected"
            f" {_visible(name)!r}"
        )
    if name in (BACKGROUND, UNUSED):
        raise ValueError(f"{name!r} is reserved; background is always there and is never named")
    if rule == "keep":
        return Row(name, "keep", {name: 1.0})
    if rule == "new":
        return Row(name, "new", {}, "prior")
    if isinstance(rule, Mapping) and len(rule) == 1:
        (kind, value), *_ = rule.items()
        if kind == "keep" and isinstance(value, str):
            return Row(name, "keep", {value: 1.0})
        if kind == "like":
            return Row(name, "like", _weights(name, value))
        if kind == "new" and value in ("prior", "reference", "zero"):
            return Row(name, "new", {}, value)
    raise ValueError(
        f"{name}: {rule!r} is no rule, expected `keep`, `{{keep: NAME}}`, `{{like: NAME or [NAMES]"
        " or {NAME: weight}}` or `{new: prior | reference | zero}`"
    )


def _visible(name: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in name).split())


def _weights(name: str, value: Any) -> dict[str, float]:
    if isinstance(value, str):
        return {value: 1.0}
    if (
        isinstance(value, Sequence)
        and value
        and all(isinstance(item, str) for item in value)
        and len(set(value)) == len(value)
    ):
        return {item: 1.0 / len(value) for item in value}
    if isinstance(value, Mapping) and value:
        numbers = list(value.values())
        if all(
            isinstance(w, int | float) and not isinstance(w, bool) and 0 < w < LARGEST_WEIGHT
            for w in numbers
        ):
            return {str(key): w / sum(numbers) for key, w in value.items()}
    raise ValueError(
        f"{name}: like: {value!r}, expected a class, a list of different classes, or classes with"
        " positive weights"
    )


def label_of(columns: Iterable[str]) -> dict[str, int]:
    """Class name -> label (column index), background and unused columns left out."""
    return {name: index for index, name in enumerate(columns) if name not in (BACKGROUND, UNUSED)}
