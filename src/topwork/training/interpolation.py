"""Interpolation between the grafted and the fine-tuned weights.

Source: Wortsman et al., Robust fine-tuning of zero-shot models (WiSE-FT), arXiv 2109.01903. New
rows go all the way, since their start means nothing. Alpha, the fraction of the way, is chosen on
validation images: the smallest that costs no mAP.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from topwork.params.finetune import FinetuneParams
from topwork.training.protection import RowMasks

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

Validate = Callable[[Mapping[str, Tensor]], Mapping[str, float]]


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
    validate: Validate | None,
) -> tuple[float, list[dict[str, Any]]]:
    """The fraction of the way to keep, and the mAP of each candidate.

    Returns:
        (alpha, rows of {alpha, map}); without validation images the rows are empty and alpha is 1.
    """
    if params.interpolation == "off":
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
