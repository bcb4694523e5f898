"""The usual way to fine-tune, to compare with: torchvision's reference recipe.

Written after pytorch/vision's references/detection: batches of 8, mirroring, SGD 0.01 with momentum
0.9 and weight decay 0.0001, a linear warm-up in the first epoch and steps down at 16/26 and 22/26
of the epochs, tensors in NCHW, everything (batch norm too) in training mode.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from topwork.dataset.images import ImageStore
from topwork.detectors.builders import load
from topwork.training.dataset import Example
from topwork.weights.format import Weights


class Mirrored(Dataset[Any]):
    """The reference's data: decoded and mirrored again each time."""

    def __init__(self, items: list[Example]) -> None:
        self.items = items
        self.transform = v2.Compose(
            [v2.RandomHorizontalFlip(0.5), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]
        )
        self.stores = {item.root: ImageStore(Path(item.root)) for item in items}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        item = self.items[index]
        image = tv_tensors.Image(
            v2.functional.pil_to_tensor(self.stores[item.root].open(item.file_name))
        )
        boxes = tv_tensors.BoundingBoxes(
            torch.tensor(item.boxes, dtype=torch.float32),
            format="XYXY",
            canvas_size=(item.height, item.width),
        )
        return self.transform(image, {"boxes": boxes, "labels": torch.tensor(item.labels)})


def train_reference(
    weights: Weights,
    items: list[Example],
    epochs: int,
    seed: int,
    after_epoch: Callable[[nn.Module], Any] = lambda model: None,
) -> nn.Module:
    """Train by the recipe; `after_epoch` is called with the detector, whatever mode it leaves it
    in.
    """
    torch.manual_seed(seed)
    model = load(weights)
    data = DataLoader(
        Mirrored(items),
        batch_size=8,
        shuffle=True,
        num_workers=1,
        collate_fn=lambda batch: tuple(zip(*batch, strict=True)),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    steps = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, [epochs * 16 // 26, epochs * 22 // 26], gamma=0.1
    )
    for epoch in range(epochs):
        model.train()
        warmup = (
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.001, total_iters=len(data) - 1)
            if epoch == 0
            else None
        )
        for images, targets in data:
            losses = model(list(images), list(targets))
            total = sum(losses.values())
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            if warmup:
                warmup.step()
        steps.step()
        after_epoch(model)
    return model.eval()
