"""Calibration: of the detections with a score of 0.8, are 80% true?

A detection is true when it finds an object at IoU 0.5; what a crowd took is left out. The expected
calibration error (ECE) is the mean gap between score and precision over ten bins of equal width,
weighted by the detections in each.

Source: Guo et al., On Calibration of Modern Neural Networks (ICML 2017).
"""

import pandas as pd
from hotcoco.metrics import calibration_curve, calibration_error

from topwork.metrics.matching import Matches

BINS = 10


def reliability(matches: Matches, label: int | None = None) -> pd.DataFrame:
    """The reliability curve of one class or of all.

    Returns:
        low, high (the bin's edges), confidence (mean score), precision, count; bins without
        detections are left out.
    """
    score, true = _counted(matches, label)
    rows = [
        {
            "low": entry["bin_lower"],
            "high": entry["bin_upper"],
            "confidence": entry["avg_confidence"],
            "precision": entry["avg_accuracy"],
            "count": entry["count"],
        }
        for entry in calibration_curve(score, true, BINS)
        if entry["count"]
    ]
    return pd.DataFrame(rows, columns=["low", "high", "confidence", "precision", "count"])


def expected_error(matches: Matches, label: int | None = None) -> float | None:
    """ECE of one class or of all; None without detections."""
    score, true = _counted(matches, label)
    return float(calibration_error(score, true, BINS)[0]) if len(score) else None


def _counted(matches: Matches, label: int | None):  # type: ignore[no-untyped-def]
    where = slice(None) if label is None else matches.of(label)
    counted = ~matches.ignored[0, where]
    return matches.score[where][counted], matches.true[0, where][counted]
