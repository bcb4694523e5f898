"""Draw docs/img/augmentation.jpg from the demo: `python docs/augmentation.py`, after `dvc repro
validate`. One row a preset, four draws each.
"""

from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torchvision.transforms.v2 import functional as vision

from topwork.dataset.tables import Tables
from topwork.training.augmentation import PRESETS
from topwork.training.dataset import DetectionDataset, examples

ROOT = Path(__file__).parents[1]
COLOURS = {1: (255, 220, 0), 2: (0, 230, 255), 3: (255, 80, 200)}
TILE, DRAWS, MARGIN = 160, 4, 84


def tile(image: torch.Tensor, boxes: torch.Tensor, labels: torch.Tensor) -> Image.Image:
    """A picture with its boxes, fitted into a square tile."""
    picture = vision.to_pil_image(image)
    pen = ImageDraw.Draw(picture)
    for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
        pen.rectangle(box, outline=COLOURS[label], width=max(2, picture.width // 120))
    picture.thumbnail((TILE, TILE))
    return picture


def main() -> None:
    """Draw all presets."""
    tables = Tables.read(ROOT / "out/validate")
    items = examples(tables, "train", {"person": 1, "helmet": 2, "forklift": 3})
    chosen = max(
        range(len(items)),
        key=lambda index: (
            len(set(items[index].labels.tolist())),
            -abs(len(items[index].labels) - 6),
        ),
    )
    page = Image.new("RGB", (MARGIN + DRAWS * TILE, len(PRESETS) * TILE), "white")
    for row, preset in enumerate(PRESETS):
        dataset = DetectionDataset(items[chosen : chosen + 1], root=ROOT, preset=preset)
        ImageDraw.Draw(page).text((6, row * TILE + TILE // 2), preset, fill="black")
        for draw in range(DRAWS):
            image, target = dataset[(draw, 0)]
            page.paste(
                tile(image, target["boxes"], target["labels"]), (MARGIN + draw * TILE, row * TILE)
            )
    (ROOT / "docs/img").mkdir(exist_ok=True)
    page.save(ROOT / "docs/img/augmentation.jpg", quality=80)


if __name__ == "__main__":
    main()
