"""Lineage: parameters, versions, hashes of the run's files, what dvc.lock recorded, and the
commands that reproduce it.

No clock time and no absolute path; of dvc.lock only the stages upstream of the report, since the
others belong to an earlier run.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from topwork.errors import TopworkError
from topwork.params.document import Params
from topwork.project.evaluate import CLASSES
from topwork.project.fetch import PRETRAINED
from topwork.project.gate import PASSED
from topwork.project.report import REPORT
from topwork.project.surgery import GRAFTED, RECEIPT
from topwork.report.run import Run
from topwork.report.sections import Table

STAGES = (
    "validate",
    "fetch",
    "check",
    "surgery",
    "baseline",
    "unlabelled",
    "finetune",
    "predict",
    "evaluate",
)
FIRST = (
    "topwork",
    "python",
    "platform",
    "torch",
    "torchvision",
    "pillow",
    "numpy",
    "dvc",
    "dvclive",
    "safetensors",
)
AFTER = (REPORT.parent.as_posix(), PASSED.parent.as_posix())
"""Folders of the stages after this one."""


def versions(run: Run) -> list[tuple[str, str]]:
    """What the fine-tuning ran with, as its record has it: the libraries that matter first, then
    every other distribution.
    """
    found = dict(run.training.versions) if run.training else {}
    first = [(name, found.pop(name)) for name in FIRST if name in found]
    return [*first, *sorted(found.items())]


def flat_params(params: Params | None) -> list[tuple[str, str]]:
    """params.yaml as dotted keys, defaults included; without what the demo draws and how the run
    was carried out.
    """
    if params is None:
        return []
    document = params.model_dump(mode="json", exclude={"demo", "runtime"})
    return [(key, value) for key, value in flatten(document) if value != ""]


def flatten(document: Mapping[str, Any], start: str = "") -> list[tuple[str, str]]:
    """Nested mappings as (dotted key, value in words).

    Example:
        >>> flatten({"finetune": {"lr": 0.01, "freeze": None, "steps": [3, 5]}})
        [('finetune.lr', '0.01'), ('finetune.freeze', 'none'), ('finetune.steps', '3, 5')]
    """
    rows: list[tuple[str, str]] = []
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            rows += flatten(value, f"{start}{key}.")
        else:
            rows.append((f"{start}{key}", _text(value)))
    return rows


def _text(value: Any) -> str:
    if value is None or value == {} or value == []:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return (
            "; ".join(map(_text, value))
            if any(isinstance(item, Mapping) for item in value)
            else ", ".join(map(_text, value))
        )
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return str(value)


def hashes(run: Run) -> Table:
    """SHA-256 and size of every file that the stages before this one wrote."""
    rows = []
    for path in sorted(run.paths):
        if path.startswith(AFTER):
            continue
        content = run.files.read_bytes(path)
        rows.append([path, hashlib.sha256(content).hexdigest(), f"{len(content):,}"])
    return Table(
        "Files",
        "Every file of the run, with its SHA-256.",
        ("File", "SHA-256", "Bytes"),
        rows,
        (2,),
    )


def lock(run: Run) -> dict[str, Any]:
    """The stages of dvc.lock; empty where there's none yet (a stage that was run by hand)."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = run.files.read_bytes("dvc.lock")
    except TopworkError:
        return {}
    try:
        document = YAML(typ="safe", pure=True).load(io.BytesIO(content))
    except YAMLError as error:
        raise TopworkError(
            f"dvc.lock: not readable as YAML: {' '.join(str(error).split())}. Restore it: git"
            " checkout dvc.lock."
        ) from error
    stages = (document or {}).get("stages") or {}
    return {name: stages[name] for name in STAGES if name in stages}


def lock_table(run: Run) -> Table | None:
    """What dvc.lock recorded: a row an out of the stages before this one, and the data they started
    from.
    """
    stages = lock(run)
    deps = (stages.get("validate") or {}).get("deps", [])
    rows = [
        ["data", dep["path"], str(dep.get("md5", "")), _size(dep)]
        for dep in deps
        if not str(dep["path"]).startswith("src/")
    ]
    for name, stage in stages.items():
        rows += [
            [name, out["path"], str(out.get("md5", "")), _size(out)]
            for out in stage.get("outs", [])
        ]
    if not rows:
        return None
    return Table(
        "dvc.lock",
        "What dvc.lock recorded, by stage (DVC hashes with MD5).",
        ("Stage", "Path", "MD5", "Size"),
        rows,
        (3,),
    )


def _size(entry: Mapping[str, Any]) -> str:
    text = f"{entry['size']:,} bytes" if "size" in entry else ""
    return f"{entry['nfiles']:,} files, {text}" if "nfiles" in entry else text


def commands(run: Run) -> list[tuple[str, str]]:
    """(what it does, command) to find this run in history, run it again and check it."""
    outs = {
        out["path"]: out.get("md5") for stage in lock(run).values() for out in stage.get("outs", [])
    }
    steps = []
    if mark := outs.get(CLASSES.as_posix()):
        steps.append(
            ("Find the commit that recorded this run", f"git log --oneline -S {mark} -- dvc.lock")
        )
    else:
        steps.append(
            (
                (
                    "Find the commit that recorded this run (no dvc.lock was there when this page"
                    " was made)"
                ),
                "git log --oneline -- dvc.lock",
            )
        )
    return [
        *steps,
        ("Take its code, parameters and data", "git checkout COMMIT && dvc checkout"),
        ("Install what it ran with", "pip install --require-hashes -r requirements.lock"),
        ("Run what isn't fresh; from nothing, everything with --force", "dvc repro"),
        (
            "Recompute the surgery's receipt from the two files",
            f"topwork verify-graft {PRETRAINED} {GRAFTED} {RECEIPT}",
        ),
        ("Check every recorded hash", "topwork audit verify COMMIT"),
    ]
