"""Outs of the stage `validate`: tables for every later stage, and what was found in the data."""

from pathlib import Path
from typing import Any

from topwork.project.record import Record

FOLDER = Path("out/validate")
IMAGES = FOLDER / "images.parquet"
ANNOTATIONS = FOLDER / "annotations.parquet"
CATEGORIES = FOLDER / "categories.parquet"
FINDINGS = FOLDER / "findings.json"
FINDINGS_TABLE = FOLDER / "findings.parquet"
SUMMARY = FOLDER / "summary.json"
SPLITS_TABLE = FOLDER / "splits.csv"
REFUSED = Path(".topwork/findings")
"""Findings of data that stopped the stage: scratch, for a look."""
IMAGE_CACHE = Path(".topwork/scratch/images")
"""What is known of images between runs."""


def table_paths() -> dict[str, Path]:
    """The tables that later stages read, by name: their inputs."""
    return {path.stem: path for path in (IMAGES, ANNOTATIONS, CATEGORIES)}


class FindingRecord(Record):
    """One fault: which rule, where, what was found; box is xywh in pixels, None for a number that
    JSON doesn't have.
    """

    rule: str
    severity: str
    split: str
    file: str
    message: str
    image_id: int | None
    annotation_id: int | None
    image: str | None
    box: tuple[float | None, float | None, float | None, float | None] | None
    other_split: str | None
    other_image_id: int | None


class FindingCounts(Record):
    """How many findings there are."""

    by_rule: dict[str, int]
    by_severity: dict[str, int]
    total: int


class RuleRecord(Record):
    """A rule that was broken."""

    severity: str
    group: str
    explains: str


class FindingsRecord(Record):
    """findings.json.

    Attributes:
        findings: errors first; at most 1000 a rule, the Parquet file has all.
        counts: of all.
        left_out: rule -> how many aren't listed.
        dropped: what `dataset.drop` and `dataset.drop_images` took out.
        rules: those that were broken.
    """

    findings: tuple[FindingRecord, ...]
    counts: FindingCounts
    left_out: dict[str, int]
    dropped: tuple[dict[str, Any], ...]
    rules: dict[str, RuleRecord]
