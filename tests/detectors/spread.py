"""Random detectors that decide as trained ones do: rounding stays small in them, and few boxes are
worth a detection.

A freshly built detector scores all boxes alike, and what only has its scores spread is worse than
it looks: it finds something at every place, and its features carry rounding up to scores and boxes
that depend on who computes. Four things make it decided:

- each residual branch adds little to its trunk (torchvision starts its last batch norm at 1), and
  rounding grows no further along the layers;
- the RPN moves its anchors by a tenth of their size, not by all of it;
- scores differ from place to place;
- the background wins nearly everywhere, so that a proposal which rounding added or took is hardly
  ever a detection.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidual
from torchvision.models.resnet import Bottleneck

BRANCH = 0.2
"""Weight of each residual branch's last batch norm."""
MOVES = 0.1
"""Standard deviation of the RPN's box deltas."""
SCORES = 1.0
"""Standard deviation of every score layer's logits over places."""
RARE = 5.5
"""An object's logits lie this far below the background's (of sigmoid heads: below 0)."""


def spread_scores(
    model: nn.Module, pictures: Sequence[Tensor], columns: int, seed: int = 0
) -> None:
    """Make a freshly built torchvision detector decided on these pictures, two at least (in place).

    Args:
        model: detector in evaluation mode.
        pictures: float32[3, H, W] each.
        columns: score columns of the head, absorbed ones included.
        seed: of the score layers' weights.
    """
    named: dict[str, Any] = dict(model.named_modules())
    for layer in named.values():
        if isinstance(layer, Bottleneck):
            nn.init.constant_(layer.bn3.weight, BRANCH)
        elif isinstance(layer, InvertedResidual) and layer.use_res_connect:
            nn.init.constant_(layer.block[-1][1].weight, BRANCH)
    _settle_norms(model, seed)
    scores = {name: layer for name, layer in named.items() if _gives_scores(name, layer)}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in scores.values():
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        heads = {name: layer for name, layer in scores.items() if not name.startswith("rpn.")}
        if len(heads) < len(scores):  # first: the proposals depend on it
            _spread(
                model,
                pictures,
                {named["rpn.head.cls_logits"]: SCORES, named["rpn.head.bbox_pred"]: MOVES},
            )
        _spread(model, pictures, dict.fromkeys(heads.values(), SCORES))
        first = 0 if type(model).__name__ in ("FCOS", "RetinaNet") else 1
        for name, layer in heads.items():
            if not name.endswith("bbox_ctrness"):
                layer.bias.view(-1, columns)[:, first:].sub_(RARE)


def _spread(model: nn.Module, pictures: Sequence[Tensor], deviations: Mapping[Any, float]) -> None:
    """Scale layers so that their outputs, over places, have mean 0 and these standard
    deviations.
    """
    seen: dict[nn.Module, tuple[float, Tensor]] = {}

    def look(layer: nn.Module, _: Any, output: Tensor) -> None:
        across = (0, 2, 3) if output.ndim == 4 else (0,)
        # over places: what tells boxes apart
        seen.setdefault(layer, (float(output.std(dim=across).mean()), output.mean(dim=across)))

    for layer in deviations:
        layer.bias.zero_()
    handles = [layer.register_forward_hook(look) for layer in deviations]
    model(list(pictures))
    for handle in handles:
        handle.remove()
    for layer, deviation in deviations.items():
        spread, mean = seen[layer]
        layer.weight.mul_(deviation / max(spread, 1e-9))
        layer.bias.copy_(-mean * deviation / max(spread, 1e-9))


def _settle_norms(model: nn.Module, seed: int) -> None:
    """Fill batch norms with statistics of noise, so that features vary as they do in a trained
    detector.
    """
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.train()
        layer.momentum = 1.0
    with torch.no_grad():
        # two: the last map has one place
        model(list(torch.rand(2, 3, 240, 300, generator=torch.Generator().manual_seed(seed))))
    for layer in norms:
        layer.eval()


def _gives_scores(name: str, layer: nn.Module) -> bool:
    """Last layers of torchvision's heads: SSD(Lite), FCOS and RetinaNet, R-CNN, and the RPN's
    objectness.
    """
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        return False
    if "classification_head.module_list" in name:
        return not name.endswith(".0.0")  # SSDLite: depthwise convolution first
    return name.endswith(("cls_logits", "cls_score", "bbox_ctrness"))
