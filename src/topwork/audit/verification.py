"""`topwork audit verify`: is a past run's record intact?

Every hash of that revision's dvc.lock is computed again from the cache and from git; each stage's
deps are compared with the outs of the stage upstream, params and commands with the files of that
revision. Nothing is trusted because the lock has it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from topwork.audit.revision import Entry, Revision, StageRecord, folder_md5
from topwork.errors import AuditError
from topwork.files import CHUNK_BYTES
from topwork.project.finetune import RECEIPT

Status = Literal["holds", "broken", "unchecked"]


@dataclass(frozen=True)
class Check:
    """One statement of the record, and whether it holds.

    Attributes:
        stage: the stage's address.
        what: `out PATH`, `dep PATH`, `params FILE` or `cmd`.
        status: `holds`, `broken` (the message says what was found and what was expected) or
            `unchecked` (and why).
    """

    stage: str
    what: str
    status: Status
    message: str = ""


def verify(revision: Revision) -> list[Check]:
    """Check every statement of a revision's record, stage by stage.

    Raises:
        AuditError: the revision has no dvc.lock at all.
    """
    if not revision.stages:
        raise AuditError(
            f"{revision.rev}: has no dvc.lock and no .dvc file, so there is no record to verify."
            " Run `dvc repro` and commit."
        )
    checks: list[Check] = []
    for record in revision.stages.values():
        checks += [_check_out(revision, record, out) for out in record.outs]
        checks += [_check_dep(revision, record, dep) for dep in record.deps]
        checks += _check_params(revision, record)
        checks += _check_cmd(revision, record)
    checks += _check_missing_stages(revision)
    checks += _check_kept(revision)
    return checks


def _check_out(revision: Revision, record: StageRecord, out: Entry) -> Check:
    what = f"out {out.path}"
    if out.md5 is None:
        return Check(record.name, what, "unchecked", "the record holds no hash")
    if out.path in revision.tracked:
        found = hashlib.md5(revision.git_bytes(out.path), usedforsecurity=False).hexdigest()
        return _compare(record.name, what, found, out.md5, "the file in git")
    cached = revision.cached(out.md5)
    if not cached.exists():
        return Check(
            record.name,
            what,
            "unchecked",
            f"{out.md5} isn't in the cache; `dvc fetch` may bring it",
        )
    found = md5_file(cached) + (".dir" if out.is_folder else "")
    if found != out.md5:
        return _compare(record.name, what, found, out.md5, f"the cached file {_short(cached)}")
    if not out.is_folder:
        return Check(record.name, what, "holds")
    files = revision.listing(out)
    missing = []
    for path, md5 in files.items():
        member = revision.cached(md5)
        if not member.exists():
            missing.append(path)
        elif (found := md5_file(member)) != md5:
            return Check(
                record.name,
                what,
                "broken",
                f"{path}: the cached file {_short(member)} has MD5 {found}, expected {md5}",
            )
    if missing:
        return Check(
            record.name,
            what,
            "unchecked",
            f"{len(missing)} of {len(files)} files aren't in the cache, first {missing[0]}",
        )
    return Check(record.name, what, "holds", f"{len(files)} files")


def _check_dep(revision: Revision, record: StageRecord, dep: Entry) -> Check:
    what = f"dep {dep.path}"
    if dep.md5 is None:
        return Check(record.name, what, "unchecked", "the record holds no hash")
    if dep.path.startswith(("../", "/")):
        return _check_outside(revision, record, dep, what)
    if dep.path in revision.outs:
        found = revision.outs[dep.path].md5 or "no hash"
        return _compare(record.name, what, found, dep.md5, "the out of the stage upstream")
    if dep.path in revision.tracked:
        found = hashlib.md5(revision.git_bytes(dep.path), usedforsecurity=False).hexdigest()
        return _compare(record.name, what, found, dep.md5, "the file in git")
    try:
        files = _files_below(revision, dep.path)
    except AuditError as error:
        return Check(record.name, what, "unchecked", str(error))
    if not files:
        return Check(record.name, what, "unchecked", "neither git nor a stage upstream holds it")
    if not dep.is_folder:
        found = revision.locate(dep.path) or "nothing"
        return _compare(record.name, what, found, dep.md5, "the file in the folder upstream")
    return _compare(
        record.name, what, folder_md5(files), dep.md5, "the folder's files in git and upstream"
    )


def _files_below(revision: Revision, folder: str) -> dict[str, str]:
    """All known files below a folder, relative to it -> md5: git's, and the outs of stages."""
    start = f"{folder}/"
    files = {
        path[len(start) :]: hashlib.md5(revision.git_bytes(path), usedforsecurity=False).hexdigest()
        for path in revision.tracked
        if path.startswith(start)
    }
    for out in revision.outs.values():
        if out.md5 is None or out.path in revision.tracked:
            continue
        if not f"{out.path}/".startswith(start) and not start.startswith(f"{out.path}/"):
            continue
        members = revision.listing(out) if out.is_folder else {out.path: out.md5}
        files |= {
            path[len(start) :]: md5 for path, md5 in members.items() if path.startswith(start)
        }
    return files


def _check_outside(revision: Revision, record: StageRecord, dep: Entry, what: str) -> Check:
    """Data outside the project: neither git nor DVC keeps it, so only what lies there today can be
    looked at.
    """
    path = revision.root / dep.path
    if not path.exists():
        return Check(
            record.name,
            what,
            "unchecked",
            "outside the project, and not there any more; bring it in with `dvc add`",
        )
    if path.is_dir():
        found = folder_md5(
            {
                file.relative_to(path).as_posix(): md5_file(file)
                for file in sorted(path.rglob("*"))
                if file.is_file()
            }
        )
    else:
        found = md5_file(path)
    if found == dep.md5:
        return Check(
            record.name,
            what,
            "holds",
            "outside the project; what lies there today is what was used",
        )
    return Check(
        record.name,
        what,
        "unchecked",
        "outside the project, and not today what was used; bring data in with `dvc add`",
    )


def _check_params(revision: Revision, record: StageRecord) -> Iterator[Check]:
    for file, recorded in record.params.items():
        what = f"params {file}"
        if file not in revision.tracked:
            yield Check(record.name, what, "unchecked", "the file isn't in git at this revision")
            continue
        document = revision.params_document(file)
        wrong = [
            f"{key}: {_lookup(document, key)!r} in the file, {value!r} in the record"
            for key, value in recorded.items()
            if _lookup(document, key) != value
        ]
        yield Check(record.name, what, "broken" if wrong else "holds", "; ".join(wrong))


def _check_cmd(revision: Revision, record: StageRecord) -> Iterator[Check]:
    """A command without templates must be the one that dvc.yaml gives."""
    if record.cmd is None:
        return
    definition = revision.params_document(record.file.removesuffix("dvc.lock") + "dvc.yaml")
    name = record.name.rsplit(":", 1)[-1]
    stage = (definition.get("stages") or {}).get(name.split("@")[0])
    if stage is None:
        yield Check(record.name, "cmd", "broken", "the lock has a stage that dvc.yaml doesn't")
        return
    cmd = stage.get("do", stage).get("cmd")
    if "${" in str(cmd):
        yield Check(record.name, "cmd", "unchecked", "the command is a template")
    else:
        yield _compare(record.name, "cmd", str(cmd), str(record.cmd), "dvc.yaml")


def _check_missing_stages(revision: Revision) -> Iterator[Check]:
    definition = revision.params_document("dvc.yaml") if "dvc.yaml" in revision.tracked else {}
    for name, stage in (definition.get("stages") or {}).items():
        if not {"foreach", "matrix"} & set(stage) and name not in revision.stages:
            yield Check(
                name,
                "record",
                "unchecked",
                "dvc.yaml has this stage, the lock doesn't: it hadn't run at this revision",
            )


def _check_kept(revision: Revision) -> Iterator[Check]:
    """What the fine-tuned file's receipt says of the pretrained weights in it."""
    from topwork.audit.keeping import kept_statements  # heavy, and only here

    if RECEIPT.as_posix() in revision.outs:
        for status, message in kept_statements(revision):
            yield Check("finetune", f"receipt {RECEIPT}", status, message)


def _compare(stage: str, what: str, found: str, expected: str, where: str) -> Check:
    if found == expected:
        return Check(stage, what, "holds")
    return Check(stage, what, "broken", f"{where} gives {found}, the record says {expected}")


def _lookup(document: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        if not isinstance(document, dict) or part not in document:
            return None
        document = document[part]
    return document


def md5_file(path: Path) -> str:
    """MD5 of a file's bytes: DVC's content address, not a safeguard against forgery."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _short(path: Path) -> str:
    return "/".join(path.parts[-3:])
