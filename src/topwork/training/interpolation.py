"""Interpolation between the grafted and the fine-tuned weights.

Source: Wortsman et al., Robust fine-tuning of zero-shot models (WiSE-FT), arXiv 2109.01903. New
rows go all the way, since their start means
nothing. The share is chosen on validation images: the smallest that costs no mAP.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from topwork.params.finetune import FinetuneParams
from topwork.training.protection import RowMasks

SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

Validate = Callable[[Mapping[str, Tensor]], Mapping[str, float]]


@torch.no_grad()
def interpolate(
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    share: float,
    masks: Mapping[str, RowMasks],
) -> dict[str, Tensor]:
    """Tensors at `share` of the way from start to end; new rows are the end's.

    Args:
        start: state_dict of the grafted detector.
        end: that of the fine-tuned one.
        share: 0..1; 1 gives the end, bit for bit.
        masks: rows of class-dependent tensors.
    """
    if share == 1:
        return dict(end)
    result = {}
    for name, last in end.items():
        first = start[name]
        if not last.is_floating_point():
            result[name] = last
            continue
        mixed = torch.where(first == last, last, first + (last - first) * share)
        if name in masks:
            mixed = torch.where(masks[name].new.to(last.device), last, mixed)
        result[name] = mixed
    return result


def choose_share(
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    masks: Mapping[str, RowMasks],
    params: FinetuneParams,
    validate: Validate | None,
) -> tuple[float, list[dict[str, Any]]]:
    """The share of the way to keep, and what each candidate was worth.

    Returns:
        (share, rows of {share, map}); without validation images the rows are empty and the share is
        1.
    """
    if params.interpolation == "off":
        return 1.0, []
    if isinstance(params.interpolation, float):
        return params.interpolation, []
    if validate is None:
        return 1.0, []
    rows: list[dict[str, Any]] = []
    for share in (1.0, *reversed(SHARES)):
        found = validate(interpolate(start, end, share, masks))
        rows.append({"share": share, "map": float(found["map"])})
        best = max(row["map"] for row in rows)
        if rows[-1]["map"] < best * (1 - 3 * params.interpolation_tolerance):
            break  # it only falls from here
    good = [
        row["share"] for row in rows if row["map"] >= best * (1 - params.interpolation_tolerance)
    ]
    return min(good), rows
