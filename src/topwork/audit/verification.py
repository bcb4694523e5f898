"""`topwork audit verify`: is a past run's record whole, and does it say what happened?

Which statements there must be comes from dvc.yaml as it stood, expanded by DVC; the lock only says
what they are. Every hash is computed again from the cache and from git, each stage's deps are
compared with the outs of the stage upstream, params and commands with the files of that revision.
Then what can be computed again in seconds is (`rederivation`). No model runs.
"""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from topwork.audit.check import Check
from topwork.audit.definition import Definition, definitions
from topwork.audit.objects import Objects
from topwork.audit.repository import git, is_shallow, replaced
from topwork.audit.revision import Entry, RepeatedKeyError, Revision, StageRecord
from topwork.environment import REQUIREMENTS, REQUIREMENTS_LOCK
from topwork.errors import AuditError
from topwork.files import folder_md5, path_md5
from topwork.params.section import PARAMS_FILE
from topwork.project.finetune import RECEIPT

UNDECLARED = (
    REQUIREMENTS_LOCK.as_posix(),
    REQUIREMENTS.as_posix(),
    "src/topwork/__init__.py",
    "src/topwork/environment.py",
    "src/topwork/errors.py",
    "src/topwork/events.py",
)
"""What every stage depends on and none declares: it can stop a stage, or an upgrade of it must not
run everything again.
"""
OLDER_TRIED = 20
"""Revisions that are looked at for the one at which a stage ran last."""


def verify(revision: Revision, *, recompute: bool = True) -> list[Check]:
    """Check every statement of a revision's record, stage by stage.

    Args:
        revision: which.
        recompute: whether what takes seconds is computed again as well.

    Raises:
        AuditError: the revision has no record, or one that can't be read.
    """
    if not revision.locks and not revision.stages:
        raise AuditError(
            f"{revision.rev}: has no dvc.lock and no .dvc file, so there is no record to verify."
            " Run `dvc repro` and commit."
        )
    try:
        return _Verification(revision).checks(recompute)
    except RepeatedKeyError as error:
        return [Check("the record", "keys", "broken", str(error))]


def notes(revision: Revision) -> list[str]:
    """What else there is to know: about the history, and about what no stage declares."""
    found = []
    if is_shallow(revision.root):
        found.append(
            "this clone is shallow: a part of the history isn't here, so that an entry of an"
            " earlier run can't be told from a forged one. `git fetch --unshallow` brings it."
        )
    if names := replaced(revision.root):
        found.append(
            f"{len(names)} objects of git are shown as others by `git replace` (first"
            f" {names[0][:10]}); the originals were read."
        )
    for path in UNDECLARED:
        if path in revision.tracked:
            md5, size = revision.git_md5(path)
            found.append(f"{path}: MD5 {md5}, {size} bytes; no stage declares it")
    return found


def inputs_of(revision: Revision, record: StageRecord) -> list[Check]:
    """One stage's deps, params and command against the files of the revision."""
    return _Verification(revision).inputs_or_stale(record)


class _Verification:
    def __init__(self, revision: Revision) -> None:
        self.revision = revision
        self.objects = Objects(revision)
        for path in (*revision.locks, *revision.definition_files, PARAMS_FILE.as_posix()):
            if path in revision.tracked:
                revision.yaml(path)
        self.records = revision.stages
        self.defined = definitions(revision)

    def checks(self, recompute: bool) -> list[Check]:
        self._read_all()
        found: list[Check] = []
        for record in self.records.values():
            found += [self._out(record, out) for out in record.outs]
            found += self.inputs_or_stale(record)
        found += self._missing_stages()
        found += self._shared_outs()
        if recompute:
            from topwork.audit.rederivation import rederive  # heavy, and only here

            found += _kept(self.revision)
            found += rederive(self.revision, self.defined, found)
        return found

    def _read_all(self) -> None:
        """Hash all that the record names in one go."""
        outs = [out for out in self.revision.outs.values() if out.path not in self.revision.tracked]
        self.objects.read(out.md5 for out in outs if out.md5)
        for out in outs:
            if out.is_folder:
                try:
                    self.objects.read(self.revision.members(out).values())
                except AuditError:
                    continue  # named where the out is checked
        deps = {dep.path for record in self.records.values() for dep in record.deps}
        wanted = deps | set(self.revision.outs)
        self.revision.read_md5s(
            path
            for path in self.revision.tracked
            if wanted & {path, *map(str, PurePosixPath(path).parents)}
        )

    # outs

    def _out(self, record: StageRecord, out: Entry) -> Check:
        what = f"out {out.path}"
        if out.md5 is None:
            return self._no_hash(record, what, out)
        if out.legacy:
            return Check(
                record.name,
                what,
                "unchecked",
                "DVC 2 or older recorded it, whose hash of text files is another; `dvc commit"
                " --force` at that revision with today's DVC records it again",
            )
        if out.path in self.revision.tracked:
            found, size = self.revision.git_md5(out.path)
            return _compare(record.name, what, found, out.md5, "the file in git") or _size(
                record.name, what, out, size, None
            )
        definition = self.defined.get(record.name)
        if definition is not None and out.path in definition.in_git:
            return Check(record.name, what, "broken", "git keeps it, and hasn't got it here")
        held = self.objects.found(out.md5)
        if held is None:
            return Check(record.name, what, "unchecked", f"{out.md5} {self._absent(record)}")
        if difference := _compare(record.name, what, held[0], out.md5, "the cached object"):
            return difference
        if not out.is_folder:
            return _size(record.name, what, out, held[1], None)
        return self._folder(record, what, out)

    def _folder(self, record: StageRecord, what: str, out: Entry) -> Check:
        try:
            members = self.revision.members(out)
        except AuditError as error:
            return Check(record.name, what, "broken", str(error))
        missing, total = [], 0
        for path, md5 in members.items():
            held = self.objects.found(md5)
            if held is None:
                missing.append(path)
            elif held[0] != md5:
                return Check(
                    record.name,
                    what,
                    "broken",
                    f"{out.path}/{path}: the cached object has MD5 {held[0]}, the listing says"
                    f" {md5}",
                )
            else:
                total += held[1]
        if missing:
            counted = f"{len(missing)} of {len(members)} files, first {missing[0]}"
            return Check(record.name, what, "unchecked", f"{counted}: {self._absent(record)}")
        return _size(record.name, what, out, total, len(members))

    def _no_hash(self, record: StageRecord, what: str, entry: Entry) -> Check:
        if _outside(entry.path) or record.file.endswith(".dvc"):
            return Check(
                record.name, what, "unchecked", "the record holds no hash that can be checked"
            )
        return Check(record.name, what, "broken", "the record holds no hash")

    def _absent(self, record: StageRecord) -> str:
        return f"isn't in the cache; {bring(self.revision, record)}"

    # inputs

    def inputs_or_stale(self, record: StageRecord) -> list[Check]:
        """The stage's deps, params and command against the files of the revision. What doesn't hold
        is stale where the stage's entry is that of an earlier revision, at which it did.
        """
        found = self._inputs(record)
        if not any(check.status == "broken" for check in found):
            return found
        older = self._ran_at(record)
        if older is None:
            return found
        ran = f"not reached at this revision, it ran last at {older.commit[:10]}; since then"
        return [
            Check(check.stage, check.what, "stale", f"{ran}: {check.message}")
            if check.status == "broken"
            else check
            for check in found
        ]

    def _inputs(self, record: StageRecord) -> list[Check]:
        if record.file.endswith(".dvc"):
            return []
        definition = self.defined.get(record.name)
        if definition is None:
            return [Check(record.name, "entry", "broken", "dvc.yaml has no such stage")]
        return [
            *self._declared(record, definition),
            *(self._dep(record, dep) for dep in record.deps),
            *self._params(record, definition),
            *self._cmd(record, definition),
        ]

    def _declared(self, record: StageRecord, definition: Definition) -> Iterator[Check]:
        """What dvc.yaml asks for and what the lock has: neither more nor less."""
        if definition.frozen:
            yield Check(
                record.name,
                "entry",
                "broken",
                "frozen in dvc.yaml: DVC never looks whether it is up to date",
            )
        for kind, asked, entries in (
            ("dep", definition.deps, record.deps),
            ("out", definition.outs, record.outs),
        ):
            paths = [entry.path for entry in entries]
            for path in sorted(asked - set(paths)):
                yield Check(
                    record.name, f"{kind} {path}", "broken", "dvc.yaml has it, the lock lacks it"
                )
            for path in sorted(set(paths) - asked):
                yield Check(
                    record.name, f"{kind} {path}", "broken", "the lock has it, dvc.yaml doesn't"
                )
            for path in sorted({path for path in paths if paths.count(path) > 1}):
                yield Check(record.name, f"{kind} {path}", "broken", "the lock has it twice")

    def _dep(self, record: StageRecord, dep: Entry) -> Check:
        what = f"dep {dep.path}"
        revision = self.revision
        if dep.md5 is None:
            return self._no_hash(record, what, dep)
        if _outside(dep.path):
            return _check_outside(revision, record, dep, what)
        if dep.path in revision.outs:
            found = revision.outs[dep.path].md5 or "no hash"
            where = "the out of the stage upstream"
            return _compare(record.name, what, found, dep.md5, where) or self._same_size(
                record, dep, revision.outs[dep.path]
            )
        if dep.path in revision.tracked:
            found, size = revision.git_md5(dep.path)
            return _compare(record.name, what, found, dep.md5, "the file in git") or _size(
                record.name, what, dep, size, None
            )
        try:
            files = self._files_below(dep.path)
        except AuditError as error:
            return Check(record.name, what, "unchecked", str(error))
        if not dep.is_folder:
            found = revision.locate(dep.path) or "nothing"
            return _compare(
                record.name, what, found, dep.md5, "the file in the folder upstream"
            ) or Check(record.name, what, "holds")
        if not files:
            return Check(record.name, what, "broken", "neither git nor a stage upstream has it")
        found = folder_md5({path: md5 for path, (md5, _) in files.items()})
        sizes = [size for _, size in files.values()]
        total = None if None in sizes else sum(size for size in sizes if size is not None)
        where = "the folder's files in git and upstream"
        return _compare(record.name, what, found, dep.md5, where) or _size(
            record.name, what, dep, total, len(files)
        )

    def _same_size(self, record: StageRecord, dep: Entry, out: Entry) -> Check:
        return _size(record.name, f"dep {dep.path}", dep, out.size, out.files)

    def _files_below(self, folder: str) -> dict[str, tuple[str, int | None]]:
        """All known files below a folder, relative to it -> MD5 and size (None where it isn't known
        without the object): git's, and the outs of stages.
        """
        start = f"{folder}/"
        files: dict[str, tuple[str, int | None]] = {
            path[len(start) :]: self.revision.git_md5(path)
            for path in self.revision.tracked
            if path.startswith(start)
        }
        for out in self.revision.outs.values():
            if out.md5 is None or out.path in self.revision.tracked:
                continue
            if not f"{out.path}/".startswith(start) and not start.startswith(f"{out.path}/"):
                continue
            members = self.revision.listing(out) if out.is_folder else {out.path: out.md5}
            for path, md5 in members.items():
                if path.startswith(start):
                    held = self.objects.found(md5)
                    files[path[len(start) :]] = md5, held[1] if held else None
        return files

    def _params(self, record: StageRecord, definition: Definition) -> Iterator[Check]:
        for file in sorted({*record.params, *definition.params}):
            what = f"params {file}"
            if file not in self.revision.tracked:
                yield Check(record.name, what, "broken", "the file isn't in git at this revision")
                continue
            document = self.revision.params_document(file)
            keys = definition.params.get(file, ())
            recorded = record.params.get(file, {})
            asked = set(keys or document) if file in definition.params else set()
            wrong = [f"{key}: the lock lacks it" for key in sorted(asked - set(recorded))]
            wrong += [f"{key}: dvc.yaml doesn't track it" for key in sorted(set(recorded) - asked)]
            for key in sorted(asked & set(recorded)):
                wrong += _differing(key, _lookup(document, key), recorded[key])
            yield Check(record.name, what, "broken" if wrong else "holds", "; ".join(wrong))

    def _cmd(self, record: StageRecord, definition: Definition) -> Iterator[Check]:
        found, expected = json.dumps(definition.cmd), json.dumps(record.cmd)
        difference = _compare(record.name, "cmd", found, expected, "dvc.yaml")
        yield difference or Check(record.name, "cmd", "holds")

    # the whole

    def _missing_stages(self) -> Iterator[Check]:
        """Stages that dvc.yaml has, the project needs, and the lock lacks."""
        for name in self._needed():
            if name in self.records:
                continue
            definition = self.defined[name]
            users = [
                record.name
                for record in self.records.values()
                if any(touches(dep.path, out) for dep in record.deps for out in definition.outs)
            ]
            older = self._recorded_before(name)
            if older is not None:
                message = (
                    f"the lock lacks this stage, and {older[:10]}, an earlier revision, has it"
                )
                yield Check(name, "entry", "broken", message)
            elif users:
                message = f"the lock lacks this stage, and {users[0]} has run with its outs"
                yield Check(name, "entry", "broken", message)
            else:
                message = "not reached at this revision: dvc.yaml has this stage, the lock doesn't"
                yield Check(name, "entry", "stale", message)

    def _needed(self) -> list[str]:
        """Stages of the project's own dvc.yaml, and all that these need, however deep."""
        needed = [name for name in self.defined if ":" not in name] or list(self.defined)
        for name in needed:  # grows while it is read
            needed += [
                other.name
                for other in self.defined.values()
                if other.name not in needed
                and any(touches(dep, out) for dep in self.defined[name].deps for out in other.outs)
            ]
        return needed

    def _shared_outs(self) -> Iterator[Check]:
        owners: dict[str, str] = {}
        for record in self.records.values():
            for out in record.outs:
                owner = owners.setdefault(out.path, record.name)
                if owner != record.name:
                    yield Check(
                        record.name, f"out {out.path}", "broken", f"{owner} has this out as well"
                    )

    # earlier revisions

    def _ran_at(self, record: StageRecord) -> Revision | None:
        """The earliest revision since which the stage's entry is the same, if there its inputs
        held: the one at which it ran.
        """
        entry = _entry_text(self.revision, record.file, record.name)
        same = []
        for commit in self._changes_of(record.file):
            older = Revision(self.revision.root, commit)
            if _entry_text(older, record.file, record.name) != entry:
                break
            same.append(older)
        for older in reversed(same[-OLDER_TRIED:]):
            if older.commit == self.revision.commit:
                continue
            try:
                then = _Verification(older)
                held = then._inputs(older.stages[record.name])
            except (AuditError, KeyError):
                continue
            if all(check.status != "broken" for check in held):
                return older
        return None

    def _recorded_before(self, name: str) -> str | None:
        file, _, stage = name.rpartition(":")
        lock = str(PurePosixPath(file).with_name("dvc.lock")) if file else "dvc.lock"
        for commit in self._changes_of(lock)[:OLDER_TRIED]:
            older = Revision(self.revision.root, commit)
            if _entry_text(older, lock, stage) is not None:
                return commit
        return None

    def _changes_of(self, file: str) -> list[str]:
        """Revisions up to this one that changed a file, newest first."""
        return (
            git(self.revision.root, "rev-list", self.revision.commit, "--", file).decode().split()
        )


def bring(revision: Revision, record: StageRecord) -> str:
    """How a stage's outs that the cache lacks can be had, as a command."""
    from topwork.audit.revision import experiment_names

    current = revision.commit == git(revision.root, "rev-parse", "HEAD").decode().strip()
    if record.file.endswith(".dvc") and revision.yaml(record.file).get("deps"):  # imported
        which = "" if current else "--all-commits "
        return f"`dvc fetch {which}{shlex.quote(record.file)}` may bring it"
    if not revision.has_remote:
        return "no DVC remote is set up that could bring it (`dvc remote add`)"
    if current:
        return "`dvc fetch` may bring it"
    names = [n for n, c in experiment_names(revision.root).items() if c == revision.commit]
    if names:
        return f"`dvc exp pull origin {names[0]}` may bring it"
    return "`dvc fetch --all-commits` may bring it"


def _entry_text(revision: Revision, file: str, name: str) -> str | None:
    """A stage's entry in a lock, as it stands there; None where there is none."""
    if file not in revision.tracked:
        return None
    text = revision.git_bytes(file).decode(errors="replace")
    stage = re.escape(name.rpartition(":")[2] if ":" in name else name)
    found = re.search(rf"^  ['\"]?{stage}['\"]?:\n(?:    ?.*\n|\s*\n)*", text, re.MULTILINE)
    return found.group(0) if found else None


def _check_outside(revision: Revision, record: StageRecord, dep: Entry, what: str) -> Check:
    """Data outside the project: neither git nor DVC keeps it, so only what lies there today can be
    looked at.
    """
    path = revision.root / dep.path
    if "://" in dep.path or not path.exists():
        reason = "outside the project, and not there any more; bring it in with `dvc add`"
        return Check(record.name, what, "unchecked", reason)
    if path_md5(path) == dep.md5:
        reason = "outside the project; what lies there today is what was used"
        return Check(record.name, what, "holds", reason)
    reason = "outside the project, and not today what was used; bring data in with `dvc add`"
    return Check(record.name, what, "unchecked", reason)


def _outside(path: str) -> bool:
    return path.startswith(("../", "/")) or re.match(r"\w+:/", path) is not None


def touches(dep: str, out: str) -> bool:
    """Whether one is the other, or lies in it."""
    return dep == out or dep.startswith(f"{out}/") or out.startswith(f"{dep}/")


def _kept(revision: Revision) -> Iterator[Check]:
    """What the fine-tuned file's receipt says of the pretrained weights in it."""
    from topwork.audit.keeping import kept_statements

    if RECEIPT.as_posix() in revision.outs:
        for status, message in kept_statements(revision):
            yield Check("finetune", f"receipt {RECEIPT}", status, message)


def _compare(stage: str, what: str, found: str, expected: str, where: str) -> Check | None:
    """None where the two are the same."""
    if found == expected:
        return None
    return Check(stage, what, "broken", f"{where} gives {found}, the record says {expected}")


def _size(stage: str, what: str, entry: Entry, size: int | None, files: int | None) -> Check:
    """Length and number of files, of an entry whose hash holds."""
    wrong = [
        f"{recorded} {unit} in the record, {found} found"
        for recorded, found, unit in ((entry.size, size, "bytes"), (entry.files, files, "files"))
        if recorded is not None and found is not None and recorded != found
    ]
    if entry.files is not None and not entry.is_folder:
        wrong.append(f"{entry.files} files in the record of one file")
    counted = f"{files} files" if files is not None else ""
    return Check(stage, what, "broken" if wrong else "holds", "; ".join(wrong) or counted)


def _differing(key: str, found: Any, recorded: Any) -> Iterator[str]:
    """Where two values of a param differ, kinds of numbers included."""
    if isinstance(found, dict) and isinstance(recorded, dict):
        for name in [*found, *(name for name in recorded if name not in found)]:
            yield from _differing(f"{key}.{name}", found.get(name), recorded.get(name))
    elif json.dumps(found, default=str) != json.dumps(recorded, default=str):
        yield f"{key}: {found!r} in the file, {recorded!r} in the record"


def _lookup(document: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        if not isinstance(document, dict) or part not in document:
            return None
        document = document[part]
    return document
