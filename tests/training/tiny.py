"""A detector and a project so small that the real stage runs in a second or two."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, SSDHead

from topwork.dataset.tables import Tables
from topwork.params.document import Params, parse_params
from topwork.surgery.graft import graft
from topwork.weights.format import Weights, write_weights

SIDE = 64
BUILDER = f"{Path(__file__).resolve()}:build"
NAMES = ("person", "box")


class Trunk(nn.Module):
    """Two feature maps of stride 8 and 16."""

    def __init__(self) -> None:
        super().__init__()

        def block(before: int, after: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(before, after, 3, 2, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.Dropout(0.1),
            )

        self.low = nn.Sequential(block(3, 8), block(8, 16), block(16, 16))
        self.high = block(16, 16)

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        low = self.low(images)
        return OrderedDict([("0", low), ("1", self.high(low))])


def build(num_classes: int) -> SSD:
    """SSD of 64x64 pixels."""
    anchors = DefaultBoxGenerator([[2], [2]], scales=[0.2, 0.4, 0.6])
    head = SSDHead([16, 16], anchors.num_anchors_per_location(), num_classes)
    return SSD(Trunk(), anchors, (SIDE, SIDE), num_classes, head=head)


def pretrained() -> Weights:
    """Random weights of four classes; background is likely, as in a trained detector."""
    torch.manual_seed(0)
    model = build(5)
    return Weights(model.state_dict(), ("__background__", "person", "car", "tree", "dog"), BUILDER)


def make_project(
    folder: Path,
    train: int = 12,
    runtime: dict[str, object] | None = None,
    to_replay: int = 4,
    **finetune: object,
) -> Params:
    """Write all that the finetune stage reads, and return its params."""
    images, annotations, categories = [], [], []
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", 4), ("replay", to_replay)):
        (folder / "data" / split).mkdir(parents=True)
        categories += [
            {"split": split, "category_id": key, "name": name}
            for key, name in enumerate(NAMES, start=1)
        ]
        for image_id in range(count):
            picture = Image.new("RGB", (SIDE, SIDE), (30, 60, 90))
            pen = ImageDraw.Draw(picture)
            for key in (1, 2):
                x, y = (int(value) for value in random.integers(2, 34, 2))
                w, h = (int(value) for value in random.integers(12, 28, 2))
                pen.rectangle(
                    [x, y, x + w, y + h], fill=[(0, 0, 0), (200, 200, 40), (220, 30, 30)][key]
                )
                box = {
                    "x": x,
                    "y": y,
                    "width": w,
                    "height": h,
                    "area": w * h,
                    "iscrowd": False,
                    "segmentation": None,
                }
                annotations.append(
                    {
                        "split": split,
                        "annotation_id": len(annotations),
                        "image_id": image_id,
                        "category_id": key,
                        **box,
                    }
                )
            picture.save(folder / "data" / split / f"{image_id}.png")
            images.append(
                {
                    "split": split,
                    "image_id": image_id,
                    "file_name": f"{image_id}.png",
                    "width": SIDE,
                    "height": SIDE,
                    "image_root": f"data/{split}",
                }
            )
    floats = dict.fromkeys(("x", "y", "width", "height", "area"), "float64")
    Tables(
        pd.DataFrame(images), pd.DataFrame(annotations).astype(floats), pd.DataFrame(categories)
    ).write(folder / "out/validate")
    boxes = pd.DataFrame(
        {
            "image_id": [0],
            "name": ["person"],
            "score": [0.9],
            "x": [1.0],
            "y": [1.0],
            "width": [9.0],
            "height": [9.0],
        }
    )
    (folder / "out/unlabelled").mkdir(parents=True)
    boxes.to_parquet(folder / "out/unlabelled/boxes.parquet", index=False)
    source = pretrained()
    write_weights(folder / "out/fetch/pretrained.safetensors", source)
    grafted = graft(source, {"person": "keep", "box": "new"}, dropped="absorb").weights
    write_weights(folder / "out/surgery/grafted.safetensors", grafted)
    settings = {
        "epochs": 4,
        "head_epochs": 1,
        "batch_size": 4,
        "lr": 0.02,
        "validate_every": 2,
        "threads": 1,
        "augmentation": "ssdlite",
        "ema": 0.9,
        "early_stop": 50,
        **finetune,
    }
    raw = {
        "dataset": {"root": "data", "train": {"annotations": "train.json"}},
        "surgery": {"classes": {"person": "keep", "box": "new"}, "dropped": "absorb"},
        "finetune": settings,
        "runtime": {"device": "cpu", "workers": 0, "checkpoint_steps": 2, **(runtime or {})},
    }
    return parse_params(raw)
