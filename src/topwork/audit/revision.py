"""One past revision of a project, read from git and the DVC cache without touching the working
tree.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, StrictInt, StrictStr, ValidationError

from topwork.audit.repository import git, read_blobs
from topwork.errors import AuditError
from topwork.params.document import Params, parse_params

Kind = TypeVar("Kind", bound=BaseModel)
LOCK = "dvc.lock"
DEFINITION = "dvc.yaml"


@dataclass(frozen=True)
class Entry:
    """A dep or out as dvc.lock (or a .dvc file) records it.

    Attributes:
        path: relative to the project's root; an absolute or `../` path is outside of it.
        md5: hash of the file, or of the folder's listing (it ends in `.dir`); None where nothing
            was recorded.
        size: bytes, of all files of a folder, or None.
        files: number of files of a folder, or None.
        legacy: whether DVC 2 or 1 recorded it, whose hash of text files is another.
    """

    path: str
    md5: str | None
    size: int | None = None
    files: int | None = None
    legacy: bool = False

    @property
    def is_folder(self) -> bool:
        """Whether the hash is that of a folder's listing."""
        return bool(self.md5 and self.md5.endswith(".dir"))


@dataclass(frozen=True)
class StageRecord:
    """What a dvc.lock records about one stage (a .dvc file counts as a stage without command, deps
    or params).
    """

    name: str
    file: str
    cmd: Any
    deps: tuple[Entry, ...]
    outs: tuple[Entry, ...]
    params: dict[str, dict[str, Any]] = field(default_factory=dict)


class _LockEntry(BaseModel):
    model_config = ConfigDict(extra="ignore")

    path: StrictStr
    hash: StrictStr | None = None
    md5: StrictStr | None = None
    size: StrictInt | None = None
    nfiles: StrictInt | None = None


class _LockStage(BaseModel):
    model_config = ConfigDict(extra="ignore")

    cmd: StrictStr | list[StrictStr] | None = None
    deps: list[_LockEntry] = []
    outs: list[_LockEntry] = []
    params: dict[StrictStr, dict[StrictStr, Any]] = {}


class _Lock(BaseModel):
    model_config = ConfigDict(extra="ignore")

    schema_: StrictStr
    stages: dict[StrictStr, _LockStage] = {}


class _Tracked(BaseModel):
    """A .dvc file."""

    model_config = ConfigDict(extra="ignore")

    wdir: StrictStr = "."
    outs: list[_LockEntry] = []


class RepeatedKeyError(AuditError):
    """A key stands twice in a YAML file: readers disagree on which one counts."""


class Revision:
    """A revision's files: those that git tracks, and those that DVC keeps in its cache.

    Raises:
        AuditError: there is no such revision.
    """

    def __init__(self, root: Path, rev: str) -> None:
        self.root = root
        self.rev = rev
        try:
            named = f"{rev}^{{commit}}"
            found = git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", named)
        except AuditError as error:
            known = git(root, "log", "--oneline", "-5").decode().strip().replace("\n", "; ")
            raise AuditError(
                f"{rev}: no such revision. The newest commits are: {known}. `topwork audit list`"
                " shows all."
            ) from error
        self.commit = found.decode().strip().splitlines()[-1]
        self._blobs: dict[str, bytes] = {}
        self._md5s: dict[str, tuple[str, int]] = {}
        self._documents: dict[str, dict[str, Any]] = {}

    @cached_property
    def tracked(self) -> dict[str, str]:
        """Path (relative to the project's root) -> git blob id."""
        listed = git(self.root, "ls-tree", "-r", "-z", self.commit, "--", ".")
        listing = listed.decode(errors="surrogateescape")
        found = {}
        for line in filter(None, listing.split("\0")):
            meta, path = line.split("\t", 1)
            _, kind, blob = meta.split()
            if kind == "blob":
                found[path] = blob
        return found

    def git_bytes(self, path: str) -> bytes:
        """Content of a file that git tracks."""
        blob = self.tracked[path]
        if blob not in self._blobs:
            for name, found in read_blobs(self.root, [blob], keep=True):
                assert found.content is not None
                self._blobs[name] = found.content
                self._md5s[name] = found.md5, found.size
        return self._blobs[blob]

    def git_md5(self, path: str) -> tuple[str, int]:
        """MD5 and length of a file that git tracks."""
        self.read_md5s([path])
        return self._md5s[self.tracked[path]]

    def read_md5s(self, paths: Iterable[str]) -> None:
        """Hash files that git tracks, those that aren't hashed yet, in one go."""
        wanted = {self.tracked[path] for path in paths} - set(self._md5s)
        for name, found in read_blobs(self.root, sorted(wanted), keep=False):
            self._md5s[name] = found.md5, found.size

    @cached_property
    def nested(self) -> tuple[str, ...]:
        """Folders that are DVC projects of their own, with a cache of their own."""
        return tuple(
            path.removesuffix(".dvc/config")
            for path in self.tracked
            if path.endswith("/.dvc/config")
        )

    def own(self, path: str) -> bool:
        """Whether a file belongs to this project, and not to one inside of it."""
        return not path.startswith(self.nested)

    @cached_property
    def locks(self) -> list[str]:
        """Every dvc.lock of the project."""
        return [p for p in self.tracked if PurePosixPath(p).name == LOCK and self.own(p)]

    @cached_property
    def definition_files(self) -> list[str]:
        """Every dvc.yaml of the project."""
        return [p for p in self.tracked if PurePosixPath(p).name == DEFINITION and self.own(p)]

    @cached_property
    def stages(self) -> dict[str, StageRecord]:
        """All stages of every dvc.lock, and every .dvc file, by address (`validate`,
        `data/dvc.yaml:demo`, `data/mine.dvc`).

        Raises:
            AuditError: one of these files isn't what DVC writes.
        """
        records = {}
        for path in self.locks:
            for record in self._lock(path):
                records[record.name] = record
        for path in self.tracked:
            if path.endswith(".dvc") and self.own(path):
                document = self._checked(_Tracked, self.yaml(path), path)
                folder = PurePosixPath(path).parent / document.wdir
                outs = tuple(_entry(item, folder) for item in document.outs)
                records[path] = StageRecord(path, path, None, (), outs)
        return records

    def _lock(self, path: str) -> Iterator[StageRecord]:
        document = self.yaml(path)
        if "schema" not in document:
            raise AuditError(
                f"{path} at {self.rev}: has no `schema`: DVC 1 wrote it, or it is damaged. Expected"
                " the form of DVC 2 and later; check that revision out and run `dvc commit"
                " --force` with today's DVC."
            )
        lock = self._checked(_Lock, {**document, "schema_": document["schema"]}, path)
        folder = PurePosixPath(path).parent
        definition = str(folder / DEFINITION)
        raw = self.yaml(definition).get("stages") if definition in self.tracked else None
        for name, stage in lock.stages.items():
            defined = raw.get(name.split("@")[0]) if isinstance(raw, dict) else None
            defined = defined.get("do", defined) if isinstance(defined, dict) else {}
            wdir = folder / str(defined.get("wdir", "."))
            address = name if folder == PurePosixPath(".") else f"{definition}:{name}"
            yield StageRecord(
                address,
                path,
                stage.cmd,
                tuple(_entry(item, wdir) for item in stage.deps),
                tuple(_entry(item, wdir) for item in stage.outs),
                {normal(wdir, file): values for file, values in stage.params.items()},
            )

    def _checked(self, kind: type[Kind], document: Any, path: str) -> Kind:
        try:
            return kind.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])).replace("schema_", "schema")
            found = repr(first["input"])
            raise AuditError(
                f"{path} at {self.rev}: {place} is {found[:77]}: {first['msg'].lower()}. The file"
                " is damaged; restore it from another clone or from git's history."
            ) from error

    def yaml(self, path: str) -> dict[str, Any]:
        """A YAML file that git tracks, as DVC reads it (YAML 1.2); not to be changed.

        Raises:
            RepeatedKeyError: a key stands there twice.
            AuditError: it isn't YAML, or it isn't a mapping.
        """
        from ruamel.yaml.constructor import DuplicateKeyError
        from ruamel.yaml.error import YAMLError

        if path in self._documents:
            return self._documents[path]
        try:
            document = parse_yaml(self.git_bytes(path).decode())
        except DuplicateKeyError as error:
            line = 1 + error.problem_mark.line if error.problem_mark is not None else 0
            raise RepeatedKeyError(f"{path} at {self.rev}, line {line}: {error.problem}") from error
        except (YAMLError, ValueError, RecursionError, OverflowError) as error:
            raise AuditError(
                f"{path} at {self.rev}: not readable as YAML: {' '.join(str(error).split())}"
            ) from error
        if not isinstance(document, dict):
            raise AuditError(
                f"{path} at {self.rev}: found {type(document).__name__}, expected a mapping."
            )
        self._documents[path] = document
        return document

    def params_document(self, path: str = "params.yaml") -> dict[str, Any]:
        """A params file of the revision, untyped (older revisions may hold keys that are unknown
        today).
        """
        if path not in self.tracked:
            raise AuditError(
                f"{path}: not in revision {self.rev}. Is this revision older than the project?"
            )
        if path.endswith(".json"):
            try:
                return dict(json.loads(self.git_bytes(path)))
            except (ValueError, TypeError, RecursionError) as error:
                raise AuditError(f"{path} at {self.rev}: not readable as JSON: {error}") from error
        return self.yaml(path)

    @property
    def params(self) -> Params:
        """params.yaml of the revision, typed by today's definition."""
        return parse_params(self.params_document(), Path(f"params.yaml at {self.rev}"))

    @cached_property
    def _cache_path(self) -> Any:
        from dvc.repo import Repo

        with Repo(str(self.root)) as repo:
            return repo.cache.local.oid_to_path

    @cached_property
    def has_remote(self) -> bool:
        """Whether the project names a DVC remote."""
        from dvc.repo import Repo

        with Repo(str(self.root)) as repo:
            return bool(repo.config["remote"])

    def cached(self, md5: str) -> Path:
        """Where the DVC cache keeps (or would keep) an object."""
        return Path(self._cache_path(md5))

    @cached_property
    def outs(self) -> dict[str, Entry]:
        """Every out of every stage, by path."""
        return {out.path: out for record in self.stages.values() for out in record.outs}

    def members(self, folder: Entry) -> dict[str, str]:
        """A folder out's files: path relative to the folder -> md5, from the cached listing.

        Raises:
            AuditError: the listing isn't in the cache, or isn't a listing.
        """
        assert folder.md5 is not None
        where = f"{folder.path} at {self.rev}: its listing {folder.md5}"
        try:
            items = json.loads(self.cached(folder.md5).read_bytes())
            found = {str(item["relpath"]): str(item["md5"]) for item in items}
        except FileNotFoundError as error:
            raise AuditError(f"{where} isn't in the DVC cache; try `dvc fetch`.") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise AuditError(f"{where} in the DVC cache is damaged.") from error
        unsafe = [path for path in found if normal(PurePosixPath(), path).startswith(("../", "/"))]
        if unsafe or len(found) != len(items) or not all(map(_is_md5, found.values())):
            raise AuditError(f"{where} in the DVC cache isn't one that DVC writes.")
        return found

    def listing(self, folder: Entry) -> dict[str, str]:
        """A folder out's files: path relative to the project -> md5."""
        return {f"{folder.path}/{path}": md5 for path, md5 in self.members(folder).items()}

    def locate(self, path: str) -> str | None:
        """The md5 under which the cache keeps the content of an out, or of a file inside a folder
        out; None where no out holds it.
        """
        if path in self.outs:
            return self.outs[path].md5
        for out in self.outs.values():
            if out.is_folder and path.startswith(f"{out.path}/"):
                return self.listing(out).get(path)
        return None

    def read_bytes(self, path: str) -> bytes:
        """Content of a file of the revision, from git or from the DVC cache.

        Raises:
            AuditError: neither has it.
        """
        if path in self.tracked:
            return self.git_bytes(path)
        md5 = self.locate(path)
        if md5 is None:
            raise AuditError(f"{path}: neither git nor dvc.lock knows it at {self.rev}.")
        try:
            return self.cached(md5).read_bytes()
        except FileNotFoundError as error:
            raise AuditError(
                f"{path} at {self.rev}: {md5} isn't in the DVC cache; try `dvc fetch"
                " --all-commits`."
            ) from error


class RevisionFiles:
    """A past revision's files, as the report room reads them."""

    def __init__(self, revision: Revision) -> None:
        self.revision = revision
        self._listings: dict[str, dict[str, str]] = {}

    def read_bytes(self, path: str) -> bytes:
        """Content of a file, from git or the DVC cache."""
        return self.revision.read_bytes(path)

    def names(self, folder: str) -> list[str]:
        """Paths of the files below a folder, those that git has and those that DVC has."""
        start = f"{folder}/"
        found = {path for path in self.revision.tracked if path.startswith(start)}
        for out in self.revision.outs.values():
            files = (
                self._listing(out.path)
                if out.is_folder
                and (f"{out.path}/".startswith(start) or start.startswith(f"{out.path}/"))
                else (out.path,)
            )
            found |= {path for path in files if path.startswith(start)}
        return sorted(found)

    def image(self, image_root: str, file_name: str) -> bytes:
        """An image's bytes; of an archive it is unpacked."""
        import tempfile

        from topwork.dataset.images import ImageStore

        path = f"{image_root}/{file_name}"
        if self.fingerprint(path) is not None:
            return self.read_bytes(path)
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / Path(image_root).name
            archive.write_bytes(self.read_bytes(image_root))
            return ImageStore(archive).read(file_name)

    def fingerprint(self, path: str) -> str | None:
        """MD5 of a file's content, or None where the revision doesn't have it as a file of its
        own.
        """
        if path in self.revision.tracked:
            return self.revision.git_md5(path)[0]
        for out in self.revision.outs.values():
            if out.path == path:
                return out.md5
            if out.is_folder and path.startswith(f"{out.path}/"):
                return self._listing(out.path).get(path)
        return None

    def _listing(self, path: str) -> dict[str, str]:
        if path not in self._listings:
            self._listings[path] = self.revision.listing(self.revision.outs[path])
        return self._listings[path]


def parse_yaml(text: str) -> Any:
    """A YAML 1.2 document; keys that stand there twice are an error."""
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(StringIO(text))


def experiment_names(root: Path) -> dict[str, str]:
    """Name -> commit of the DVC experiments."""
    listing = git(root, "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").decode()
    names = {}
    for line in listing.splitlines():
        commit, _, ref = line.partition(" ")
        if ref.count("/") >= 4:  # refs/exps/AB/CDEF.../NAME; others are DVC's own
            names[ref.rsplit("/", 1)[-1]] = commit
    return names


def open_revision(root: Path, rev: str) -> Revision:
    """Open a commit, tag, branch or DVC experiment (by its name or hash) for reading.

    Raises:
        AuditError: there is no such revision.
    """
    try:
        return Revision(root, rev)
    except AuditError:
        names = experiment_names(root)
        if rev not in names:
            raise
        revision = Revision(root, names[rev])
        revision.rev = rev
        return revision


def _entry(item: _LockEntry, wdir: PurePosixPath) -> Entry:
    legacy = item.md5 is not None and item.hash is None
    return Entry(normal(wdir, item.path), item.md5, item.size, item.nfiles, legacy)


def _is_md5(text: str) -> bool:
    return len(text) == 32 and set(text) <= set("0123456789abcdef")


def normal(wdir: PurePosixPath, path: str) -> str:
    """A path written relative to `wdir`, made relative to the project's root, `..` resolved."""
    parts: list[str] = []
    for part in (wdir / path).parts:
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return str(PurePosixPath(*parts))
