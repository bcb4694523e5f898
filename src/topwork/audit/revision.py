"""One past revision of a project, read from git and the DVC cache without touching the working
tree.
"""

import hashlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any

from topwork.errors import AuditError
from topwork.params.document import Params, parse_params


@dataclass(frozen=True)
class Entry:
    """A dep or out as dvc.lock (or a .dvc file) records it.

    Attributes:
        path: relative to the project's root; an absolute or `../` path is outside of it.
        md5: hash of the file, or of the folder's listing (it ends in `.dir`); None where nothing
            was recorded.
        size: bytes, or None.
    """

    path: str
    md5: str | None
    size: int | None

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
    cmd: str | None
    deps: tuple[Entry, ...]
    outs: tuple[Entry, ...]
    params: dict[str, dict[str, Any]]


def git(root: Path, *arguments: str) -> bytes:
    """Run git in `root`.

    Raises:
        AuditError: git isn't there, or fails; the message is git's own.
    """
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)
    except OSError as error:
        raise AuditError(
            f"git can't be run ({error}); the audit reads the project's history through it."
        ) from error
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip()
        raise AuditError(
            f"git {' '.join(arguments)}: {message or 'failed'}. Is {root.resolve()} inside a git"
            " repository?"
        )
    return done.stdout


class Revision:
    """A revision's files: those that git tracks, and those that DVC keeps in its cache."""

    def __init__(self, root: Path, rev: str) -> None:
        self.root = root
        self.rev = rev
        try:
            self.commit = (
                git(root, "rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}").decode().strip()
            )
        except AuditError as error:
            known = git(root, "log", "--oneline", "-5").decode().strip().replace("\n", "; ")
            raise AuditError(
                f"{rev}: no such revision. The newest commits are: {known}. `topwork audit list`"
                " shows all."
            ) from error
        self.prefix = git(root, "rev-parse", "--show-prefix").decode().strip()

    @cached_property
    def tracked(self) -> dict[str, str]:
        """Path (relative to the project's root) -> git blob id."""
        listing = git(self.root, "ls-tree", "-r", "-z", self.commit, "--", ".").decode()
        found = {}
        for line in filter(None, listing.split("\0")):
            meta, path = line.split("\t", 1)
            _, kind, blob = meta.split()
            if kind == "blob":
                found[path] = blob
        return found

    def git_bytes(self, path: str) -> bytes:
        """Content of a file that git tracks."""
        return git(self.root, "cat-file", "blob", self.tracked[path])

    @cached_property
    def stages(self) -> dict[str, StageRecord]:
        """All stages of every dvc.lock, and every .dvc file, by address (`validate`,
        `data/dvc.yaml:demo`, `data/mine.dvc`).
        """
        records = {}
        nested = tuple(
            path.removesuffix(".dvc/config")
            for path in self.tracked
            if path.endswith("/.dvc/config")
        )
        for path in self.tracked:
            if path.startswith(nested):  # a DVC project of its own, with a cache of its own
                continue
            name = PurePosixPath(path).name
            if name == "dvc.lock":
                for record in self._lock(path):
                    records[record.name] = record
            elif path.endswith(".dvc"):
                folder = PurePosixPath(path).parent
                document = self._yaml(path)
                outs = tuple(
                    _entry(item, folder / str(document.get("wdir", ".")))
                    for item in document.get("outs", [])
                )
                records[path] = StageRecord(path, path, None, (), outs, {})
        return records

    def _lock(self, path: str) -> Iterator[StageRecord]:
        folder = PurePosixPath(path).parent
        definition_path = str(folder / "dvc.yaml")
        definition = self._yaml(definition_path) if definition_path in self.tracked else {}
        for name, stage in (self._yaml(path).get("stages") or {}).items():
            defined = (definition.get("stages") or {}).get(name.split("@")[0]) or {}
            defined = defined.get("do", defined)
            wdir = folder / str(defined.get("wdir", "."))
            address = name if folder == PurePosixPath(".") else f"{definition_path}:{name}"
            deps = tuple(_entry(item, wdir) for item in stage.get("deps", []))
            outs = tuple(_entry(item, wdir) for item in stage.get("outs", []))
            params = {
                _normal(wdir, file): values for file, values in (stage.get("params") or {}).items()
            }
            yield StageRecord(address, path, stage.get("cmd"), deps, outs, params)

    def _yaml(self, path: str) -> dict[str, Any]:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        try:
            document = YAML(typ="safe", pure=True).load(StringIO(self.git_bytes(path).decode()))
        except (YAMLError, UnicodeDecodeError) as error:
            raise AuditError(
                f"{path} at {self.rev}: not readable as YAML: {' '.join(str(error).split())}"
            ) from error
        if not isinstance(document, dict):
            raise AuditError(
                f"{path} at {self.rev}: found {type(document).__name__}, expected a mapping."
            )
        return document

    def params_document(self, path: str = "params.yaml") -> dict[str, Any]:
        """A params file of the revision, untyped (older revisions may hold keys that are unknown
        today).
        """
        if path not in self.tracked:
            raise AuditError(
                f"{path}: not in revision {self.rev}. Is this revision older than the project?"
            )
        return self._yaml(path)

    @property
    def params(self) -> Params:
        """params.yaml of the revision, typed by today's definition."""
        return parse_params(self.params_document(), Path(f"params.yaml at {self.rev}"))

    @cached_property
    def _cache_path(self) -> Any:
        from dvc.repo import Repo

        with Repo(str(self.root)) as repo:
            return repo.cache.local.oid_to_path

    def cached(self, md5: str) -> Path:
        """Where the DVC cache keeps (or would keep) an object."""
        return Path(self._cache_path(md5))

    @cached_property
    def outs(self) -> dict[str, Entry]:
        """Every out of every stage, by path."""
        return {out.path: out for record in self.stages.values() for out in record.outs}

    def listing(self, folder: Entry) -> dict[str, str]:
        """A folder out's files: path relative to the project -> md5, from the cached listing.

        Raises:
            AuditError: the listing isn't in the cache, or isn't a listing.
        """
        assert folder.md5 is not None
        try:
            items = json.loads(self.cached(folder.md5).read_bytes())
            return {f"{folder.path}/{item['relpath']}": item["md5"] for item in items}
        except FileNotFoundError as error:
            raise AuditError(
                f"{folder.path} at {self.rev}: its listing {folder.md5} isn't in the DVC cache; try"
                " `dvc fetch`."
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise AuditError(
                f"{folder.path} at {self.rev}: its listing {folder.md5} in the DVC cache is"
                " damaged."
            ) from error

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


def open_revision(root: Path, rev: str) -> Revision:
    """Open a commit, tag, branch or DVC experiment (by its name or hash) for reading."""
    names = {}
    for line in (
        git(root, "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps")
        .decode()
        .splitlines()
    ):
        commit, _, ref = line.partition(" ")
        names[ref.rsplit("/", 1)[-1]] = commit
    return Revision(root, names.get(rev, rev))


def _entry(item: dict[str, Any], wdir: PurePosixPath) -> Entry:
    return Entry(_normal(wdir, item["path"]), item.get("md5"), item.get("size"))


def _normal(wdir: PurePosixPath, path: str) -> str:
    """A path written relative to `wdir`, made relative to the project's root, `..` resolved."""
    parts: list[str] = []
    for part in (wdir / path).parts:
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return str(PurePosixPath(*parts))
