"""Folding a frozen norm changes neither function nor gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock
from torchvision.ops import Conv2dNormActivation, FrozenBatchNorm2d

from topwork.training.frozen_norm import fold_frozen_norms


def _scattered(model: nn.Module) -> nn.Module:
    """Norms as after training, in float64."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            for tensor in (module.running_var, module.weight):
                tensor.data.uniform_(0.5, 1.5)
            for tensor in (module.running_mean, module.bias):
                tensor.data.normal_(std=0.1)
            module.eval().requires_grad_(False)
    return model.double()


CASES = [
    pytest.param(lambda: Conv2dNormActivation(3, 6, 3, groups=3), 1, id="depthwise, batch norm"),
    pytest.param(
        lambda: BasicBlock(3, 3, norm_layer=FrozenBatchNorm2d), 2, id="residual, frozen batch norm"
    ),
    pytest.param(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)),
        0,
        id="convolution with bias: left alone",
    ),
]


@pytest.mark.parametrize(("make", "folded"), CASES)
def test_function_and_gradients_stay(make: Callable[[], nn.Module], folded: int) -> None:
    torch.manual_seed(0)
    plain, other = _scattered(make()), _scattered(make())
    other.load_state_dict(plain.state_dict())
    assert fold_frozen_norms(other) == folded
    assert list(other.state_dict()) == list(plain.state_dict())
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    outputs = [model(images) for model in (plain, other)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-10, atol=1e-12)
    for output in outputs:
        output.square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-8, atol=1e-10)
