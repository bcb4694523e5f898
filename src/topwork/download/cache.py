"""The shared cache of downloads: content by its hash, so that a file in it never changes under a
reader.

It is outside any project, like DVC's cache: `TOPWORK_CACHE`, else `XDG_CACHE_HOME/topwork`,
else `~/.cache/topwork`.

    files/SHA256/NAME     whole files
    sources/KEY.json      which hash a source had when it was last fetched
    partial/KEY/          a download in progress, and the validators it may be resumed with
    locks/KEY.lock        one download of a source at a time, across processes
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from topwork.errors import TopworkError, WeightsError
from topwork.files import read_json, sha256_file, write_json

Notify = Callable[[str], None]
"""Receives each line that the user should read."""

_HASH = re.compile("[0-9a-f]{64}")
_KEY = re.compile("[0-9a-f]{32}")


def cache_root() -> Path:
    """The cache folder that the environment asks for."""
    if own := os.environ.get("TOPWORK_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "topwork"


@dataclass(frozen=True)
class Cached:
    """A whole file in the cache, and its SHA-256."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Cache:
    """The cache in one folder; several processes may use it at once."""

    root: Path

    @classmethod
    def default(cls) -> "Cache":
        """The cache in the folder that the environment asks for."""
        return cls(cache_root())

    def partial(self, source: str) -> Path:
        """The folder of a source's download in progress."""
        return self.root / "partial" / key_of(source)

    def find(self, source: str, expected: str | None, notify: Notify) -> Cached | None:
        """The cached file with hash `expected` or, without one, the file that `source` had last;
        its bytes are hashed again.
        """
        digest = expected or self._last(source)
        if digest is None:
            return None
        folder = self.root / "files" / digest
        path = next(
            (
                file
                for file in sorted(folder.glob("*"))
                if file.is_file() and not file.name.startswith(".")
            ),
            None,
        )
        if path is None:
            return None
        found = sha256_file(path)
        if found != digest:
            notify(
                f"{path}: the cached file is damaged (SHA-256 found {found}, expected {digest}); it"
                " is removed and fetched again."
            )
            path.unlink(missing_ok=True)
            return None
        return Cached(path, digest)

    def _last(self, source: str) -> str | None:
        """The hash that a source had last; a damaged record counts as none."""
        try:
            digest = read_json(self._record(source))["sha256"]
        except (TopworkError, KeyError, TypeError):
            return None
        return digest if isinstance(digest, str) and _HASH.fullmatch(digest) else None

    def _record(self, source: str) -> Path:
        return self.root / "sources" / f"{key_of(source)}.json"

    def forget(self, source: str) -> None:
        """The next fetch of a source without a known hash asks the source again."""
        self._record(source).unlink(missing_ok=True)

    def keep(self, source: str, partial: Path, digest: str, name: str) -> Cached:
        """Move a whole, checked file into its place and record it for `source`."""
        path = self.root / "files" / digest / safe_name(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("rb+") as stream:
                os.fsync(stream.fileno())
            # Recorded before the move: after a kill in between, the next run finds a complete
            # partial file; after a later kill, the file.
            write_json(
                self._record(source),
                {"source": source, "sha256": digest, "bytes": partial.stat().st_size},
            )
            partial.replace(path)
            path.chmod(0o444)
        except OSError as error:
            raise WeightsError(
                f"{self.root}: the download cache can't be written ({error.strerror or error}). Run"
                " again, or name another folder: TOPWORK_CACHE=FOLDER."
            ) from error
        return Cached(path, digest)

    @contextmanager
    def held(self, source: str, notify: Notify) -> Iterator[None]:
        """Only one process at a time is in this block for a source; the operating system frees the
        lock when a process dies.

        Raises:
            WeightsError: the cache folder can't be written.
        """
        try:
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / "locks" / f"{key_of(source)}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                notify(f"{source}: another process is fetching it; waiting.")
                lock.acquire()
        except OSError as error:
            raise WeightsError(
                f"{self.root}: the download cache can't be written ({error.strerror or error})."
                " Name another folder: TOPWORK_CACHE=FOLDER."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def clean(self) -> tuple[int, list[str]]:
        """Remove every file that the cache made, except downloads that another process is busy
        with.

        Returns:
            Bytes freed, and the keys skipped because they are busy.
        """
        # Only names that the cache gives: other files in the folder TOPWORK_CACHE stay.
        own = [path for path in self.root.glob("files/*") if _HASH.fullmatch(path.name)]
        own += [path for path in self.root.glob("sources/*.json") if _KEY.fullmatch(path.stem)]
        freed, busy = sum(_remove(path) for path in own), []
        for folder in sorted(
            path for path in self.root.glob("partial/*") if _KEY.fullmatch(path.name)
        ):
            try:
                freed += self._drop(folder)
            except Timeout:
                busy.append(folder.name)
        # Lock files stay: removing one while a process waits for it would let two in.
        return freed, busy

    def tidy(self, source: str) -> None:
        """Remove what a process left behind that was killed after its file was in place; nothing
        happens if another process is busy or the folder isn't writable.
        """
        folder = self.partial(source)
        if folder.is_dir():
            with suppress(OSError):  # Timeout is one
                self._drop(folder)

    def _drop(self, folder: Path) -> int:
        """Remove a partial folder; the bytes freed. Timeout where a process is busy with it."""
        with FileLock(self.root / "locks" / f"{folder.name}.lock").acquire(timeout=0):
            return _remove(folder)


def _remove(path: Path) -> int:
    """Remove a file or a folder; the bytes of its files that are gone."""
    sizes = {file: file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file()}
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    return sum(size for file, size in sizes.items() if not file.exists())


def key_of(source: str) -> str:
    """A source's file name in the cache."""
    return hashlib.sha256(source.encode()).hexdigest()[:32]


def safe_name(name: str) -> str:
    """The last segment of an address as a file name: letters, digits, dot, dash, underscore."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".")[-120:]
    return cleaned or "weights"
