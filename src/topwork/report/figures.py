"""The figures on the page: AP by class, set and model, retention, and the contract's
verdict.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from topwork.project.names import MODELS
from topwork.report.run import Run


@dataclass(frozen=True)
class Estimate:
    """A figure and, where it was estimated, its confidence interval."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> str:
        """The interval as a table shows it: `0.81 to 0.93`, or nothing."""
        return "" if self.low is None or self.high is None else f"{self.low:.2f} to {self.high:.2f}"


@dataclass(frozen=True)
class ClassFigures:
    """One class on one set.

    Attributes:
        name: target class.
        origin: `keep`, `like` or `new`.
        on: `test` or `source`.
        ap: model -> AP; None where AP is undefined (no ground truth, or the model has no such
            class).
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
    """One line of a contract, whether it holds, and evaluate's own sentence on it; `by` names what
    has to reach `least`: the retention of a kept class, or the AP of a learned one.
    """

    name: str
    on: str
    least: float
    found: Estimate | None
    holds: bool
    sentence: str = ""
    by: str = "estimate"
    kind: Literal["retention", "learned"] = "retention"

    @property
    def asked(self) -> str:
        """The least figure, as it was written: a retention in percent, an AP as a number."""
        return exact_percent(self.least) if self.kind == "retention" else f"{self.least:g}"

    @property
    def measured(self) -> float | None:
        """What is compared with `least`: the figure, or its interval's lower end; None where it is
        undefined.
        """
        if self.found is None:
            return None
        return self.found.low if self.by == "interval" else self.found.value


def class_figures(run: Run) -> list[ClassFigures]:
    """The class table of evaluate, in its order."""
    return [
        ClassFigures(
            name=row.name,
            origin=row.origin,
            on=row.split,
            ap={
                model: estimate(row.models[model].ap, row.models[model].interval)
                for model in MODELS
            },
            retention=estimate(row.retention, row.interval_retention),
            objects=row.objects,
            images=row.images,
            threshold={
                model: best.threshold if (best := row.models[model].best) else None
                for model in MODELS
            },
            note=row.note,
        )
        for row in (run.classes.classes if run.classes else ())
    ]


def clauses(run: Run) -> list[Clause]:
    """The contracts' lines as evaluate found them, of kept classes first."""
    if run.verdict is None:
        return []
    kept = [
        Clause(
            row.name,
            row.on,
            row.min,
            estimate(row.found, row.interval),
            row.holds,
            row.sentence,
            row.by,
        )
        for row in run.verdict.contracts
    ]
    learned = [
        Clause(
            row.name,
            row.on,
            row.min,
            estimate(row.found, row.interval),
            row.holds,
            row.sentence,
            row.by,
            "learned",
        )
        for row in run.verdict.learned
    ]
    return kept + learned


def estimate(value: float | None, between: tuple[float, float] | None) -> Estimate | None:
    """A figure with its interval; None where it is undefined."""
    return None if value is None else Estimate(value, *(between or (None, None)))


def mean_ap(figures: Iterable[ClassFigures], model: str) -> float | None:
    """Mean AP over the classes for which it is defined; None where there is none."""
    values = [found.value for figure in figures if (found := figure.ap.get(model)) is not None]
    return sum(values) / len(values) if values else None


def words(names: Sequence[str]) -> str:
    """A list as part of a sentence.

    Example:
        >>> words(["helmet", "forklift", "cone"])
        'helmet, forklift and cone'
    """
    return (
        names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
    )


def percent(value: float, least: float | None = None) -> str:
    """A share in whole percent, in tenths between 99 and 100 so that no loss is rounded away.

    With `least`, the minimum asked for, in as many digits as it takes to see on which side of it
    the value lies.

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


def average_precision(value: float, least: float | None = None) -> str:
    """An AP in hundredths; with `least`, the minimum asked for, in as many digits as it takes to
    see on which side of it the AP lies.

    Example:
        >>> average_precision(0.614), average_precision(0.2996, least=0.3)
        ('0.61', '0.2996')
    """
    digits = 2
    while (
        least is not None
        and digits < 6
        and (float(f"{value:.{digits}f}") < least) != (value < least)
    ):
        digits += 1
    return f"{value:.{digits}f}"


def exact_percent(value: float) -> str:
    """A share as someone wrote it, in percent.

    Example:
        >>> exact_percent(0.95), exact_percent(0.975), exact_percent(0.07)
        ('95%', '97.5%', '7%')
    """
    return f"{value * 100:.8g}%"
