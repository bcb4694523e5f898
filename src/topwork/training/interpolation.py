"""Interpolation between the grafted and the fine-tuned weights, and how far the result goes.

Source: Wortsman et al., Robust fine-tuning of zero-shot models (WiSE-FT), arXiv 2109.01903. New
rows go all the way, since their start means nothing. Alpha, the fraction of the way, is chosen on
validation images (the smallest that costs no mAP), or on images of the pretrained detector's domain
that nothing was trained on (the largest that keeps enough); so is a branch's share in kept classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from topwork.detectors.branches import Branched
from topwork.params.finetune import LEAST_MIX, FinetuneParams
from topwork.project.finetune import Interpolation
from topwork.training.protection import RowMasks

ALPHAS: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MIXES: tuple[float, ...] = (LEAST_MIX, 0.05, 0.1, 0.15, 0.2, 0.3)

MeasureTensors = Callable[[Mapping[str, Tensor]], Mapping[str, float]]
"""Tensors of the learning part -> figures of the detector with them."""


@dataclass(frozen=True)
class Choice:
    """How far the result goes.

    Attributes:
        kept: alpha, and what was tried.
        messages: lines for the log.
        notes: what the record has to say besides.
    """

    kept: Interpolation
    messages: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def choose(
    detector: nn.Module,
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    masks: Mapping[str, RowMasks],
    params: FinetuneParams,
    validate: MeasureTensors | None,
    measure_kept: MeasureTensors | None,
) -> Choice:
    """Choose alpha, or a branch's share in kept classes, which is then set in the detector.

    Args:
        detector: single, or with branches (whose alpha is 1).
        start: state_dict of the learning part before training.
        end: the same after it.
        masks: rows of class-dependent tensors.
        params: how to choose.
        validate: figures on validation images: `map`; None without such images.
        measure_kept: AP over the pretrained detector's, by kept class, on held-out images to
            replay; None where no share is chosen by it.
    """
    if measure_kept is not None:
        return _by_retention(detector, start, end, masks, params.least_retention, measure_kept)
    if isinstance(detector, Branched):
        if params.by_retention:  # nothing was learned, so that nothing is mixed in
            detector.branches = replace(detector.branches, mix=0.0)
        return Choice(Interpolation(alpha=1.0, tried=()))
    alpha, tried = choose_alpha(start, end, masks, params, validate)
    listed = ", ".join(f"{row['alpha']}: {row['map']:.4f}" for row in tried)
    line = f"interpolation: alpha {alpha} is kept (validation mAP by alpha: {listed})"
    return Choice(Interpolation(alpha=alpha, tried=tuple(tried)), (line,) if tried else ())


def _by_retention(
    detector: nn.Module,
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    masks: Mapping[str, RowMasks],
    least: float,
    measure: MeasureTensors,
) -> Choice:
    if isinstance(detector, Branched):
        key, what, shares = "mix", "the branch's share", MIXES

        def at(share: float) -> Mapping[str, float]:
            detector.branches = replace(detector.branches, mix=share)
            return measure(end)

    else:
        key, what, shares = "alpha", "alpha", (*ALPHAS, 1.0)

        def at(share: float) -> Mapping[str, float]:
            return measure(interpolate(start, end, share, masks))

    share, tried = largest_that_keeps(shares, at, least)
    listed = ", ".join(f"{number}: {kept:.1%}" for number, kept in tried)
    messages = [f"interpolation: {what} is {share} (retention on images to replay: {listed})"]
    notes = []
    if tried[-1][1] < least:
        notes.append(
            f"no share keeps {least:.0%} of every kept class on the held-out images of"
            f" dataset.replay; the smallest that is tried, {share}, keeps {tried[-1][1]:.1%}"
        )
    return Choice(
        Interpolation(
            alpha=1.0 if key == "mix" else share,
            tried=tuple({key: number, "retention": kept} for number, kept in tried),
        ),
        (*messages, *notes),
        tuple(notes),
    )


@torch.no_grad()
def interpolate(
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    alpha: float,
    masks: Mapping[str, RowMasks],
) -> dict[str, Tensor]:
    """Tensors at `alpha` of the way from start to end; new rows are the end's.

    Args:
        start: state_dict of the grafted detector.
        end: that of the fine-tuned one.
        alpha: 0..1; 1 gives the end, bit for bit.
        masks: rows of class-dependent tensors.
    """
    if alpha == 1:
        return dict(end)
    result = {}
    for name, last in end.items():
        first = start[name]
        if not last.is_floating_point():
            result[name] = last
            continue
        mixed = torch.where(first == last, last, first + (last - first) * alpha)
        if name in masks:
            mixed = torch.where(masks[name].new.to(last.device), last, mixed)
        result[name] = mixed
    return result


def choose_alpha(
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    masks: Mapping[str, RowMasks],
    params: FinetuneParams,
    validate: MeasureTensors | None,
) -> tuple[float, list[dict[str, Any]]]:
    """The fraction of the way to keep by validation, and the mAP of each candidate.

    Returns:
        (alpha, rows of {alpha, map}); without validation images the rows are empty and alpha is 1.
    """
    if params.interpolation in ("off", "retention"):
        return 1.0, []
    if isinstance(params.interpolation, float):
        return params.interpolation, []
    if validate is None:
        return 1.0, []
    rows: list[dict[str, Any]] = []
    for alpha in (1.0, *reversed(ALPHAS)):
        found = validate(interpolate(start, end, alpha, masks))
        rows.append({"alpha": alpha, "map": float(found["map"])})
        best = max(row["map"] for row in rows)
        if rows[-1]["map"] < best * (1 - 3 * params.interpolation_tolerance):
            break  # it only falls from here
    good = [
        row["alpha"] for row in rows if row["map"] >= best * (1 - params.interpolation_tolerance)
    ]
    return min(good), rows


def largest_that_keeps(
    shares: Sequence[float],
    measure: Callable[[float], Mapping[str, float]],
    least: float,
) -> tuple[float, list[tuple[float, float]]]:
    """The largest share at which every class keeps enough; the smallest where none does.

    Args:
        shares: candidates.
        measure: share -> class -> AP over the pretrained detector's.
        least: what is enough.

    Returns:
        (share, [(share tried, least retention)]).
    """
    tried: list[tuple[float, float]] = []
    for share in sorted(shares, reverse=True):
        kept = min(measure(share).values())
        tried.append((share, kept))
        if kept >= least:
            break
    return tried[-1][0], tried
