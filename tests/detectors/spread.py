"""Random detectors whose scores differ: freshly built heads give every box the same score, and equal scores have no order."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def spread_scores(model: nn.Module, pictures: Sequence[Tensor], deviation: float = 1.5, seed: int = 0) -> None:
    """Scale the score layers so that their outputs have this standard deviation on the pictures, two at least (in place)."""
    _settle_norms(model, seed)
    layers = [layer for name, layer in model.named_modules() if _gives_scores(name, layer)]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
            if layer.bias is not None:
                layer.bias.zero_()
        seen: dict[nn.Module, tuple[float, Tensor]] = {}

        def look(layer: nn.Module, _: Any, output: Tensor) -> None:
            across = (0, 2, 3) if output.ndim == 4 else (0,)
            seen.setdefault(layer, (float(output.std(dim=across).mean()), output.mean(dim=across)))  # over places: what tells boxes apart

        handles = [layer.register_forward_hook(look) for layer in layers]
        model(list(pictures))
        for handle in handles:
            handle.remove()
        for layer in layers:
            spread, mean = seen[layer]
            layer.weight.mul_(deviation / max(spread, 1e-9))
            if layer.bias is not None:
                layer.bias.copy_(-mean * deviation / max(spread, 1e-9))


def _settle_norms(model: nn.Module, seed: int) -> None:
    """Fill batch norms with statistics of noise, so that features vary as they do in a trained detector."""
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.train()
        layer.momentum = 1.0
    with torch.no_grad():
        model(list(torch.rand(2, 3, 240, 300, generator=torch.Generator().manual_seed(seed))))  # two: the last map has one place
    for layer in norms:
        layer.eval()


def _gives_scores(name: str, layer: nn.Module) -> Any:
    """Last layers of torchvision's heads: SSD(Lite), FCOS and RetinaNet, R-CNN, and the RPN's objectness."""
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        return False
    if "classification_head.module_list" in name:
        return not name.endswith(".0.0")  # SSDLite: depthwise convolution first
    return name.endswith(("cls_logits", "cls_score", "bbox_ctrness"))
