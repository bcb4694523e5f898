"""The partial file of a download: its bytes, their running hash, and the validators it may be
resumed with.
"""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from topwork.errors import TopworkError, WeightsError
from topwork.files import CHUNK_BYTES, read_json, write_json

_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than this disk or user may hold",
}
_SPARE_BYTES = 16 << 20
SYNC_BYTES = 8 << 20


@dataclass(frozen=True)
class Validators:
    """What shows whether the server still has the same content.

    Attributes:
        url: where the bytes come from, as `shown`: the record lies on disk.
        etag: a strong ETag; weak ones don't identify bytes.
        modified: Last-Modified.
        total: announced length in bytes.
    """

    url: str
    etag: str | None = None
    modified: str | None = None
    total: int | None = None


class Partial:
    """A partial file in a folder of its own; on leaving the block its bytes stay for the next try,
    unless it was moved or dropped.

    Attributes:
        size: bytes so far.
        joined: the bytes come from more than one answer of the server.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.path = folder / "part"
        self.validators = Validators(url)
        self.size = 0
        self.joined = False
        self._record = folder / "part.json"
        self._stream: BinaryIO | None = None
        self._helpers = ThreadPoolExecutor(2)
        self._hashing: Future[None] | None = None
        self._syncing: Future[None] | None = None
        self._synced = 0
        self._digest = hashlib.sha256()

    def __enter__(self) -> "Partial":
        with self._disk_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._recover()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        self._helpers.shutdown()
        if kind is None or self.size == 0:
            shutil.rmtree(self.path.parent, ignore_errors=True)

    def _recover(self) -> None:
        """Resume what an earlier process left, if it came from the same address."""
        if not self._record.is_file() or not self.path.is_file():
            return
        try:
            left = Validators(**read_json(self._record))
        except (TopworkError, TypeError):
            return
        if left.url != self.validators.url:
            return
        self.validators = left
        with self.path.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                self._digest.update(chunk)
                self.size += len(chunk)
        self.joined = True

    def begin(self, validators: Validators) -> None:
        """Start from the first byte; the record is on disk before the bytes that it describes."""
        self.drop()
        with self._disk_errors():
            if validators.total is not None:
                free = shutil.disk_usage(self.path.parent).free
                if free < validators.total + _SPARE_BYTES:
                    raise WeightsError(
                        f"{self.path.parent}: {free:,} bytes are free, the download needs"
                        f" {validators.total:,}. Free some space (topwork fetch --clean-cache), or"
                        " name another folder: TOPWORK_CACHE=FOLDER."
                    )
            write_json(self._record, asdict(validators))
            self._stream = self.path.open("wb", buffering=0)
        self.validators = validators

    def go_on(self) -> None:
        """Append to what is there."""
        if self._stream is None:
            with self._disk_errors():
                self._stream = self.path.open("ab", buffering=0)
        self.joined = True

    def write(self, chunk: bytes) -> None:
        """Append a chunk; it is hashed in another thread while the next one is on its way."""
        assert self._stream is not None
        self._settle()
        self._hashing = self._helpers.submit(self._digest.update, chunk)
        with self._disk_errors():
            view = memoryview(chunk)
            while view:
                view = view[self._stream.write(view) :]
            self.size += len(chunk)
            if self.size - self._synced >= SYNC_BYTES and (
                self._syncing is None or self._syncing.done()
            ):
                self._sync_behind()

    def hexdigest(self) -> str:
        """SHA-256 of all bytes so far."""
        self._settle()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file; its bytes stay."""
        self._settle()
        stream, self._stream = self._stream, None
        if stream is not None:
            with stream, self._disk_errors():
                self._synced_behind()

    def drop(self) -> None:
        """Forget all bytes."""
        self.close()
        self.path.unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)
        self._digest = hashlib.sha256()
        self.validators = Validators(self.validators.url)
        self.size, self._synced, self.joined = 0, 0, False

    def _settle(self) -> None:
        if self._hashing is not None:
            self._hashing.result()
            self._hashing = None

    def _sync_behind(self) -> None:
        """Send what has come to the disk while more comes, so that little is left for the sync at
        the end.
        """
        assert self._stream is not None
        self._synced_behind()
        self._synced = self.size
        self._syncing = self._helpers.submit(os.fsync, self._stream.fileno())

    def _synced_behind(self) -> None:
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            syncing.result()

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """A full or unwritable disk ends the download, and frees the space it had used."""
        try:
            yield
        except OSError as error:
            size = self.size
            with contextlib.suppress(OSError):
                self.drop()
            reason = _DISK.get(error.errno or 0, error.strerror or str(error))
            raise WeightsError(
                f"{self.path.parent}: {reason} (after {size:,} bytes of {self.validators.url}). The"
                " partial file was removed; free some space (topwork fetch --clean-cache), or name"
                " another folder: TOPWORK_CACHE=FOLDER."
            ) from error
