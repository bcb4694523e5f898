"""Pooling in groups gives the same numbers and gradients."""

import torch
from torch import nn
from torchvision.ops import MultiScaleRoIAlign

from detectors import tiny
from topwork.detectors.families import family_of
from topwork.training.roi_pool import pool_in_groups


def test_groups_equal_the_whole() -> None:
    torch.manual_seed(0)
    pools = [MultiScaleRoIAlign(["0", "1"], 7, 2) for _ in range(2)]
    pool_in_groups(
        nn.ModuleDict({"roi_heads": nn.ModuleDict({"box_roi_pool": pools[1]})}),
        family_of(tiny.faster_rcnn(2)),
    )
    corners = torch.rand(150, 2) * 60
    boxes = torch.cat([corners, corners + 4 + torch.rand(150, 2) * 50], dim=1)
    results = []
    for pool in pools:
        torch.manual_seed(1)
        maps = {
            "0": torch.rand(2, 3, 32, 32, requires_grad=True),
            "1": torch.rand(2, 3, 16, 16, requires_grad=True),
        }
        pooled = pool(maps, [boxes[:100], boxes[100:]], [(128, 128), (128, 128)])
        pooled.square().sum().backward()
        results.append((pooled, maps["0"].grad, maps["1"].grad))
    for whole, grouped in zip(*results, strict=True):
        torch.testing.assert_close(grouped, whole)
    assert pools[1](
        maps, [torch.zeros(0, 4), torch.zeros(0, 4)], [(128, 128), (128, 128)]
    ).shape == (0, 3, 7, 7)
