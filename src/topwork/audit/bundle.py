"""`topwork audit bundle`: the evidence of one run as one zip, which `topwork audit check` verifies
without the repository.

It holds the record (dvc.lock, dvc.yaml, params.yaml), metrics, verdict, predictions with their
ground truth, receipt, report, records of runs, the environment as a CycloneDX bill of materials, a
Workflow Run RO-Crate, and a manifest with the SHA-256 of each. Weights and pictures aren't in it;
their hashes are.
"""

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from topwork import __version__
from topwork.audit.check import Check
from topwork.audit.lineage import Lineage, lineage_of, lineage_page
from topwork.audit.revision import Entry, Revision, RevisionFiles
from topwork.environment import REQUIREMENTS, REQUIREMENTS_LOCK
from topwork.errors import AuditError
from topwork.files import CHUNK_BYTES, atomic_path, canonical_json
from topwork.metrics.sets import truths_of
from topwork.project.finetune import RECORD
from topwork.report.run import Run

MANIFEST = "manifest.json"
SCRIPT = "check.py"
BOM = "bom.json"
CRATE = "ro-crate-metadata.json"
LEFT_OUT = (".safetensors",)
GIT_FILES = (
    "dvc.yaml",
    "dvc.lock",
    "data/dvc.yaml",
    "data/dvc.lock",
    "params.yaml",
    "weights.lock",
)
STAMP = (1980, 1, 1, 0, 0, 0)
"""Every member's time: the same run gives the same bundle."""


def write_bundle(revision: Revision, checks: list[Check], target: Path) -> str:
    """Write the evidence of a run into one zip; the SHA-256 of its manifest.

    Args:
        revision: which.
        checks: what `verify` found, which goes into the bundle.
        target: the zip.

    Raises:
        AuditError: a file of the run is neither in git nor in the cache.
    """
    lineage = lineage_of(revision, checks)
    facts: dict[str, dict[str, Any]] = {}
    with (
        atomic_path(target) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as bundle,
    ):
        for name, stream in _members(revision, lineage):
            with stream as content:
                facts[name] = _add(bundle, name, content)
        crate = canonical_json(_crate(lineage, facts)).encode()
        facts[CRATE] = _add(bundle, CRATE, BytesIO(crate))
        manifest = canonical_json(
            {
                "topwork_bundle": 1,
                "topwork": __version__,
                "commit": revision.commit,
                "date": lineage.date,
                "subject": lineage.subject,
                "files": facts,
            }
        ).encode()
        _add(bundle, MANIFEST, BytesIO(manifest))
    return hashlib.sha256(manifest).hexdigest()


def _add(bundle: zipfile.ZipFile, name: str, content: IO[bytes]) -> dict[str, Any]:
    info = zipfile.ZipInfo(name, STAMP)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with bundle.open(info, "w", force_zip64=True) as stream:
        while chunk := content.read(CHUNK_BYTES):
            sha256.update(chunk)
            md5.update(chunk)
            size += len(chunk)
            stream.write(chunk)
    return {"sha256": sha256.hexdigest(), "md5": md5.hexdigest(), "size": size}


Member = tuple[str, AbstractContextManager[IO[bytes]]]


def _members(revision: Revision, lineage: Lineage) -> Iterator[Member]:
    """Name and content of all but crate and manifest."""
    for path in (*GIT_FILES, REQUIREMENTS_LOCK.as_posix(), REQUIREMENTS.as_posix()):
        if path in revision.tracked:
            yield path, BytesIO(revision.git_bytes(path))
    for out in sorted(revision.outs.values(), key=lambda entry: entry.path):
        if out.path.startswith("out/"):
            yield from _files_of(revision, out)
    for split, document in _truths(revision).items():
        yield f"truth/{split}.json", BytesIO(canonical_json(document).encode())
    for node in lineage.nodes:
        if node.run is not None:
            yield f"runs/{node.run.name}", BytesIO(canonical_json(node.run.document()).encode())
    verified = [asdict(check) for check in lineage.checks]
    yield "verify.json", BytesIO(canonical_json(verified).encode())
    yield "lineage.html", BytesIO(lineage_page(lineage).encode())
    yield BOM, BytesIO(canonical_json(_bom(revision)).encode())
    yield SCRIPT, BytesIO((Path(__file__).parent / "templates" / "check.py.txt").read_bytes())


def _files_of(revision: Revision, out: Entry) -> Iterator[Member]:
    if out.path.endswith(LEFT_OUT):
        return
    if out.path in revision.tracked:
        yield out.path, BytesIO(revision.git_bytes(out.path))
        return
    members = revision.listing(out) if out.is_folder else {out.path: str(out.md5)}
    for path, md5 in sorted(members.items()):
        try:
            yield path, revision.cached(md5).open("rb")
        except FileNotFoundError as error:
            raise AuditError(
                f"{path} at {revision.rev}: {md5} isn't in the DVC cache, so that it can't go into"
                " a bundle."
            ) from error


def _truths(revision: Revision) -> dict[str, Any]:
    """Ground truth of the held-out sets as COCO has it, with the ids that the predictions' JSON
    has.
    """
    run = Run(RevisionFiles(revision), revision.params)
    plan, tables = revision.params.surgery.plan(), run.tables
    found = {}
    for split, truth in truths_of(plan, tables).items():
        ids = {name: key for key, name in tables.names(split).items()}
        beyond = max(ids.values(), default=0)
        labels = {name: label for label, name in enumerate(plan.names, start=1)}
        category = {name: ids.get(name, beyond + labels[name]) for name in truth.classes}
        found[split] = {
            "images": [
                {"id": int(key), "width": int(width), "height": int(height)}
                for key, (width, height) in zip(truth.image_ids, truth.sizes, strict=True)
            ],
            "categories": [{"id": key, "name": name} for name, key in category.items()],
            "annotations": [
                {
                    "id": place + 1,
                    "image_id": int(truth.image_ids[truth.image[place]]),
                    "category_id": category[truth.classes[truth.label[place] - 1]],
                    "bbox": [float(value) for value in truth.boxes[place]],
                    "area": float(truth.area[place]),
                    "iscrowd": int(truth.crowd[place]),
                }
                for place in range(len(truth))
            ],
        }
    return found


def _bom(revision: Revision) -> dict[str, Any]:
    """The environment of the fine-tuning as CycloneDX 1.6."""
    versions: dict[str, str] = {}
    if revision.locate(RECORD.as_posix()) is not None:
        versions = dict(json.loads(revision.read_bytes(RECORD.as_posix())).get("versions", {}))
    platform = {key: versions.pop(key) for key in ("python", "platform") if key in versions}
    components = [
        {
            "type": "library",
            "name": name,
            "version": version,
            "bom-ref": f"pkg:pypi/{name}@{version}",
            "purl": f"pkg:pypi/{name}@{version.replace('+', '%2B')}",
        }
        for name, version in sorted(versions.items())
    ]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "name": "topwork run",
                "version": revision.commit,
                "bom-ref": revision.commit,
            },
            "properties": [
                {"name": f"topwork:{key}", "value": value} for key, value in platform.items()
            ],
        },
        "components": components,
    }


def _crate(lineage: Lineage, facts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The bundle as a Workflow Run RO-Crate: dvc.yaml is the workflow, the run its action."""
    revision = lineage.revision
    runs = [node.run for node in lineage.nodes if node.run is not None]
    began = min((run.started for run in runs), default=lineage.date)
    results = [name for name in facts if name.startswith("out/")]
    inputs = [name for name in ("params.yaml", "requirements.lock") if name in facts]
    profiles = [
        "https://w3id.org/ro/wfrun/process/0.5",
        "https://w3id.org/ro/wfrun/workflow/0.5",
        "https://w3id.org/workflowhub/workflow-ro-crate/1.0",
    ]
    names = ("Process Run Crate", "Workflow Run Crate", "Workflow RO-Crate")
    versions = ("0.5", "0.5", "1.0")
    graph: list[dict[str, Any]] = [
        {
            "@id": CRATE,
            "@type": "CreativeWork",
            "about": {"@id": "./"},
            "conformsTo": [
                {"@id": "https://w3id.org/ro/crate/1.1"},
                {"@id": profiles[2]},
            ],
        },
        {
            "@id": "./",
            "@type": "Dataset",
            "name": f"Evidence of the run {revision.commit[:10]}",
            "description": f"{lineage.subject}: record, metrics, predictions and their hashes.",
            "datePublished": lineage.date,
            "license": {"@id": "#license"},
            "conformsTo": [{"@id": profile} for profile in profiles],
            "hasPart": [{"@id": name} for name in facts],
            "mainEntity": {"@id": "dvc.yaml"},
            "mentions": {"@id": "#run"},
        },
        {
            "@id": "#license",
            "@type": "CreativeWork",
            "name": "As the project says",
            "description": "Data, weights and code keep the licences of their project.",
        },
        {
            "@id": "#dvc",
            "@type": "ComputerLanguage",
            "name": "DVC pipeline",
            "url": {"@id": "https://dvc.org"},
            "identifier": {"@id": "https://dvc.org"},
        },
        {
            "@id": "#run",
            "@type": "CreateAction",
            "name": f"Run of {revision.commit[:10]}",
            "instrument": {"@id": "dvc.yaml"},
            "object": [{"@id": name} for name in inputs],
            "result": [{"@id": name} for name in results],
            "startTime": began,
            "endTime": lineage.date,
            "actionStatus": {"@id": "http://schema.org/CompletedActionStatus"},
        },
        *(
            {"@id": profile, "@type": "CreativeWork", "name": name, "version": version}
            for profile, name, version in zip(profiles, names, versions, strict=True)
        ),
    ]
    for name, fact in facts.items():
        entity: dict[str, Any] = {
            "@id": name,
            "@type": "File",
            "name": name,
            "contentSize": str(fact["size"]),
            "sha256": fact["sha256"],
            "encodingFormat": _format(name),
        }
        if name == "dvc.yaml":
            entity |= {
                "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow"],
                "programmingLanguage": {"@id": "#dvc"},
            }
        graph.append(entity)
    context = [
        "https://w3id.org/ro/crate/1.1/context",
        "https://w3id.org/ro/terms/workflow-run/context",
    ]
    return {"@context": context, "@graph": graph}


def _format(name: str) -> str:
    kinds = {
        ".json": "application/json",
        ".html": "text/html",
        ".yaml": "application/yaml",
        ".csv": "text/csv",
        ".tsv": "text/tab-separated-values",
        ".py": "text/x-python",
        ".parquet": "application/vnd.apache.parquet",
    }
    return kinds.get(Path(name).suffix, "text/plain")


# checking


MOST_BYTES = 4 << 30
"""Of a bundle's files together, unpacked."""
MOST_MANIFEST = 16 << 20
BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ValueError,
)
MOST_FILES = 100_000
DOCUMENTS = 256 << 20
"""Of a JSON or YAML file that is read whole."""


def check_bundle(path: Path) -> list[Check]:
    """Verify a bundle by itself. Nothing of it is executed, and nothing is written.

    Returns:
        Statements: every file against the manifest, outs against the bundle's dvc.lock, metrics
        against the predictions, as `verify` gives them.

    Raises:
        AuditError: it isn't a bundle, or one that is made to do harm.
    """
    try:
        with zipfile.ZipFile(path) as bundle:
            return list(_checked(path, bundle))
    except FileNotFoundError as error:
        raise AuditError(f"{path}: no such file.") from error
    except BROKEN_ZIP as error:
        raise AuditError(f"{path}: not readable as a zip ({error}).") from error


def manifest_sha256(path: Path) -> str:
    """SHA-256 of the manifest of a bundle that `check_bundle` has looked at: it stands for all of
    the bundle.
    """
    with zipfile.ZipFile(path) as bundle:
        return _hashes(bundle, MANIFEST)[0]


def _checked(path: Path, bundle: zipfile.ZipFile) -> Iterator[Check]:
    infos = bundle.infolist()
    _refuse_harm(path, infos)
    names = [info.filename for info in infos]
    manifest = _document(path, bundle, MANIFEST, MOST_MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or manifest.get("topwork_bundle") != 1:
        raise AuditError(f"{path}: {MANIFEST} isn't that of a topwork bundle of version 1.")
    for name in sorted(set(names) - set(files) - {MANIFEST}):
        yield Check("bundle", name, "broken", "the manifest doesn't have it")
    md5s = {}
    for name, fact in files.items():
        if name not in names:
            yield Check("bundle", name, "broken", "it was taken out")
            continue
        sha256, md5, size = _hashes(bundle, name)
        md5s[name] = md5
        if not isinstance(fact, dict) or (sha256, size) != (fact.get("sha256"), fact.get("size")):
            listed = fact.get("sha256") if isinstance(fact, dict) else fact
            message = f"SHA-256 is {sha256}, the manifest says {listed}"
            yield Check("bundle", name, "broken", message)
        else:
            yield Check("bundle", name, "holds")
    yield from _against_lock(path, bundle, md5s)
    yield from _figures(path, bundle, names)


def _refuse_harm(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    names = [info.filename for info in infos]
    if len(infos) > MOST_FILES or sum(info.file_size for info in infos) > MOST_BYTES:
        raise AuditError(f"{path}: more than a bundle holds ({len(infos)} files); refused.")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise AuditError(f"{path}: {twice!r} is in it twice; refused.")
    for info in infos:
        name = info.filename
        parts = name.split("/")
        kind = info.external_attr >> 28
        unsafe = name.startswith("/") or "\\" in name or ":" in parts[0] or {"..", ""} & set(parts)
        if unsafe or kind not in (0, 0o10) or info.flag_bits & 1:
            raise AuditError(
                f"{path}: {name!r} isn't a plain file inside of the bundle (a way out of it, a"
                " folder, a link, or encrypted); refused."
            )


def _hashes(bundle: zipfile.ZipFile, name: str) -> tuple[str, str, int]:
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with bundle.open(name) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            sha256.update(chunk)
            md5.update(chunk)
            size += len(chunk)
    return sha256.hexdigest(), md5.hexdigest(), size


def _document(path: Path, bundle: zipfile.ZipFile, name: str, most: int = DOCUMENTS) -> Any:
    if name not in bundle.namelist():
        raise AuditError(f"{path}: has no {name}; it isn't a whole topwork bundle.")
    if bundle.getinfo(name).file_size > most:
        raise AuditError(f"{path}: {name} is larger than {most:,} bytes; refused.")
    try:
        return json.loads(bundle.read(name))
    except (ValueError, RecursionError) as error:
        raise AuditError(f"{path}: {name} isn't readable as JSON ({error}).") from error


def _against_lock(path: Path, bundle: zipfile.ZipFile, md5s: dict[str, str]) -> Iterator[Check]:
    """Outs of the bundle against the hashes of its dvc.lock."""
    if "dvc.lock" not in md5s or bundle.getinfo("dvc.lock").file_size > DOCUMENTS:
        return
    text = bundle.read("dvc.lock").decode(errors="replace")
    recorded = dict(re.findall(r"- path: (\S+)\n(?: +hash: md5\n)? +md5: (\w+)\n", text))
    for name, md5 in sorted(md5s.items()):
        if name in recorded and name.startswith("out/"):
            if recorded[name] == md5:
                yield Check("record", f"out {name}", "holds")
            else:
                message = f"its MD5 is {md5}, dvc.lock has {recorded[name]}"
                yield Check("record", f"out {name}", "broken", message)


def _figures(path: Path, bundle: zipfile.ZipFile, names: list[str]) -> Iterator[Check]:
    """The mean AP from the predictions, by pycocotools."""
    needed = ("truth/test.json", "out/predict/predictions/finetuned.test.json", "out/metrics.json")
    what = "mAP from predictions"
    if not set(needed) <= set(names):
        yield Check("evaluate", what, "unchecked", "the bundle has no predictions of a test set")
        return
    truth, predictions, metrics = (_document(path, bundle, name) for name in needed)
    try:
        found, recorded = mean_ap(truth, predictions), metrics["map"]
    except (KeyError, TypeError, ValueError, IndexError, AssertionError) as error:
        message = f"the predictions can't be evaluated ({type(error).__name__}: {error})"
        yield Check("evaluate", what, "broken", message)
        return
    # predictions are rounded in COCO's JSON
    same = recorded is not None and abs(found - recorded) <= 1e-3
    message = f"{found:.4f} computed again, {recorded} recorded"
    yield Check("evaluate", what, "holds" if same else "broken", message)


def mean_ap(truth: Any, predictions: Any) -> float:
    """COCO's mean AP of detections; 0 where there are none."""
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not predictions:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(predictions), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])
