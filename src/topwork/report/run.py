"""What a run left behind: every file that the report and the comparison read, typed and optional
where it may be missing.

A run is read through `Files`, so that the working tree and a past revision (from git and the DVC
cache) are read alike.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar

import pandas as pd

from topwork.dataset.images import ImageStore
from topwork.dataset.tables import ANNOTATION_COLUMNS, CATEGORY_COLUMNS, IMAGE_COLUMNS, Tables
from topwork.errors import TopworkError
from topwork.params.document import Params
from topwork.project import evaluate, fetch, finetune, surgery, unlabelled, validate
from topwork.project.evaluate import (
    ClassesRecord,
    ErrorsRecord,
    ModelErrors,
    TableRecord,
    VerdictRecord,
)
from topwork.project.fetch import ProvenanceRecord
from topwork.project.finetune import RunRecord
from topwork.project.predictions import predictions_path
from topwork.project.record import Record
from topwork.project.surgery import ReceiptRecord
from topwork.project.unlabelled import UnlabelledRecord
from topwork.project.validate import FindingsRecord

Kind = TypeVar("Kind", bound=Record)


class Files(Protocol):
    """A project's files at one state; paths are relative to the project's root, with `/`."""

    def read_bytes(self, path: str) -> bytes:
        """Content of a file.

        Raises:
            TopworkError: there is none.
        """
        ...

    def names(self, folder: str) -> list[str]:
        """Paths of the files below a folder, sorted; empty where there is no such folder."""
        ...

    def image(self, image_root: str, file_name: str) -> bytes:
        """An image's bytes, from a folder or an archive."""
        ...

    def fingerprint(self, path: str) -> str | None:
        """A hash of a file's content; comparable between files of one kind; None where the path is
        no file.
        """
        ...


class WorkingFiles:
    """The files as they lie in a folder now."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._stores: dict[str, ImageStore] = {}

    def read_bytes(self, path: str) -> bytes:
        """Content of a file."""
        try:
            return (self.root / path).read_bytes()
        except OSError as error:
            raise TopworkError(
                f"{path}: can't be read ({error.strerror}). Run the stage that writes it: dvc"
                " repro."
            ) from error

    def names(self, folder: str) -> list[str]:
        """Paths of the files below a folder, sorted."""
        return sorted(
            path.relative_to(self.root).as_posix()
            for path in (self.root / folder).rglob("*")
            if path.is_file()
        )

    def image(self, image_root: str, file_name: str) -> bytes:
        """An image's bytes, from a folder or an archive."""
        if image_root not in self._stores:
            self._stores[image_root] = ImageStore(self.root / image_root)
        return self._stores[image_root].read(file_name)

    def fingerprint(self, path: str) -> str | None:
        """MD5 of a file, as DVC's cache names it; None where the path is no file."""
        file = self.root / path
        return (
            hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
            if file.is_file()
            else None
        )


@dataclass(frozen=True)
class Curve:
    """One training curve: its name from DVCLive's path (`train/loss`), steps and values."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def points(self) -> Sequence[tuple[float, float]]:
        """(step, value) pairs."""
        return list(zip(self.steps, self.values, strict=True))


class Run:
    """One run's outputs, each read when first asked for; None or empty where a file isn't there.

    A file that is there but can't be read is an error: the report never passes over damage in
    silence.
    """

    def __init__(self, files: Files, params: Params | None = None, name: str = "") -> None:
        self.files = files
        self.params = params
        self.name = name

    @cached_property
    def paths(self) -> frozenset[str]:
        """Every file below out/."""
        return frozenset(self.files.names("out"))

    def has(self, path: Path) -> bool:
        """Whether the run left that file."""
        return path.as_posix() in self.paths

    def read_bytes(self, path: Path) -> bytes:
        """Content of a file of the run."""
        return self.files.read_bytes(path.as_posix())

    def record(self, path: Path, kind: type[Kind]) -> Kind | None:
        """A record of the run, or None where there's no such file.

        Raises:
            TopworkError: the file is there and isn't such a record.
        """
        return kind.parse(self.read_bytes(path), path) if self.has(path) else None

    def frame(self, path: Path) -> pd.DataFrame | None:
        """A Parquet, CSV or TSV table of the run, or None.

        Raises:
            TopworkError: the file is there and isn't such a table.
        """
        if not self.has(path):
            return None
        stream = io.BytesIO(self.read_bytes(path))
        try:
            if path.suffix == ".parquet":
                return pd.read_parquet(stream)
            separator = "\t" if path.suffix == ".tsv" else ","
            return pd.read_csv(
                stream, sep=separator, keep_default_na=False, na_values=["", "nan", "NaN"]
            )
        except (ValueError, OSError) as error:
            raise TopworkError(
                f"{path}: not readable as a table ({error}). Run the stage that writes it again."
            ) from error

    @cached_property
    def tables(self) -> Tables:
        """The validated data set; empty tables where validate hasn't run."""
        frames = []
        for path, columns in (
            (validate.IMAGES, IMAGE_COLUMNS),
            (validate.ANNOTATIONS, ANNOTATION_COLUMNS),
            (validate.CATEGORIES, CATEGORY_COLUMNS),
        ):
            frame = self.frame(path)
            frames.append(pd.DataFrame(columns=list(columns)) if frame is None else frame)
        return Tables(*frames)

    @cached_property
    def findings(self) -> FindingsRecord | None:
        """What validate found: counts by rule and severity, dropped ids."""
        return self.record(validate.FINDINGS, FindingsRecord)

    @cached_property
    def finding_rows(self) -> pd.DataFrame:
        """Findings one a row."""
        frame = self.frame(validate.FINDINGS_TABLE)
        return (
            pd.DataFrame(columns=["rule", "severity", "split", "image_id"])
            if frame is None
            else frame
        )

    @cached_property
    def provenance(self) -> ProvenanceRecord | None:
        """Where the pretrained weights came from."""
        return self.record(fetch.PROVENANCE, ProvenanceRecord)

    @cached_property
    def receipt(self) -> ReceiptRecord | None:
        """What the surgery did."""
        return self.record(surgery.RECEIPT, ReceiptRecord)

    @cached_property
    def training(self) -> RunRecord | None:
        """How the fine-tuning ran."""
        return self.record(finetune.RECORD, RunRecord)

    @cached_property
    def classes(self) -> ClassesRecord | None:
        """The class table of evaluate."""
        return self.record(evaluate.CLASSES, ClassesRecord)

    @cached_property
    def table(self) -> TableRecord | None:
        """Means over the classes by set and model."""
        return self.record(evaluate.TABLE, TableRecord)

    def mean_ap(self, model: str, split: str) -> float | None:
        """The mAP of a model on a split; None where it is undefined."""
        found = self.table.sets.get(split, {}).get(model) if self.table else None
        return found.map if found else None

    @cached_property
    def verdict(self) -> VerdictRecord | None:
        """The retention contract's verdict."""
        return self.record(evaluate.VERDICT, VerdictRecord)

    @cached_property
    def errors(self) -> ErrorsRecord | None:
        """Error kinds by set and model."""
        return self.record(evaluate.ERRORS, ErrorsRecord)

    @cached_property
    def unlabelled(self) -> UnlabelledRecord | None:
        """Kept-class objects that the training annotations may lack; None where the stage hasn't
        run.
        """
        return self.record(unlabelled.FINDINGS, UnlabelledRecord)

    @cached_property
    def unlabelled_boxes(self) -> pd.DataFrame | None:
        """The boxes of those objects."""
        return self.frame(unlabelled.BOXES)

    def predictions(self, model: str, split: str) -> pd.DataFrame | None:
        """Detections of one of the three models on a split, or None."""
        return self.frame(predictions_path(model, split))

    def image_f1(self, model: str, split: str) -> dict[int, float] | None:
        """Image id -> F1 of a model on it, as evaluate found it, or None."""
        frame = self.frame(evaluate.IMAGES)
        if frame is None:
            return None
        rows = frame[(frame["model"] == model) & (frame["set"] == split)]
        return {
            int(image_id): float(f1)
            for image_id, f1 in zip(rows["image_id"], rows["f1"], strict=True)
        }

    def model_errors(self, model: str, split: str) -> ModelErrors | None:
        """Error kinds and calibration error of a model on a split, or None."""
        return self.errors.sets.get(split, {}).get(model) if self.errors else None

    @cached_property
    def curves(self) -> list[Curve]:
        """DVCLive's training curves, by name."""
        found = []
        start = f"{(finetune.CURVES / 'plots' / 'metrics').as_posix()}/"
        for path in sorted(self.paths):
            if not path.startswith(start) or not path.endswith(".tsv"):
                continue
            frame = self.frame(Path(path))
            if frame is None or frame.empty:
                continue
            name = str(PurePosixPath(path.removeprefix(start)).with_suffix(""))
            values = [column for column in frame.columns if column not in ("step", "timestamp")]
            steps = (
                pd.to_numeric(frame["step"], errors="coerce")
                if "step" in frame
                else pd.Series(range(len(frame)))
            )
            numbers = pd.to_numeric(frame[values[-1]], errors="coerce")
            found.append(Curve(name, tuple(map(float, steps)), tuple(map(float, numbers))))
        return found
