"""The project's facts: params.yaml, the pinned version, data, weights, class plan and contracts.

The same functions as in the stages, without DVC and without decoding pictures, so that it takes
seconds. Nothing is downloaded or written.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from topwork import __version__
from topwork.dataset.images import ImageStore
from topwork.dataset.split_images import SplitImages
from topwork.dataset.tables import Tables
from topwork.detectors.builders import shapes_of
from topwork.doctor.findings import Check, NoteError
from topwork.download.cache import Cache
from topwork.download.sources import fetch
from topwork.download.torchvision_enums import entry_of
from topwork.download.watched import check_watched
from topwork.errors import DataError, ParamsError, TopworkError
from topwork.evaluation.contract import check_measurable, check_objects
from topwork.evaluation.plan_fit import plan_fit
from topwork.params.document import Params, check_tracked, parse_params
from topwork.params.section import read_document
from topwork.project.fetch import PRETRAINED, PROVENANCE, WEIGHTS_LOCK, ProvenanceRecord
from topwork.training.held_out import check_held_out
from topwork.validation.gate import paragraph, stops, validate
from topwork.weights.fit import check_fit
from topwork.weights.format import Weights, read_weights

REQUIREMENTS = Path("requirements.txt")
LOOKED_AT = 1000
"""Images of a split that are looked for; `validate` looks at all."""


@dataclass(frozen=True)
class Detector:
    """What is known of the pretrained detector without fetching it."""

    builder: str
    builder_args: dict[str, object]
    columns: tuple[str, ...]
    absorbed: tuple[str, ...] = ()
    weights: Weights | None = None
    note: str | None = None


Part = TypeVar("Part")


class once(Generic[Part]):
    """A property that is computed once; where that fails, later looks raise the same error."""

    def __init__(self, make: Callable[["Project"], Part]) -> None:
        self.make = make
        self.__doc__ = make.__doc__

    def __get__(self, project: "Project", owner: type) -> Part:
        known = project.known
        name = self.make.__name__
        if name not in known:
            try:
                known[name] = self.make(project)
            except TopworkError as error:
                known[name] = error
        if isinstance(known[name], TopworkError):
            raise known[name]
        part: Part = known[name]
        return part


class Project:
    """The project in the current folder; each part is read once.

    A part that can't be read raises its own error wherever it is asked for.
    """

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}

    @once
    def params(self) -> Params:
        """params.yaml, whole."""
        raw = read_document()
        params = parse_params(raw)
        check_tracked(raw)
        return params

    @once
    def tables(self) -> Tables:
        """The data, annotations alone."""
        self._check_root()
        found = validate(self.params.dataset, images=False, segmentation=False)
        if severities := stops(found.findings, self.params.dataset.fail_on):
            raise DataError(paragraph(found.findings, severities))
        return found.tables

    def _check_root(self) -> None:
        """Say how data that aren't here come here, where DVC knows."""
        root = self.params.dataset.root
        if root.exists():
            return
        if root.with_name(f"{root.name}.dvc").is_file():
            raise DataError(f"{root}: not here, and DVC tracks it. Get it: dvc pull {root}.dvc")
        maker = root.parent / "dvc.yaml"
        stages = (read_document(maker).get("stages") or {}) if maker.is_file() else {}
        for name, stage in stages.items():
            wdir = maker.parent / stage.get("wdir", ".")
            if any((wdir / str(out)).resolve() == root.resolve() for out in stage.get("outs", ())):
                raise NoteError(
                    f"{root}: not made yet; the stage {name} of {maker} does: dvc repro"
                )
        raise DataError(
            f"{root}: no such folder. Write where your data lie as dataset.root in params.yaml, or"
            f" put them there and run `dvc add {root}`."
        )

    @once
    def detector(self) -> Detector:
        """The pretrained detector: fetched before, a local file, or what its source says."""
        params = self.params.fetch
        check_watched(params)
        kind, colon, rest = params.source.partition(":")
        if params.source == "demo" or not colon or Path(params.source).exists():
            with tempfile.TemporaryDirectory() as scratch:
                weights = fetch(
                    params,
                    lock=Path(scratch) / WEIGHTS_LOCK.name,
                    also_known=WEIGHTS_LOCK,
                    notify=lambda _: None,
                )
            return _of_weights(weights)
        if _fetched(params.source):
            return _of_weights(read_weights(PRETRAINED, trust=params.builder or False))
        if kind.lower() == "torchvision":
            entry = entry_of(rest)
            name = f"torchvision:{entry.name}"
            there = Cache.default().find(name, None, lambda _: None) is not None
            return Detector(
                params.builder or entry.builder,
                dict(params.builder_args),
                entry.columns,
                note=None if there else f"it will be downloaded: topwork fetch {name}",
            )
        raise NoteError(
            f"{params.source}: not fetched yet, so the class plan isn't held against it. Run"
            " `topwork fetch` to look at it now."
        )

    def checks(self) -> list[Check]:
        """The checks of the project, in the order of the stages."""
        return [
            Check("params", self._check_params),
            Check("version", self._check_version),
            Check("data", self._check_data),
            Check("images", self._check_images),
            Check("weights", self._check_weights),
            Check("plan", self._check_plan),
            Check("classes", self._check_classes),
            Check("contracts", self._check_contracts),
        ]

    def _check_params(self) -> str:
        params = self.params
        return (
            f"params.yaml: {len(params.surgery.classes)} classes, {params.finetune.epochs} epochs"
        )

    def _check_version(self) -> str:
        here = __version__
        pinned = REQUIREMENTS.read_text(encoding="utf-8") if REQUIREMENTS.is_file() else ""
        wanted = next(
            (
                line.partition("==")[2].strip()
                for line in pinned.splitlines()
                if line.partition("==")[0].strip().partition("[")[0] == "topwork"
            ),
            "",
        )
        if wanted and wanted != here:
            raise ParamsError(
                f"{REQUIREMENTS}: asks for topwork {wanted}, and {here} is installed: results"
                f" would be called those of {wanted}. Run `pip install -r {REQUIREMENTS}`, or write"
                f" topwork=={here} there, which runs every stage again."
            )
        return f"topwork {here}"

    def _check_data(self) -> str:
        tables = self.tables
        counts = [f"{len(tables.split(name).images):,} {name}" for name in tables.splits]
        return f"{self.params.dataset.root}: images {', '.join(counts)}"

    def _check_images(self) -> str:
        tables, faults, looked = self.tables, [], 0
        for split in tables.splits:
            images = tables.split(split).images.head(LOOKED_AT)
            for root, names in images.groupby("image_root")["file_name"]:
                store = ImageStore(Path(str(root)))
                missing = [name for name in names if store.stamp(name) is None]
                looked += len(names)
                if missing:
                    faults.append(
                        f"{split}: {len(missing)} of {len(names)} aren't below {root}, such as"
                        f" {missing[0]}"
                    )
        if faults:
            raise DataError(
                f"images: {'; '.join(faults)}. Write where they lie as dataset.*.images in"
                " params.yaml; `topwork validate` names all."
            )
        return f"{looked:,} are where the annotations say"

    def _check_weights(self) -> str:
        detector = self.detector
        shapes = shapes_of(
            detector.builder,
            len(detector.columns),
            detector.builder_args,
            len(detector.absorbed),
        )
        if detector.weights is not None:
            check_fit(detector.weights, shapes)
        text = f"{self.params.fetch.source}: {detector.builder}, {len(detector.columns)} columns"
        if detector.note is None:
            return text
        raise NoteError(f"{text}; {detector.note}")

    def _check_plan(self) -> str:
        plan = self.params.surgery.plan()
        detector = self.detector
        plan.check((*detector.columns, *detector.absorbed))
        kept = len(plan.kept)
        return f"{kept} kept, {len(plan.names) - kept} new: {', '.join(plan.names)}"

    def _check_classes(self) -> str:
        fit = plan_fit(self.params.surgery.plan(), self.tables)
        fit.check()
        if fit.notes:
            raise NoteError("; ".join(fit.notes))
        return "every class of the plan has boxes in train, and every category a class"

    def _check_contracts(self) -> str:
        params = self.params
        plan = params.surgery.plan()
        contracts = params.retention, params.learned
        check_measurable(*contracts, plan, self.tables)
        check_objects(*contracts, plan, self.tables)
        check_held_out(plan, self.tables, params.finetune, SplitImages(self.tables))
        if not any(contracts):
            raise NoteError(
                "none: nothing fails however much is lost. Write"
                f" `retention: {{{next(iter(plan.kept), 'NAME')}: {{min: 0.95, on: test}}}}`."
            )
        return f"{len(params.retention)} of kept classes, {len(params.learned)} of new ones"


def _fetched(source: str) -> bool:
    """Whether the last fetch was of this source."""
    try:
        found = ProvenanceRecord.read(PROVENANCE).model_dump().get("source")
    except TopworkError:
        return False
    return PRETRAINED.is_file() and found == source


def _of_weights(weights: Weights) -> Detector:
    return Detector(
        weights.builder, weights.builder_args, weights.columns, weights.absorbed, weights
    )
