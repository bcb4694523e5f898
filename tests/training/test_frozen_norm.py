"""Folding a frozen norm changes neither function nor gradients."""

import torch
from torch import nn
from torchvision.models import mobilenet_v3_large, resnet18
from torchvision.ops import FrozenBatchNorm2d

from topwork.training.frozen_norm import fold_frozen_norms


def _scatter(model: nn.Module) -> nn.Module:
    """Norms as after training, in float64."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            for tensor in (module.running_var, module.weight):
                tensor.data.uniform_(0.5, 1.5)
            for tensor in (module.running_mean, module.bias):
                tensor.data.normal_(std=0.1)
            module.eval().requires_grad_(False)
    return model.double()


def _check(make: "type[nn.Module] | object", folded: int) -> None:
    plain, other = _scatter(make()), _scatter(make())  # type: ignore[operator]
    other.load_state_dict(plain.state_dict())
    assert fold_frozen_norms(other) == folded
    assert list(other.state_dict()) == list(plain.state_dict())
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    outputs = [model.train(False)(images) for model in (plain, other)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-10, atol=1e-12)
    for output in outputs:
        output.square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-8, atol=1e-10)


def test_mobilenet() -> None:
    _check(lambda: mobilenet_v3_large(weights=None), folded=46)


def test_resnet_with_frozen_norms() -> None:
    _check(lambda: resnet18(weights=None, norm_layer=FrozenBatchNorm2d), folded=19)
