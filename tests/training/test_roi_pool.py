"""Our pooling gives torchvision's numbers and gradients."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign

from detectors import tiny
from topwork.detectors.families import family_of
from topwork.training import roi_pool
from topwork.training.roi_pool import replace_pool_gradient


def boxes_of(number: int) -> Tensor:
    """Small, large, reaching over the map's edge, and without area."""
    corners = torch.rand(number, 2) * 150 - 15
    boxes = torch.cat([corners, corners + torch.rand(number, 2).pow(2) * 120], dim=1)
    boxes[::17, 2:] = boxes[::17, :2]
    return boxes


@pytest.mark.parametrize("sampling", [2, -1])
@pytest.mark.parametrize("levels", [["0", "1"], ["0"]])
@pytest.mark.parametrize("largest", [roi_pool.LARGEST_ON_CPU, 32 * 40 - 1])
def test_it_equals_torchvisions(
    levels: list[str], sampling: int, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roi_pool, "LARGEST_ON_CPU", largest)
    torch.manual_seed(0)
    pools = [MultiScaleRoIAlign(levels, 7, sampling) for _ in range(2)]
    replace_pool_gradient(
        nn.ModuleDict({"roi_heads": nn.ModuleDict({"box_roi_pool": pools[1]})}),
        family_of(tiny.faster_rcnn(2)),
    )
    boxes = boxes_of(400)
    results = []
    for pool in pools:
        torch.manual_seed(1)
        maps = {
            name: torch.rand(3, 3, 32 // 2**level, 40 // 2**level, requires_grad=True)
            for level, name in enumerate(levels)
        }
        pooled = pool(maps, [boxes[:250], boxes[:0], boxes[250:]], [(128, 160)] * 3)
        (pooled * torch.rand_like(pooled)).sum().backward()
        results.append((pooled, *(value.grad for value in maps.values())))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    nothing = pools[1](maps, [boxes[:0]] * 3, [(128, 160)] * 3)
    assert nothing.shape == (0, 3, 7, 7)
    nothing.sum().backward()


@pytest.mark.parametrize("builder", ["faster_rcnn", "mask_rcnn"])
def test_a_two_stage_detector_learns_with_it(builder: str) -> None:
    """The same losses and, within rounding, the same gradients."""
    gradients = []
    for ours in (False, True):
        torch.manual_seed(0)
        model = getattr(tiny, builder)(3).train()
        if ours:
            replace_pool_gradient(model, family_of(model))
        torch.manual_seed(1)
        boxes = torch.tensor([[2.0, 3, 20, 25], [8, 8, 30, 30]])
        target = {"boxes": boxes, "labels": torch.tensor([1, 2])}
        if builder == "mask_rcnn":
            target["masks"] = torch.ones(2, 32, 32, dtype=torch.uint8)
        sum(model([torch.rand(3, 32, 32)] * 2, [target] * 2).values()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    theirs, own = gradients
    assert theirs.keys() == own.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
