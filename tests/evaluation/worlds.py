"""Random ground truth and predictions, in our form and in pycocotools' own."""

import contextlib
import io
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from topwork.metrics.truth import Truth, detections_of


def random_world(
    seed: int,
    *,
    images: int = 12,
    classes: int = 4,
    objects: int = 60,
    found: int = 300,
    crowds: float = 0.1,
    grid: float = 0.0,
    ties: bool = False,
    empty_class: bool = False,
    scale: float = 4.0,
) -> tuple[Truth, pd.DataFrame]:
    """Objects of all sizes and detections near them, of another class, doubled, and out of nowhere.

    With `grid` boxes are rounded to it, so that overlaps tie; with `ties` scores are.
    """
    random = np.random.default_rng(seed)
    size = np.exp(random.normal(scale, 1.0, (objects, 2))).clip(2, 400)
    corner = random.uniform(0, 1, (objects, 2)) * (np.array([640, 480]) - size).clip(1)
    boxes = np.hstack([corner, size])
    top = classes - 1 if empty_class else classes
    label = random.integers(1, top + 1, objects)
    image = random.integers(0, images, objects)
    source = random.integers(0, max(objects, 1), found) if objects else np.zeros(found, dtype=int)
    if objects:
        near = boxes[source].copy()
        near[:, :2] += random.normal(0, 0.15, (found, 2)) * near[:, 2:]
        near[:, 2:] *= np.exp(random.normal(0, 0.15, (found, 2)))
        near_image, near_label = (
            image[source],
            np.where(
                random.random(found) < 0.85, label[source], random.integers(1, classes + 1, found)
            ),
        )
    else:
        near, near_image, near_label = (
            random.uniform(1, 200, (found, 4)),
            random.integers(0, images, found),
            random.integers(1, classes + 1, found),
        )
    stray = random.random(found) < 0.3
    near[stray] = random.uniform(1, 200, (int(stray.sum()), 4))
    score = random.random(found)
    if grid:
        boxes, near = (np.maximum(np.round(b / grid), [0, 0, 1, 1]) * grid for b in (boxes, near))
    if ties:
        score = np.round(score, 1)
    names = tuple(f"class {index}" for index in range(classes))
    truth = Truth(
        classes=names,
        image_ids=np.sort(random.choice(10_000, images, replace=False)).astype(np.int64) + 1,
        sizes=np.tile(np.array([640, 480]), (images, 1)),
        image=image.astype(np.int64),
        label=label.astype(np.int64),
        boxes=boxes,
        area=boxes[:, 2] * boxes[:, 3] * random.uniform(0.5, 1, objects),
        crowd=random.random(objects) < crowds,
        annotation_ids=np.arange(1, objects + 1),
        segmentation=(None,) * objects,
    )
    table = pd.DataFrame(
        {
            "image_id": truth.image_ids[near_image],
            "label": near_label,
            "name": [names[value - 1] for value in near_label],
            "score": score,
            "x": near[:, 0],
            "y": near[:, 1],
            "width": near[:, 2],
            "height": near[:, 3],
        }
    )
    return truth, table


def pycoco(
    truth: Truth,
    predictions: pd.DataFrame,
    iou_type: str = "bbox",
    segmentations: tuple[list[Any], list[Any]] | None = None,
) -> Any:
    """The same, evaluated by pycocotools itself."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found = detections_of(predictions, truth)
    ground, results = COCO(), COCO()
    images = [
        {"id": index + 1, "width": int(w), "height": int(h)}
        for index, (w, h) in enumerate(truth.sizes)
    ]
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(truth.classes)]
    annotations = [
        {
            "id": index + 1,
            "image_id": int(truth.image[index]) + 1,
            "category_id": int(truth.label[index]),
            "bbox": truth.boxes[index].tolist(),
            "area": float(truth.area[index]),
            "iscrowd": int(truth.crowd[index]),
            "ignore": 0,
        }
        for index in range(len(truth))
    ]
    rows = [
        {
            "id": index + 1,
            "image_id": int(found.image[index]) + 1,
            "category_id": int(found.label[index]),
            "bbox": found.boxes[index].tolist(),
            "area": float(found.boxes[index, 2] * found.boxes[index, 3]),
            "iscrowd": 0,
            "score": float(found.score[index]),
        }
        for index in range(len(found))
    ]
    if segmentations:
        from pycocotools import mask

        for target, texts in zip((annotations, rows), segmentations, strict=True):
            for entry, segmentation in zip(target, texts, strict=True):
                entry["segmentation"] = segmentation
        for entry in rows:
            entry["area"] = float(mask.area(entry["segmentation"]))
    for coco, entries in ((ground, annotations), (results, rows)):
        coco.dataset = {"images": images, "categories": categories, "annotations": entries}
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
    evaluation = COCOeval(ground, results, iou_type)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def stats(evaluation: Any) -> NDArray[np.float64]:
    """The twelve figures that pycocotools prints."""
    return np.asarray(evaluation.stats, dtype=np.float64)
