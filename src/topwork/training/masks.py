"""Instance masks from COCO segmentations, for detectors that learn them."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def masks_of(
    segmentations: Sequence[str | None], boxes: np.ndarray[Any, Any], size: tuple[int, int]
) -> np.ndarray[Any, Any]:
    """bool[N, H, W]: one mask an annotation; an annotation without a segmentation gets its box.

    Args:
        segmentations: COCO polygons or run lengths (packed or not) as JSON texts, or None.
        boxes: float[N, 4], (x1, y1, x2, y2).
        size: (H, W).
    """
    result = np.zeros((len(segmentations), *size), dtype=bool)
    for mask, text, (x1, y1, x2, y2) in zip(result, segmentations, boxes, strict=True):
        value = json.loads(text) if text else None
        if not value:
            mask[max(0, round(y1)) : round(y2), max(0, round(x1)) : round(x2)] = True
        elif isinstance(value, dict):
            packed = (
                coco_mask.frPyObjects(value, *size) if isinstance(value["counts"], list) else value
            )
            mask[:] = coco_mask.decode(packed)
        else:
            mask[:] = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(value, *size)))
    return result
