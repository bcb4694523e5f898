"""Retention: what a kept class's average precision is after fine-tuning, over what it was in the
pretrained detector.

Both are measured on the same images, so the interval is a paired bootstrap: each resample of the
images gives both figures, and their ratio. The contracts in params.yaml (`retention: {person: {min:
0.95, on: source}}`, `learned: {helmet: {min: 0.3}}`) are checked here and enforced by the gate.
"""

from typing import Any

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
    found = ratio(finetuned, pretrained)
    if asked.exact:
        assert proof is not None
        outcome = {"holds": proof.holds, "note": note}
        result = proof.sentence
    else:
        if found is None and note is None:
            note = (
                "the pretrained detector finds none of its objects"
                if pretrained is not None
                else "the set has no object of the class"
            )
        outcome, result = _compared("retention", found, between, asked.least, asked.by, note)
        if found is not None:
            result = f"AP {pretrained:.3f} pretrained, {finetuned:.3f} fine-tuned: {result}"
    return ContractRecord(
        name=name,
        on=asked.on,
        min=asked.least,
        by=asked.measure,
        pretrained=pretrained,
        finetuned=finetuned,
        found=found,
        interval=between,
        sentence=f"{name} on {asked.on}: {result}",
        **outcome,
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
    outcome, result = _compared("AP", found, between, asked.min, asked.by, note)
    return LearnedRecord(
        name=name,
        on=asked.on,
        min=asked.min,
        by=asked.by,
        found=found,
        interval=between,
        sentence=f"{name} on {asked.on}: {result}",
        **outcome,
    )


def _compared(
    what: str,
    found: float | None,
    between: Interval | None,
    least: float,
    by: str,
    note: str | None,
) -> tuple[dict[str, Any], str]:
    """`holds` and `note` of a contract, and its sentence."""
    if found is None:
        outcome = {"holds": False, "note": note}
        return outcome, f"{what} undefined ({note}), asked for {least:g} at least"
    measured: float | None = found
    interval_text = f" (interval {between[0]:.3f} to {between[1]:.3f})" if between else ""
    asked_text = f"asked for {least:g} at least"
    if by == "interval":
        measured = between[0] if between else None
        asked_text += ", by the interval's lower end"
        if between is None:
            note = "no interval: evaluate.bootstrap is too small"
            asked_text += f" ({note})"
    return (
        {"holds": measured is not None and measured >= least, "note": note},
        f"{what} {found:.3f}{interval_text}, {asked_text}",
    )
