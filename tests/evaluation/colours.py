"""A detector that can be calculated by hand: each class has a colour, and it boxes what bears that
colour.

`colour` [K, 3], `size` [K] (the box is shrunk about its centre by this factor a side) and `score`
[K] are its head. An object found with size s overlaps by s * s.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from topwork.classes import BACKGROUND
from topwork.dataset.tables import Tables
from topwork.params.document import Params, parse_params
from topwork.stages import baseline, evaluate, predict
from topwork.weights.format import Weights, write_weights

COLOURS = {
    "person": (1.0, 0.0, 0.0),
    "truck": (0.0, 1.0, 0.0),
    "helmet": (0.0, 0.0, 1.0),
    "forklift": (1.0, 1.0, 0.0),
}
BUILDER = "evaluation.colours:detector"


class ColourDetector(nn.Module):
    """Boxes of what bears a class's colour."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.colour = nn.Parameter(torch.full((num_classes, 3), -1.0))
        self.size = nn.Parameter(torch.ones(num_classes))
        self.score = nn.Parameter(torch.full((num_classes,), 0.9))

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self._find(image) for image in images]

    def _find(self, image: Tensor) -> dict[str, Tensor]:
        boxes, labels = [], []
        for label in range(1, len(self.colour)):
            rows, columns = torch.nonzero(
                (image - self.colour[label][:, None, None]).abs().amax(0) < 0.1, as_tuple=True
            )
            if len(rows):
                x1, y1, x2, y2 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                cut_x, cut_y = (
                    (x2 - x1) * (1 - self.size[label]) / 2,
                    (y2 - y1) * (1 - self.size[label]) / 2,
                )
                boxes.append(torch.stack([x1 + cut_x, y1 + cut_y, x2 - cut_x, y2 - cut_y]))
                labels.append(label)
        where = torch.tensor(labels, dtype=torch.int64)
        return {
            "boxes": torch.stack(boxes) if boxes else torch.zeros(0, 4),
            "labels": where,
            "scores": self.score[where],
        }


def detector(num_classes: int) -> nn.Module:
    """The builder."""
    return ColourDetector(num_classes)


def colour_weights(names: tuple[str, ...], size: dict[str, float] | None = None) -> Weights:
    """Weights that know these classes, background first."""
    columns = (BACKGROUND, *names)
    size = size or {}
    state = {
        "colour": torch.tensor([COLOURS.get(name, (-1.0, -1.0, -1.0)) for name in columns]),
        "size": torch.tensor([size.get(name, 1.0) for name in columns]),
        "score": torch.full((len(columns),), 0.9),
    }
    return Weights(state, columns, BUILDER, {})


def colour_set(
    root: Path,
    split: str,
    categories: dict[int, str],
    drawn: list[list[str]],
    labelled: set[str] | None = None,
) -> Tables:
    """Images of 64 x 64 with one box of each class named, 20 x 20, side by side; annotated are
    those in `labelled`.
    """
    folder = root / "data" / split
    folder.mkdir(parents=True, exist_ok=True)
    ids = {name: key for key, name in categories.items()}
    images, annotations = [], []
    for number, names in enumerate(drawn):
        pixels = np.full((64, 64, 3), 128, dtype=np.uint8)
        for place, name in enumerate(names):
            x, y = 2 + 30 * (place % 2), 2 + 30 * (place // 2)
            pixels[y : y + 20, x : x + 20] = np.asarray(COLOURS[name]) * 255
            if name in ids and (labelled is None or name in labelled):
                annotations.append(
                    (
                        split,
                        len(annotations) + 1,
                        10 + number,
                        ids[name],
                        x,
                        y,
                        20,
                        20,
                        400,
                        False,
                        None,
                    )
                )
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append((split, 10 + number, f"{number}.png", 64, 64, f"data/{split}"))
    kinds = {
        "x": float,
        "y": float,
        "width": float,
        "height": float,
        "area": float,
        "iscrowd": bool,
    }
    return Tables(
        pd.DataFrame(
            images, columns=["split", "image_id", "file_name", "width", "height", "image_root"]
        ),
        pd.DataFrame(
            annotations,
            columns=[
                "split",
                "annotation_id",
                "image_id",
                "category_id",
                "x",
                "y",
                "width",
                "height",
                "area",
                "iscrowd",
                "segmentation",
            ],
        ).astype(kinds),
        pd.DataFrame(
            [(split, key, name) for key, name in categories.items()],
            columns=["split", "category_id", "name"],
        ),
    )


def colour_params(**sections: Any) -> Params:
    """Params of the project; sections may be replaced."""
    document = {
        "dataset": {"root": "data", "train": {"annotations": "train.json", "images": "train"}},
        "surgery": {"classes": {"person": "keep", "helmet": "new", "forklift": {"like": "truck"}}},
        "predict": {"batch_size": 4},
        "evaluate": {"bootstrap": 40},
        "runtime": {"device": "cpu"},
        "retention": {"person": {"min": 0.65, "on": "source"}},
    }
    return parse_params({**document, **sections})


def colour_project(
    root: Path, finetuned: dict[str, float] | None = None, helmet: str = "helmet"
) -> None:
    """All that `evaluate` and `unlabelled` read.

    Fine-tuned sizes default to a person found with an overlap of 0.81: AP 0.7.
    """
    COLOURS.setdefault(helmet, COLOURS["helmet"])
    test = [
        ["person", helmet],
        ["person", "forklift"],
        [helmet],
        ["person"],
        ["forklift", helmet],
        [],
    ] * 4
    yard = {3: "forklift", 5: helmet, 8: "person"}
    Tables.join(
        [
            colour_set(
                root,
                "train",
                yard,
                [["person", helmet], ["person"], [helmet]] * 10,
                labelled={helmet},
            ),
            colour_set(root, "test", yard, test),
            colour_set(
                root,
                "source",
                {1: "person", 2: "truck"},
                [["person"], ["truck"], ["person", "truck"]] * 10,
            ),
        ]
    ).write(root / "out/validate")
    write_weights(
        root / "out/fetch/pretrained.safetensors", colour_weights(("person", "truck", "N/A"))
    )
    target = ("person", helmet, "forklift")
    write_weights(
        root / "out/surgery/grafted.safetensors",
        colour_weights(target, {helmet: 0.1, "forklift": 0.1}),
    )
    write_weights(
        root / "out/finetune/weights.safetensors",
        colour_weights(target, finetuned or {"person": 0.9, helmet: 0.99}),
    )


def run_stages(root: Path, params: Params) -> None:
    """Predict with all three detectors, and evaluate."""
    baseline.run(params, root)
    predict.run(params, root)
    evaluate.run(params, root)


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text())
