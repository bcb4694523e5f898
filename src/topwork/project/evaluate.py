"""Outs of the stage `evaluate`."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from topwork.project.record import Record

FOLDER = Path("out/evaluate")
METRICS = Path("out/metrics.json")
TABLE = FOLDER / "table.json"
CLASSES = FOLDER / "classes.json"
VERDICT = FOLDER / "verdict.json"
IMAGES = FOLDER / "images.parquet"
"""set, model, image_id, f1 (at the classes' best thresholds, IoU 0.5): a row an image."""
PLOTS = FOLDER / "plots"
PR = PLOTS / "pr.csv"
CONFUSION = PLOTS / "confusion.csv"
CALIBRATION = PLOTS / "calibration.csv"
ERRORS = PLOTS / "errors.json"
MISTAKES = PLOTS / "mistakes.parquet"

Interval = tuple[float, float]


class LearnedRecord(Record):
    """The outcome of one class's learning contract.

    Attributes:
        name: the class (`class` in the file).
        on: the set.
        min: least figure that was asked for: AP of a new class, retention of a kept one.
        by: `estimate`, or `interval` (then its lower end has to reach `min`).
        found: the figure; None where undefined.
        interval: of the figure.
        holds: whether the contract does; an undefined figure never holds.
        note: why it's undefined, or None.
        sentence: all of it as one line of text.
    """

    name: str = Field(alias="class")
    on: str
    min: float
    by: str
    found: float | None
    interval: Interval | None
    holds: bool
    note: str | None
    sentence: str


class ContractRecord(LearnedRecord):
    """The outcome of one class's retention contract.

    Attributes:
        pretrained: average precision before.
        finetuned: average precision after.
    """

    pretrained: float | None
    finetuned: float | None


class VerdictRecord(Record):
    """verdict.json: the contracts of kept classes (`contracts`) and of new ones (`learned`)."""

    holds: bool
    contracts: tuple[ContractRecord, ...]
    learned: tuple[LearnedRecord, ...] = ()

    def lines(self) -> Iterator[str]:
        """One line a contract, as terminals show it."""
        for contract in (*self.contracts, *self.learned):
            yield f"contract {'holds' if contract.holds else 'BREACHED'}: {contract.sentence}"


class BestThresholdRecord(Record):
    """The score threshold at which a class's F1 is highest, and what is reached there; None where
    undefined.
    """

    threshold: float | None
    f1: float | None
    precision: float | None
    recall: float | None


class ModelFigures(Record):
    """One model's figures for a class on a set.

    Attributes:
        ap: average precision; None where the model lacks the class, or the set an object of it.
        interval: of the AP.
        figures: COCO's twelve, by name; None where the model lacks the class.
        best: the best threshold; None where the model lacks the class.
        ece: expected calibration error.
    """

    ap: float | None
    interval: Interval | None
    figures: dict[str, float | None] | None
    best: BestThresholdRecord | None
    ece: float | None


class ClassRecord(Record):
    """One class on one set.

    Attributes:
        split: the set (`set` in the file).
        name: the class (`class` in the file).
        origin: `keep`, `like` or `new`.
        objects: ground-truth boxes, crowds aside.
        images: images that hold one.
        note: why something is undefined, or None.
        models: model -> its figures.
        retention: fine-tuned AP over pretrained AP; None where undefined.
        interval_retention: its interval.
    """

    split: str = Field(alias="set")
    name: str = Field(alias="class")
    origin: str
    objects: int
    images: int
    note: str | None
    models: dict[str, ModelFigures]
    retention: float | None
    interval_retention: Interval | None


class ClassesRecord(Record):
    """classes.json: a row a set and class."""

    classes: tuple[ClassRecord, ...]


class WorstImageRecord(Record):
    """An image with many or confident mistakes of one kind; `weight` is the sum of their scores,
    for missed objects their number.
    """

    image_id: int
    count: int
    weight: float


class KindRecord(Record):
    """One kind of error.

    Attributes:
        count: how many there are, at any score.
        confident: how many at the score at which the class's F1 is highest.
        cost: how much AP at IoU 0.5 rises when this kind alone is fixed.
        share: the kind's fraction of what is missing from 1.
        classes: class -> confident ones.
        worst: images that hold most.
    """

    count: int
    confident: int
    cost: float | None
    share: float | None
    classes: dict[str, int]
    worst: tuple[WorstImageRecord, ...]


class ModelErrors(Record):
    """The errors of one model on a set."""

    ap_50: float | None
    ece: float | None
    kinds: dict[str, KindRecord]


class ErrorsRecord(Record):
    """errors.json: set -> model -> errors."""

    sets: dict[str, dict[str, ModelErrors]]


class MetricsRecord(Record):
    """metrics.json: the figures that one decides by; None where undefined.

    Attributes:
        retention: kept class -> fine-tuned AP over pretrained AP, where the contract wants it
            measured.
        ap: new or seeded class -> AP of the fine-tuned detector on the test set.
        map: mean AP of the fine-tuned detector on the test set.
    """

    retention: dict[str, float | None]
    ap: dict[str, float | None]
    map: float | None


class ClassAp(Record):
    """AP of a class over all IoU thresholds, and at 0.5."""

    ap: float | None
    ap_50: float | None


class MeanFigures(Record):
    """Means over the classes, and the classes themselves."""

    map: float | None
    map_50: float | None
    map_75: float | None
    mar_100: float | None
    classes: dict[str, ClassAp]


class ModelTable(MeanFigures):
    """The same for boxes, and for masks where they were evaluated."""

    masks: MeanFigures | None = None


class TableRecord(Record):
    """table.json: set -> model -> figures."""

    sets: dict[str, dict[str, ModelTable]]
