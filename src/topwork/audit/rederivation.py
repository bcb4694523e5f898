"""What can be computed again in seconds: outs of stages that run no detector, from their recorded
inputs, by today's code.

Where the result is the recorded one, the statement holds, whichever code computed it. Where it
differs, the record is broken if today's code and environment are the revision's; otherwise it is
unchecked, and `topwork audit recompute`, which runs the revision's own code, decides.
"""

import contextlib
import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from topwork import __version__
from topwork.audit.check import Check
from topwork.audit.definition import Definition
from topwork.audit.revision import Entry, Revision, RevisionFiles, StageRecord, parse_yaml
from topwork.environment import (
    REQUIREMENTS,
    REQUIREMENTS_LOCK,
    differences_from,
    imported_from,
    requirements,
)
from topwork.errors import TopworkError
from topwork.files import md5_file, path_md5, sha256_file
from topwork.params.section import parse
from topwork.project import fetch as fetch_outs
from topwork.project import finetune as finetune_outs
from topwork.project import validate as validate_outs
from topwork.project.fetch import PRETRAINED
from topwork.project.finetune import RunRecord
from topwork.project.predictions import PredictionRecord, predictions_folder, record_path
from topwork.project.report import REPORT
from topwork.project.surgery import GRAFTED

COMMAND = "python -m topwork.stages."
FAULTS = (TopworkError, ValueError, KeyError, TypeError, OSError, ArithmeticError, IndexError)
"""What code that reads forged files may raise."""


_HELD: set[str] = set()
"""What this process has computed again, and found as recorded."""


class _Difference(Exception):
    """What was computed again isn't what is recorded."""


class _Missing(Exception):
    """It can't be computed again here, and why."""


@dataclass(frozen=True)
class _Context:
    revision: Revision
    record: StageRecord
    folder: Path
    """A scratch project that holds the stage's recorded inputs."""


def rederive(
    revision: Revision, defined: dict[str, Definition], checks: list[Check]
) -> Iterator[Check]:
    """Compute again what takes seconds; of stages whose statements don't hold anyway, nothing.

    Args:
        revision: which.
        defined: its stages by dvc.yaml.
        checks: what is known of the record's statements.
    """
    faulty = {check.stage for check in checks if check.status != "holds"}
    absent = {
        check.what.removeprefix("out ")
        for check in checks
        if check.status != "holds" and check.what.startswith("out ")
    }
    for name, (what, compute) in REDERIVED.items():
        record, definition = revision.stages.get(name), defined.get(name)
        if record is None or definition is None or definition.cmd != COMMAND + name:
            continue
        if name in faulty:
            continue
        if missing := sorted(absent & {dep.path for dep in record.deps}):
            reason = f"of its inputs, {missing[0]} doesn't hold or isn't here"
            yield Check(name, what, "unchecked", reason)
            continue
        yield _rederived(revision, record, what, compute)


def _rederived(
    revision: Revision, record: StageRecord, what: str, compute: Callable[[_Context], None]
) -> Check:
    key = _key(revision, record)
    if key in _HELD:
        return Check(record.name, what, "holds")
    with tempfile.TemporaryDirectory(prefix="topwork-audit-") as folder:
        context = _Context(revision, record, Path(folder))
        try:
            _lay_out(context)
            compute(context)
        except _Missing as error:
            return Check(record.name, what, "unchecked", str(error))
        except _Difference as error:
            return _check_of_difference(revision, record, what, str(error))
        except FAULTS as error:
            text = " ".join(str(error).split()) or type(error).__name__
            return _check_of_difference(revision, record, what, f"its inputs are refused: {text}")
    _HELD.add(key)
    return Check(record.name, what, "holds")


def _key(revision: Revision, record: StageRecord) -> str:
    """A hash of all that the computation reads: what held once holds for revisions that share
    it.
    """
    entries = [(entry.path, entry.md5) for entry in (*record.deps, *record.outs)]
    files = [revision.tracked.get(path) for path in ("params.yaml", "weights.lock")]
    lock = revision.tracked.get(record.file) if record.name == "report" else None
    text = json.dumps([record.name, entries, files, lock])
    return hashlib.sha256(text.encode()).hexdigest()


def _check_of_difference(revision: Revision, record: StageRecord, what: str, message: str) -> Check:
    """A difference: the record's fault where code and environment are the revision's."""
    other = []
    if not same_code(revision, record):
        other.append("its code isn't today's")
    if not same_environment(revision):
        other.append("its environment isn't this one")
    if not other:
        return Check(record.name, what, "broken", message)
    decides = f"`topwork audit recompute {revision.rev} --stage {record.name}` decides"
    return Check(record.name, what, "unchecked", f"{message}; but {' and '.join(other)}: {decides}")


def same_code(revision: Revision, record: StageRecord) -> bool:
    """Whether the running topwork is the code that the stage's deps name at the revision."""
    source = imported_from()
    code = [dep.path for dep in record.deps if dep.path.startswith("src/topwork/")]
    for dep in code:
        files = [path for path in revision.tracked if path == dep or path.startswith(f"{dep}/")]
        for path in files:
            running = source / path.removeprefix("src/")
            if not running.is_file() or md5_file(running) != revision.git_md5(path)[0]:
                return False
    if code:
        return True
    if REQUIREMENTS.as_posix() not in revision.tracked:
        return False
    text = revision.git_bytes(REQUIREMENTS.as_posix()).decode(errors="replace")
    return any(
        requirement.name == "topwork" and str(requirement.specifier) == f"=={__version__}"
        for requirement in requirements(text, REQUIREMENTS)
    )


def same_environment(revision: Revision) -> bool:
    """Whether this environment is the one that the revision pins; also where it pins none."""
    for path in (REQUIREMENTS_LOCK, REQUIREMENTS):
        if path.as_posix() in revision.tracked:
            text = revision.git_bytes(path.as_posix()).decode(errors="replace")
            return not differences_from(text, path)
    return True


def _lay_out(context: _Context) -> None:
    """Put the stage's recorded inputs and outs that lie below out/ into the scratch folder, inputs
    where stages look for them, outs below `recorded/`.
    """
    record = context.record
    for dep in record.deps:
        if dep.path.startswith("out/"):
            _link(context.revision, dep, context.folder / dep.path)
    for out in record.outs:
        _link(context.revision, out, context.folder / "recorded" / out.path)


def _link(revision: Revision, entry: Entry, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if entry.path in revision.tracked:
        target.write_bytes(revision.git_bytes(entry.path))
    elif entry.is_folder:
        for path, md5 in revision.members(entry).items():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).symlink_to(revision.cached(md5))
    else:
        assert entry.md5 is not None
        target.symlink_to(revision.cached(entry.md5))


def _recorded(context: _Context, path: Path) -> Path:
    return context.folder / "recorded" / path


# stages that are simply run again


def _stage_again(context: _Context) -> None:
    """Run the stage's own function on its recorded inputs, and hold what it writes against the
    recorded outs, file by file.
    """
    from importlib import import_module

    module = import_module(f"topwork.stages.{context.record.name}")
    sections = parse(module.Params, context.revision.params_document(), Path("params.yaml"))
    with contextlib.redirect_stdout(io.StringIO()):
        module.run(sections, context.folder)
    for out in context.record.outs:
        _same(context, out)


def _same(context: _Context, out: Entry) -> None:
    """Hold an out that was written again against the recorded one.

    Raises:
        _Difference: they differ; what differs is named.
    """
    found, recorded = context.folder / out.path, _recorded(context, Path(out.path))
    if found.exists() and path_md5(found) == path_md5(recorded):
        return
    if not found.exists():
        raise _Difference(f"{out.path}: isn't written today")
    pairs = [(found, recorded)]
    if found.is_dir():
        names = sorted(
            {p.relative_to(folder) for folder in (found, recorded) for p in folder.rglob("*.*")}
        )
        pairs = [(found / name, recorded / name) for name in names]
    for ours, theirs in pairs:
        if difference := difference_of(ours, theirs):
            name = out.path if found.is_file() else f"{out.path}/{ours.relative_to(found)}"
            raise _Difference(f"{name}: {difference}")


def difference_of(found: Path, recorded: Path) -> str | None:
    """In words, what differs between a file that was computed again and the recorded one; None
    where they say the same.

    JSON is held against each other value by value and Parquet table by table: the recorded figures
    count, not how a library wrote them.
    """
    if not found.is_file() or not recorded.is_file():
        return "is only recorded" if recorded.is_file() else "isn't recorded"
    if md5_file(found) == md5_file(recorded):
        return None
    if recorded.suffix == ".json":
        ours, theirs = (json.loads(path.read_bytes()) for path in (found, recorded))
        return next(differing_values(ours, theirs), None)
    if recorded.suffix == ".parquet":
        return _table_difference(found, recorded)
    return f"MD5 {md5_file(found)} computed again, {md5_file(recorded)} recorded"


def differing_values(found: Any, recorded: Any, where: str = "") -> Iterator[str]:
    """Where two JSON documents differ, as `place is ... computed again, ... recorded`."""
    if isinstance(found, dict) and isinstance(recorded, dict):
        for key in sorted({*found, *recorded}):
            place = f"{where}.{key}" if where else str(key)
            if key not in recorded:
                yield f"{place} isn't recorded"
            elif key not in found:
                yield f"{place} is only recorded"
            else:
                yield from differing_values(found[key], recorded[key], place)
    elif isinstance(found, list) and isinstance(recorded, list) and len(found) == len(recorded):
        for index, (ours, theirs) in enumerate(zip(found, recorded, strict=True)):
            yield from differing_values(ours, theirs, f"{where}.{index}" if where else str(index))
    elif type(found) is not type(recorded) or found != recorded:
        place = where or "the document"
        yield f"{place} is {_short(found)} computed again, {_short(recorded)} recorded"


def _table_difference(found: Path, recorded: Path) -> str | None:
    import pandas as pd

    ours, theirs = pd.read_parquet(found), pd.read_parquet(recorded)
    if list(ours.columns) != list(theirs.columns) or len(ours) != len(theirs):
        return (
            f"{len(ours)} rows of {len(ours.columns)} columns computed again, {len(theirs)} of"
            f" {len(theirs.columns)} recorded"
        )
    for name in ours.columns:
        same = (ours[name] == theirs[name]) | (ours[name].isna() & theirs[name].isna())
        if not same.all():
            row = int((~same).to_numpy().argmax())
            return (
                f"{name} of row {row} is {_short(ours[name].iloc[row])} computed again,"
                f" {_short(theirs[name].iloc[row])} recorded"
            )
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# others


def _surgery(context: _Context) -> None:
    """The graft again, with the builder of the pretrained weights.

    A builder of one's own is code of the revision: it is run only where the working tree has the
    same file.
    """
    from topwork.project.fetch import PRETRAINED
    from topwork.weights.builder_files import builder_files
    from topwork.weights.format import read_weights

    builder = read_weights(context.folder / PRETRAINED, trust=True).builder
    with contextlib.chdir(context.revision.root):
        files = [path.resolve() for path in builder_files(builder)]
    for file in files:
        if not file.is_relative_to(context.revision.root.resolve()):
            continue
        path = file.relative_to(context.revision.root.resolve()).as_posix()
        revision = context.revision
        if path not in revision.tracked or md5_file(file) != revision.git_md5(path)[0]:
            raise _Missing(
                f"it takes {path}, which isn't the working tree's; `topwork audit recompute"
                f" {revision.rev} --stage surgery` runs it"
            )
        (context.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (context.folder / path).write_bytes(file.read_bytes())
    _stage_again(context)


def _provenance(context: _Context) -> None:
    """provenance.json from the weights' own metadata, and weights.lock from that."""
    from topwork.stages.fetch import record_of
    from topwork.weights.format import read_weights

    pretrained = _recorded(context, fetch_outs.PRETRAINED)
    weights = read_weights(pretrained, trust=True)
    recorded = json.loads(_recorded(context, fetch_outs.PROVENANCE).read_bytes())
    _none_differs(record_of(weights).document(), recorded, fetch_outs.PROVENANCE)
    source, sha256 = weights.provenance.get("source"), weights.provenance.get("sha256")
    params = context.revision.params_document().get("fetch") or {}
    pinned = params.get("sha256")
    if pinned is not None and str(pinned).lower() != sha256:
        raise _Difference(f"fetch.sha256 is {pinned}, the weights are of {sha256}")
    lock = fetch_outs.WEIGHTS_LOCK.as_posix()
    text = context.revision.git_bytes(lock).decode() if lock in context.revision.tracked else ""
    known = parse_yaml(text) or {}
    if known.get(source, sha256) != sha256:
        raise _Difference(f"weights.lock has {known[source]} for {source}, the weights {sha256}")
    name = str(params.get("source", "demo"))
    if name in context.revision.tracked:
        found = hashlib.sha256(context.revision.git_bytes(name)).hexdigest()
        if found != sha256:
            raise _Difference(f"{name} in git has SHA-256 {found}, the weights are of {sha256}")


def _tables(context: _Context) -> None:
    """Splits and counts from the tables."""
    import pandas as pd

    from topwork.dataset.tables import Tables

    folder = _recorded(context, validate_outs.FOLDER)
    tables = Tables.read(folder)
    rows = pd.read_csv(folder / "splits.csv", dtype=str, keep_default_na=False)
    # rows stand there where the stage itself divided a set
    listed = set(zip(rows["split"], rows["file_name"], strict=True))
    images = tables.images[tables.images["split"].isin(rows["split"])]
    if other := sorted(listed ^ set(zip(images["split"], images["file_name"], strict=True))):
        raise _Difference(f"splits.csv and images.parquet differ, first in {other[0]}")
    summary = json.loads((folder / validate_outs.SUMMARY.name).read_bytes())
    findings = pd.read_parquet(folder / validate_outs.FINDINGS_TABLE.name)
    counted = {"classes": int(tables.categories["name"].nunique())}
    for split in tables.splits:
        counted[f"images_{split}"] = int((tables.images["split"] == split).sum())
        counted[f"annotations_{split}"] = int((tables.annotations["split"] == split).sum())
    for severity, count in findings["severity"].value_counts().items():
        counted[f"{severity}s"] = int(count)
    record = json.loads((folder / validate_outs.FINDINGS.name).read_bytes())
    total = record["counts"]["total"]
    if total != len(findings):
        raise _Difference(f"findings.json counts {total}, findings.parquet has {len(findings)}")
    recorded = {key: summary.get(key) for key in counted}
    _none_differs(counted, recorded, validate_outs.SUMMARY)


def _predictions(context: _Context) -> None:
    """COCO results from the exact tables, and the weights' hashes from the weights."""
    import pandas as pd

    from topwork.dataset.tables import Tables
    from topwork.inference.outputs import write_predictions
    from topwork.params.surgery import SurgeryParams

    stage = context.record.name
    model = "finetuned" if stage == "predict" else "pretrained"
    record = PredictionRecord.read(_recorded(context, record_path(model)))
    weights = {
        "pretrained": fetch_outs.PRETRAINED,
        "grafted": GRAFTED,
        "finetuned": finetune_outs.FINETUNED,
    }
    for name, sha256 in record.weights.items():
        found = sha256_file(context.folder / weights[name])
        if found != sha256:
            raise _Difference(f"record.json: weights.{name} is {sha256}, the file's is {found}")
    plan = SurgeryParams.model_validate(context.revision.params_document()["surgery"]).plan()
    labels = {name: label for label, name in enumerate(plan.names, start=1)}
    tables = Tables.read(context.folder / validate_outs.FOLDER, segmentation=False)
    folder = _recorded(context, predictions_folder(model))
    again = context.folder / "again"
    again.mkdir()
    written = {path.stem for path in folder.glob("*.parquet")}
    asked = {
        f"{name}.{split}"
        for name, splits in record.splits.items()
        for split in splits
        if split != "train"
    }
    if written != asked:
        raise _Difference(f"record.json names {sorted(asked)}, there are {sorted(written)}")
    for stem in sorted(written):
        table = pd.read_parquet(folder / f"{stem}.parquet")
        write_predictions(again / stem, table, tables, stem.partition(".")[2], labels)
        if difference := difference_of(again / f"{stem}.json", folder / f"{stem}.json"):
            raise _Difference(f"{stem}.json against {stem}.parquet: {difference}")


def _training(context: _Context) -> None:
    """The record of the fine-tuning against the weights that it wrote and those that it read."""
    from topwork.weights.format import read_weights

    record = RunRecord.read(_recorded(context, finetune_outs.RECORD))
    after = read_weights(_recorded(context, finetune_outs.FINETUNED), trust=True)
    before = read_weights(context.folder / GRAFTED, trust=True)
    if after.columns != before.columns:
        raise _Difference(f"the weights' columns are {after.columns}, {before.columns} went in")
    stated = after.provenance.get("finetune", {})
    ran = {"share": record.interpolation.alpha, "epochs": record.epochs}
    ran |= {"seed": record.seed} if record.seed is not None else {}  # records before had none
    stated = {key: stated.get(key) for key in ran}
    _none_differs(stated, ran, finetune_outs.RECORD)
    if tried := record.interpolation.tried[-1:]:
        mix = None if after.branches is None else after.branches.mix
        chosen = {"alpha": record.interpolation.alpha, "mix": mix}
        last = {key: tried[0].get(key, chosen[key]) for key in chosen}
        if "retention" in tried[0] and last != chosen:
            raise _Difference(f"the last share that was tried is {last}, the weights have {chosen}")
    for name, sha256 in record.inputs.items():
        paths = {
            "pretrained": PRETRAINED,
            "grafted": GRAFTED,
            "boxes": Path("out/unlabelled/boxes.parquet"),
        }
        path = paths.get(name, validate_outs.FOLDER / f"{name}.parquet")
        found = sha256_file(context.folder / path)
        if found != sha256:
            raise _Difference(f"record.json: {path} was {sha256}, the recorded file is {found}")


def _page(context: _Context) -> None:
    """The report, drawn again from all that it shows."""
    from topwork.params.document import Params
    from topwork.report.page import render_report
    from topwork.report.run import Run

    revision = context.revision
    params = parse(Params, revision.params_document(), Path("params.yaml"))
    files = RevisionFiles(revision)
    with contextlib.redirect_stdout(io.StringIO()):
        text = render_report(Run(files, params))
    recorded = _recorded(context, REPORT).read_text(encoding="utf-8")
    if text != recorded:
        place = next(
            (i for i, (a, b) in enumerate(zip(text, recorded, strict=False)) if a != b),
            min(len(text), len(recorded)),
        )
        start = max(0, place - 20)
        raise _Difference(
            f"{REPORT}: {recorded[start : place + 30]!r} stands there,"
            f" {text[start : place + 30]!r} comes of its inputs"
        )


def _none_differs(found: Any, recorded: Any, path: PurePosixPath | Path) -> None:
    for difference in differing_values(found, recorded):
        raise _Difference(f"{path}: {difference}")


REDERIVED: dict[str, tuple[str, Callable[[_Context], None]]] = {
    "validate": ("splits and counts from the tables", _tables),
    "fetch": ("provenance from the weights", _provenance),
    "check": ("verdict from tables, plan and weights", _stage_again),
    "surgery": ("grafted weights and receipt from the pretrained weights", _surgery),
    "baseline": ("COCO results from the tables, hashes from the weights", _predictions),
    "unlabelled": ("unlabelled objects from predictions", _stage_again),
    "finetune": ("the run's record from the weights", _training),
    "predict": ("COCO results from the tables, hashes from the weights", _predictions),
    "evaluate": ("metrics, classes and verdict from predictions", _stage_again),
    "report": ("the page from all that it shows", _page),
    "gate": ("the gate from the verdict", _stage_again),
}
"""Stage -> what is computed again, and how."""
