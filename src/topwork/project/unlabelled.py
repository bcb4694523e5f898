"""Outs of the stage `unlabelled`."""

from pathlib import Path
from typing import Any

from pydantic import Field

from topwork.project.record import Record

FOLDER = Path("out/unlabelled")
BOXES = FOLDER / "boxes.parquet"
FINDINGS = FOLDER / "findings.json"


class UnlabelledBox(Record):
    """A confident detection of a kept class where the training annotations have none; bbox is xywh
    in pixels.
    """

    rule: str = "unlabelled-kept-class"
    severity: str = "warning"
    split: str = "train"
    image_id: int
    file_name: str
    name: str = Field(alias="class")
    score: float
    bbox: tuple[float, float, float, float]


class UnlabelledRecord(Record):
    """What was found: how many boxes, about how many objects, by class and box by box; and the
    limits of the search.
    """

    count: int
    estimate: float
    classes: dict[str, dict[str, Any]]
    rows: tuple[UnlabelledBox, ...]
    min_score: float
    max_iou: float
    max_inside: float
