"""Files: hashes, whole-or-not-at-all writes, canonical JSON."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from topwork.errors import TopworkError

CHUNK_BYTES = 1 << 20


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_path(path: Path) -> str:
    """SHA-256 of a file, or of a folder: over the sorted relative names and hashes of its files."""
    if path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def md5_file(path: Path) -> str:
    """MD5 of a file's bytes: DVC's content address, not a safeguard against forgery."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def folder_md5(files: Mapping[str, str]) -> str:
    """DVC's hash of a folder: MD5 of the listing of its files.

    Args:
        files: path relative to the folder -> md5 of the content.
    """
    listing = [{"md5": md5, "relpath": path} for path, md5 in sorted(files.items())]
    text = json.dumps(listing, sort_keys=True).encode()
    return hashlib.md5(text, usedforsecurity=False).hexdigest() + ".dir"


def path_md5(path: Path) -> str:
    """The hash of a file or folder that DVC records for it."""
    if path.is_file():
        return md5_file(path)
    files = (file for file in path.rglob("*") if file.is_file())
    return folder_md5({file.relative_to(path).as_posix(): md5_file(file) for file in files})


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, two spaces of indent and a final newline; NaN and Infinity are
    refused.

    Raises:
        ValueError: the value holds NaN or Infinity, which JSON doesn't have.
    """
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path next to `path` (same suffix) that replaces it only when the block ends
    without an error.

    The file is flushed to disk before the rename, so that a power cut leaves the old file or the
    new one, never half of one.

    Raises:
        TopworkError: the disk is full or the folder can't be written; what was at `path` is still
            there.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix
        )
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(0o644)
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise TopworkError(
            f"{path}: can't be written ({error.strerror or error}). What was there before is"
            " untouched; free some space or mend the permissions, then run again."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder next to `path` that replaces it, whole, when the block ends without an
    error.

    Raises:
        TopworkError: the disk is full or the parent can't be written; what was at `path` is still
            there.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
        temporary.chmod(0o755)
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    except OSError as error:
        raise TopworkError(
            f"{path}: can't be written ({error.strerror or error}). Free some space or mend the"
            " permissions, then run again."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write text (UTF-8) whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write canonical JSON whole or not at all."""
    write_text(path, canonical_json(value))


def read_json(path: Path) -> Any:
    """Read a JSON file that topwork wrote.

    Raises:
        TopworkError: the file is missing or isn't JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TopworkError(
            f"{path}: no such file. Run the stage that writes it: dvc repro."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise TopworkError(f"{path}: not readable as JSON ({error}).") from error


class HeldInputs:
    """What a stage reads: hashed before it is read, and compared with that at the end.

    DVC hashes a stage's deps after its command has run, so an input edited meanwhile would be
    recorded as if it had been used. A stage therefore holds its inputs: `held = HeldInputs(paths)`
    first, `held.check()` before the outputs are put in place.

    Args:
        paths: name -> file or folder.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self.paths = dict(paths)
        for path in self.paths.values():
            if not path.exists():
                raise TopworkError(
                    f"{path}: no such file or folder, and this stage reads it. Run `dvc repro`, or"
                    " mend params.yaml. If dvc.yaml has no stage that makes it, it is of an earlier"
                    " topwork: take the one that `topwork init` writes."
                )
        self.hashes = {name: sha256_path(path) for name, path in self.paths.items()}
        self._watched: dict[str, tuple[Callable[[], object], object]] = {}

    def watch(self, name: str, state: Callable[[], object]) -> None:
        """Hold inputs that are too many to hash twice by their state (size and time of each
        image).
        """
        self._watched[name] = (state, state())

    def check(self) -> None:
        """Hash again.

        Raises:
            TopworkError: an input changed while the stage ran; nothing should be written from it.
        """
        for name, path in self.paths.items():
            found = sha256_path(path) if path.exists() else "missing"
            if found != self.hashes[name]:
                raise TopworkError(
                    f"{path}: changed while the stage was reading it (SHA-256"
                    f" {self.hashes[name][:12]} before, {found[:12]} after). Nothing was written;"
                    " run the stage again."
                )
        self.check_watched()

    def check_watched(self) -> None:
        """Look at the watched inputs again, which takes a moment: while a stage runs, before it
        keeps anything that it made of them.

        Raises:
            TopworkError: one changed.
        """
        for name, (state, before) in self._watched.items():
            if state() != before:
                raise TopworkError(
                    f"{name}: changed while the stage was reading them. Nothing was written; run"
                    " the stage again."
                )
