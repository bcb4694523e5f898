"""The drawn street in memory, the detector, and its COCO figures: what train.py and evaluate.py share."""

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.ssd import SSD

from topwork.demo.street import STREET_CLASSES

SIDE = 320
COLUMNS = ["__background__", *STREET_CLASSES]


@dataclass(frozen=True)
class Split:
    """A split decoded once: pictures uint8[N, 3, 320, 320], boxes xyxy in their pixels, labels from 1, original ids and sizes."""

    pictures: Tensor
    boxes: list[Tensor]
    labels: list[Tensor]
    image_ids: list[int]
    sizes: list[tuple[int, int]]
    table: Path


def load_split(folder: Path, split: str) -> Split:
    """Decode a split and stretch each picture to 320 x 320, as SSDLite's own transform would."""
    table = folder / f"{split}.json"
    data = json.loads(table.read_text(encoding="utf-8"))
    by_image: dict[int, list[dict[str, object]]] = {record["id"]: [] for record in data["images"]}
    for annotation in data["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    pictures = torch.empty((len(data["images"]), 3, SIDE, SIDE), dtype=torch.uint8)
    boxes, labels, ids, sizes = [], [], [], []
    for row, record in enumerate(data["images"]):
        with Image.open(folder / split / "images" / record["file_name"]) as picture:
            stretched = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        pictures[row] = torch.from_numpy(np.array(stretched)).permute(2, 0, 1)
        found = by_image[record["id"]]
        xywh = torch.tensor([a["bbox"] for a in found], dtype=torch.float32).reshape(-1, 4)
        scale = torch.tensor([SIDE / record["width"], SIDE / record["height"]]).repeat(2)
        boxes.append(torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1) * scale)
        labels.append(torch.tensor([a["category_id"] for a in found], dtype=torch.int64))
        ids.append(record["id"])
        sizes.append((record["width"], record["height"]))
    return Split(pictures, boxes, labels, ids, sizes, table)


def build_detector(score_threshold: float, detections_per_image: int) -> SSD:
    """SSDLite320 with random weights; nothing is downloaded."""
    return ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=len(COLUMNS), score_thresh=score_threshold,
        detections_per_img=detections_per_image,
    ).to(memory_format=torch.channels_last)  # fmt: skip


def set_side(model: SSD, side: int) -> None:
    """Choose the square input the detector resizes to; SSDLite is fully convolutional and its anchors are relative."""
    model.transform.fixed_size = (side, side)


@torch.inference_mode()
def predict(model: SSD, split: Split, batch_size: int = 8) -> list[dict[str, object]]:
    """COCO results (boxes in original pixels) of every picture of a split."""
    model.eval()
    results: list[dict[str, object]] = []
    for start in range(0, len(split.image_ids), batch_size):
        rows = range(start, min(start + batch_size, len(split.image_ids)))
        outputs = model([split.pictures[row].float() / 255 for row in rows])
        for row, output in zip(rows, outputs, strict=True):
            width, height = split.sizes[row]
            boxes = output["boxes"] * torch.tensor([width / SIDE, height / SIDE]).repeat(2)
            boxes[:, 2:] -= boxes[:, :2]
            for box, label, score in zip(boxes.tolist(), output["labels"].tolist(), output["scores"].tolist(), strict=True):
                results.append({"image_id": split.image_ids[row], "category_id": label, "bbox": box, "score": score})
    return results


def coco_figures(split: Split, results: Sequence[dict[str, object]]) -> dict[str, object]:
    """Measure with pycocotools: mAP, AP50, AP75 and each class's AP and AP50, rounded to four places."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(split.table))
        evaluation = COCOeval(truth, truth.loadRes(list(results)), "bbox") if results else None
        if evaluation is None:
            return {"map": 0.0, "map_50": 0.0, "map_75": 0.0, "per_class": {}}
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"]  # [10 IoU thresholds, 101 recalls, K classes, 4 area ranges, 3 detection limits]
    per_class = {}
    for column, name in enumerate(STREET_CLASSES):
        ap, ap_50 = precision[:, :, column, 0, -1], precision[0, :, column, 0, -1]
        if (ap > -1).any():
            per_class[name] = {
                "ap": round(float(ap[ap > -1].mean()), 4),
                "ap_50": round(float(ap_50[ap_50 > -1].mean()), 4),
            }
    overall = {key: round(float(evaluation.stats[at]), 4) for at, key in enumerate(("map", "map_50", "map_75"))}
    return {**overall, "per_class": per_class}
