"""COCO's average precision and recall: computed by hotcoco, compared with pycocotools in the tests,
undefined where it's undefined.

A class without an object has no AP: it's None here (pycocotools prints -1), and means leave it out.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import hotcoco
import numpy as np
from numpy.typing import NDArray

from topwork.errors import EvaluationError
from topwork.metrics.truth import Detections, Truth

IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
RECALL_THRESHOLDS = tuple(np.linspace(0.0, 1.0, 101).tolist())
AREAS = ("all", "small", "medium", "large")
"""COCO's: small is below 32 x 32 pixels of annotated area, large from 96 x 96."""
MAX_DETECTIONS = (1, 10, 100)

IouType = Literal["bbox", "segm"]


@dataclass(frozen=True)
class Scores:
    """COCO's arrays for one set of predictions; -1 means undefined inside the arrays, and only
    there.

    Attributes:
        classes: names, in the arrays' order.
        precision: float64[IoU thresholds, recall thresholds, classes, areas, max detections].
        recall: float64[IoU thresholds, classes, areas, max detections].
    """

    classes: tuple[str, ...]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]

    def ap(
        self, name: str | None = None, *, iou: float | None = None, area: str = "all"
    ) -> float | None:
        """Average precision of a class, or the mean of all classes that have one; over all IoU
        thresholds, or at one.
        """
        chosen = self.precision[self._iou(iou), :, self._class(name), AREAS.index(area), -1]
        return _mean(chosen)

    def ar(
        self,
        name: str | None = None,
        *,
        iou: float | None = None,
        area: str = "all",
        max_detections: int = 100,
    ) -> float | None:
        """Average recall, at so many detections an image at most."""
        chosen = self.recall[
            self._iou(iou),
            self._class(name),
            AREAS.index(area),
            MAX_DETECTIONS.index(max_detections),
        ]
        return _mean(chosen)

    def table(self, name: str | None = None) -> dict[str, float | None]:
        """COCO's twelve figures under torchmetrics' names; of one class (`ap...`, `ar...`) or of
        all (`map...`, `mar...`).
        """
        mean = "m" if name is None else ""
        return {
            f"{mean}ap": self.ap(name),
            f"{mean}ap_50": self.ap(name, iou=0.5),
            f"{mean}ap_75": self.ap(name, iou=0.75),
            **{f"{mean}ap_{area}": self.ap(name, area=area) for area in AREAS[1:]},
            **{
                f"{mean}ar_{count}": self.ar(name, max_detections=count) for count in MAX_DETECTIONS
            },
            **{f"{mean}ar_{area}": self.ar(name, area=area) for area in AREAS[1:]},
        }

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.classes)}

    def _class(self, name: str | None) -> slice | int:
        if name is None:
            return slice(None)
        if name not in self._places:
            raise EvaluationError(
                f"class {name!r}: not evaluated here; evaluated are {', '.join(self.classes)}."
            )
        return self._places[name]

    def _iou(self, iou: float | None) -> slice | int:
        return (
            slice(None) if iou is None else int(np.argmin(np.abs(np.subtract(IOU_THRESHOLDS, iou))))
        )


def score(truth: Truth, detections: Detections, iou_type: IouType = "bbox") -> Scores:
    """COCO's evaluation of boxes or masks.

    Raises:
        EvaluationError: masks are asked for, and the predictions or an annotation have none.
    """
    evaluation = hotcoco.COCOeval(*_datasets(truth, detections, iou_type), iou_type)
    evaluation.params.max_dets = list(MAX_DETECTIONS)
    evaluation.evaluate()
    evaluation.accumulate()
    arrays: Any = evaluation.eval
    return Scores(truth.classes, np.asarray(arrays["precision"]), np.asarray(arrays["recall"]))


def _datasets(truth: Truth, detections: Detections, iou_type: IouType) -> tuple[Any, Any]:
    """The two data sets as hotcoco takes them; images are numbered from 1, in the order of their
    ids.
    """
    images = [
        {"id": index, "width": int(width), "height": int(height)}
        for index, (width, height) in enumerate(truth.sizes, start=1)
    ]
    categories = [{"id": label, "name": name} for label, name in enumerate(truth.classes, start=1)]
    masks = _masks(truth, detections) if iou_type == "segm" else None
    ground = hotcoco.COCO.from_arrays(
        images,
        categories,
        truth.image + 1,
        truth.label,
        truth.boxes,
        area=truth.area,
        iscrowd=truth.crowd,
        segmentation=None if masks is None else masks[0],
    )
    rows = np.column_stack(
        [detections.image + 1, detections.boxes, detections.score, detections.label]
    )
    found = ground.load_res(rows, segmentation=None if masks is None else masks[1])
    # COCO's sizes go by the mask's area, the array form has taken the box's
    if masks is not None and len(detections):
        areas = hotcoco.mask.area(masks[1])
        found.update_anns(
            ids=np.arange(1, len(detections) + 1), area=np.asarray(areas, dtype=np.float64)
        )
    return ground, found


def _masks(truth: Truth, detections: Detections) -> tuple[list[Any], list[Any]]:
    if detections.segmentation is None and len(detections):
        raise EvaluationError(
            "masks: the predictions have boxes alone; evaluate boxes, or use a detector with masks."
        )
    without = [
        int(key)
        for key, text in zip(truth.annotation_ids, truth.segmentation, strict=True)
        if not text
    ]
    if without:
        raise EvaluationError(
            "masks: annotation"
            f" {', '.join(map(str, without[:5]))}{' and others' if len(without) > 5 else ''}"
            f" ({len(without)}) has no segmentation; evaluate boxes, or annotate masks."
        )
    return [json.loads(str(text)) for text in truth.segmentation], [
        json.loads(text) for text in detections.segmentation or ()
    ]


def _mean(values: NDArray[np.float64]) -> float | None:
    defined = values[values > -1]
    return float(np.mean(defined)) if defined.size else None
