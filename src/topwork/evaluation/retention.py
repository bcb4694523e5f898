"""Retention: what a kept class's average precision is after fine-tuning, over what it was in the
pretrained detector.

Both are measured on the same images, so the interval is a paired bootstrap: each resample of the
images gives both figures, and their ratio. The contract in params.yaml (`retention: {person: {min:
0.95, on: source}}`) is judged here and enforced by the gate.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topwork.metrics.bootstrap import Interval, interval
from topwork.params.retention import KeepParams
from topwork.project.evaluate import ContractRecord


def ratio(finetuned: float | None, pretrained: float | None) -> float | None:
    """Retention; None where either is undefined or the pretrained detector finds nothing."""
    if finetuned is None or pretrained is None or pretrained <= 0:
        return None
    return finetuned / pretrained


def ratio_interval(
    finetuned: NDArray[np.float64], pretrained: NDArray[np.float64], confidence: float
) -> Interval | None:
    """Interval of the retention from paired resamples; those without a pretrained AP are left
    out.
    """
    defined = np.isfinite(finetuned) & np.isfinite(pretrained) & (pretrained > 0)
    return interval(finetuned[defined] / pretrained[defined], confidence)


@dataclass(frozen=True)
class Verdict:
    """What became of one class's contract.

    Attributes:
        name: the class.
        on: the set.
        min: least retention that was asked for.
        by: `estimate` or `interval` (then its lower end has to reach `min`).
        pretrained: average precision before.
        finetuned: average precision after.
        found: retention; None where undefined.
        interval: of the retention.
        holds: whether the contract does; an undefined retention never holds.
        note: why it's undefined, or None.
    """

    name: str
    on: str
    min: float
    by: str
    pretrained: float | None
    finetuned: float | None
    found: float | None
    interval: Interval | None
    holds: bool
    note: str | None

    def sentence(self) -> str:
        """The verdict in words and figures."""
        if self.found is None:
            return (
                f"{self.name} on {self.on}: retention undefined ({self.note}), asked for"
                f" {self.min:g} at least"
            )
        between = (
            f" (interval {self.interval[0]:.3f} to {self.interval[1]:.3f})" if self.interval else ""
        )
        judged = ", by the interval's lower end" if self.by == "interval" else ""
        return (
            f"{self.name} on {self.on}: AP {self.pretrained:.3f} pretrained, {self.finetuned:.3f}"
            f" fine-tuned: retention {self.found:.3f}{between}, asked for {self.min:g} at"
            f" least{judged}"
        )

    def record(self) -> ContractRecord:
        """As verdict.json holds it."""
        return ContractRecord(
            name=self.name,
            on=self.on,
            min=self.min,
            by=self.by,
            pretrained=self.pretrained,
            finetuned=self.finetuned,
            found=self.found,
            interval=self.interval,
            holds=self.holds,
            note=self.note,
            sentence=self.sentence(),
        )


def verdict_of(
    name: str,
    asked: KeepParams,
    pretrained: float | None,
    finetuned: float | None,
    between: Interval | None,
    note: str | None,
) -> Verdict:
    """Hold one class's retention against its contract."""
    found = ratio(finetuned, pretrained)
    if found is None and note is None:
        note = (
            "the pretrained detector finds none of its objects"
            if pretrained is not None
            else "the set has no object of the class"
        )
    measured = found if asked.by == "estimate" else (between[0] if between else None)
    if asked.by == "interval" and between is None and found is not None:
        note = "no interval: evaluate.bootstrap is too small"
    return Verdict(
        name=name,
        on=asked.on,
        min=asked.min,
        by=asked.by,
        pretrained=pretrained,
        finetuned=finetuned,
        found=found,
        interval=between,
        holds=measured is not None and measured >= asked.min,
        note=note,
    )
