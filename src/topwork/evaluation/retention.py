"""Retention: what a kept class's average precision is after fine-tuning, over what it was in the
pretrained detector.

Both are measured on the same images, so the interval is a paired bootstrap: each resample of the
images gives both figures, and their ratio. The contracts in params.yaml (`retention: {person: {min:
0.95, on: source}}`, `learned: {helmet: {min: 0.3}}`) are checked here and enforced by the gate.
"""

import numpy as np
from numpy.typing import NDArray

from topwork.evaluation.exactness import Proof
from topwork.metrics.bootstrap import Interval, interval
from topwork.params.learned import LearnParams
from topwork.params.retention import KeepParams
from topwork.project.evaluate import ContractRecord, LearnedRecord


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


def contract_record(
    name: str,
    asked: KeepParams,
    pretrained: float | None,
    finetuned: float | None,
    between: Interval | None,
    note: str | None,
    proof: Proof | None = None,
) -> ContractRecord:
    """Check one class's retention against its contract.

    Args:
        name: the class.
        asked: least retention, where, and by which figure.
        pretrained: average precision before.
        finetuned: average precision after.
        between: interval of the retention.
        note: why the retention is undefined, where that is known.
        proof: of a class that is kept exactly.
    """
    if asked.exact:
        assert proof is not None
        return ContractRecord(
            name=name,
            on=asked.on,
            min=asked.least,
            by=asked.measure,
            pretrained=pretrained,
            finetuned=finetuned,
            found=ratio(finetuned, pretrained),
            interval=between,
            holds=proof.holds,
            note=note,
            sentence=f"{name} on {asked.on}: {proof.sentence}",
        )
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
    if found is None:
        result = f"retention undefined ({note}), asked for {asked.least:g} at least"
    else:
        interval_text = f" (interval {between[0]:.3f} to {between[1]:.3f})" if between else ""
        by_end = ", by the interval's lower end" if asked.by == "interval" else ""
        result = (
            f"AP {pretrained:.3f} pretrained, {finetuned:.3f} fine-tuned: retention"
            f" {found:.3f}{interval_text}, asked for {asked.least:g} at least{by_end}"
        )
    return ContractRecord(
        name=name,
        on=asked.on,
        min=asked.least,
        by=asked.measure,
        pretrained=pretrained,
        finetuned=finetuned,
        found=found,
        interval=between,
        holds=measured is not None and measured >= asked.least,
        note=note,
        sentence=f"{name} on {asked.on}: {result}",
    )


def learned_record(
    name: str, asked: LearnParams, found: float | None, between: Interval | None
) -> LearnedRecord:
    """Check one new class's AP against its contract.

    Args:
        name: the class.
        asked: least AP, where, and by which figure.
        found: AP of the fine-tuned detector; None where the set has no object of the class.
        between: interval of the AP.
    """
    note = None if found is not None else f"the {asked.on} set has no object of the class"
    measured = found if asked.by == "estimate" else (between[0] if between else None)
    if asked.by == "interval" and between is None and found is not None:
        note = "no interval: evaluate.bootstrap is too small"
    if found is None:
        result = f"AP undefined ({note}), asked for {asked.min:g} at least"
    else:
        interval_text = f" (interval {between[0]:.3f} to {between[1]:.3f})" if between else ""
        by_end = ", by the interval's lower end" if asked.by == "interval" else ""
        result = f"AP {found:.3f}{interval_text}, asked for {asked.min:g} at least{by_end}"
    return LearnedRecord(
        name=name,
        on=asked.on,
        min=asked.min,
        by=asked.by,
        found=found,
        interval=between,
        holds=measured is not None and measured >= asked.min,
        note=note,
        sentence=f"{name} on {asked.on}: {result}",
    )
