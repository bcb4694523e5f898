"""Outs of the stage `unlabelled`."""

from pathlib import Path

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


class UnlabelledClass(Record):
    """What was found of one class.

    Attributes:
        count: boxes.
        expected: sum of their scores: how many are real, were the scores calibrated.
        labelled: objects of the class that the annotations have.
        recall: share of those that the detector finds; None where there are too few.
        estimate: expected over recall.
    """

    count: int
    expected: float
    labelled: int
    recall: float | None
    estimate: float


class UnlabelledRecord(Record):
    """What was found: how many boxes, about how many objects, by class and box by box; and the
    limits of the search.
    """

    count: int
    estimate: float
    classes: dict[str, UnlabelledClass]
    rows: tuple[UnlabelledBox, ...]
    min_score: float
    max_iou: float
    max_inside: float
