"""The figures that the page speaks of: AP by class, set and model, retention, and the contract's verdict."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from topwork.report.run import MODELS, Run


@dataclass(frozen=True)
class Estimate:
    """A figure and, where it was estimated, its confidence interval."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> str:
        """The interval in words a table can hold: `0.81 to 0.93`, or nothing."""
        return "" if self.low is None or self.high is None else f"{self.low:.2f} to {self.high:.2f}"


@dataclass(frozen=True)
class ClassFigures:
    """One class on one set.

    Attributes:
        name: target class.
        origin: `keep`, `like` or `new`.
        on: `test` or `source`.
        ap: model -> AP; None where AP is undefined (no ground truth, or the model has no such class).
        retention: fine-tuned AP over pretrained AP; None where it is undefined.
        objects: ground-truth boxes.
        images: images that hold one.
        threshold: model -> score at which the class's F1 is highest; None where it is undefined.
        note: why something is undefined, or None.
    """

    name: str
    origin: str
    on: str
    ap: Mapping[str, Estimate | None]
    retention: Estimate | None
    objects: int = 0
    images: int = 0
    threshold: Mapping[str, float | None] = field(default_factory=dict)
    note: str | None = None

    @property
    def kept(self) -> bool:
        """Whether the class's rows were kept bit by bit."""
        return self.origin == "keep"


@dataclass(frozen=True)
class Clause:
    """One line of the retention contract, whether it holds, and evaluate's own sentence on it; `by` says what has to reach `least`."""

    name: str
    on: str
    least: float
    found: Estimate | None
    holds: bool
    sentence: str = ""
    by: str = "estimate"

    @property
    def judged(self) -> float | None:
        """What is held against `least`: the retention, or its interval's lower end; None where it is undefined."""
        if self.found is None:
            return None
        return self.found.low if self.by == "interval" else self.found.value


def class_figures(run: Run) -> list[ClassFigures]:
    """The class table of evaluate, in its order."""
    return [
        ClassFigures(
            name=str(row["class"]),
            origin=str(row["origin"]),
            on=str(row["set"]),
            ap={model: estimate(row, f"ap_{model}", f"interval_{model}") for model in MODELS},
            retention=estimate(row, "retention", "interval_retention"),
            objects=int(row.get("objects") or 0),
            images=int(row.get("images") or 0),
            threshold={model: (row.get(f"best_{model}") or {}).get("threshold") for model in MODELS},
            note=row.get("note"),
        )
        for row in run.json("out/evaluate/classes.json") or []
    ]


def clauses(run: Run) -> list[Clause]:
    """The retention contract's lines as evaluate judged them."""
    return [
        Clause(
            str(row["class"]),
            str(row["on"]),
            float(row["min"]),
            estimate(row, "found", "interval"),
            bool(row["holds"]),
            str(row.get("sentence", "")),
            str(row.get("by", "estimate")),
        )
        for row in (run.verdict or {}).get("contracts", [])
    ]


def estimate(row: Mapping[str, Any], key: str, between: str) -> Estimate | None:
    """A figure of a row with its interval: `ap_finetuned` with `interval_finetuned`, `retention` with `interval_retention`."""
    value, pair = row.get(key), row.get(between)
    if not _finite(value):
        return None
    assert value is not None
    if isinstance(pair, Sequence) and len(pair) == 2 and all(_finite(end) for end in pair):
        return Estimate(float(value), float(pair[0]), float(pair[1]))
    return Estimate(float(value))


def mean_ap(figures: Iterable[ClassFigures], model: str) -> float | None:
    """Mean AP over the classes for which it is defined; None where there is none."""
    values = [found.value for figure in figures if (found := figure.ap.get(model)) is not None]
    return sum(values) / len(values) if values else None


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def words(names: Sequence[str]) -> str:
    """A list as a sentence holds it.

    Example:
        >>> words(["helmet", "forklift", "cone"])
        'helmet, forklift and cone'
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def percent(value: float, least: float | None = None) -> str:
    """A share in whole percent, in tenths between 99 and 100 so that no loss is rounded away.

    With `least`, what was asked, in as many digits as it takes to see on which side of it the value lies.

    Example:
        >>> percent(0.9713), percent(0.9962), percent(1.0)
        ('97%', '99.6%', '100%')
        >>> percent(0.9496, least=0.95), percent(0.95, least=0.95)
        ('94.96%', '95%')
    """
    digits = 1 if 0.99 <= value < 0.9995 else 0
    text = f"{value * 100:.{digits}f}"
    while least is not None and digits < 6 and (float(text) < least * 100) != (value < least):
        digits += 1
        text = f"{value * 100:.{digits}f}"
    return f"{text}%"


def exact_percent(value: float) -> str:
    """A share as someone wrote it, in percent.

    Example:
        >>> exact_percent(0.95), exact_percent(0.975), exact_percent(0.07)
        ('95%', '97.5%', '7%')
    """
    return f"{value * 100:.8g}%"
