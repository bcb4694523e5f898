"""weights.lock: the SHA-256 of each weights source, as first seen. Committed with params.yaml;
enforced from then on.
"""

import hashlib
import json
import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from topwork.download.cache import Cache
from topwork.errors import ChecksumError, WeightsError
from topwork.files import write_text
from topwork.project.fetch import WEIGHTS_LOCK

_HEADER = (
    "# SHA-256 of each weights source, as first seen by `topwork fetch`. Commit this file. Accept a"
    " change: topwork fetch SOURCE --accept\n"
)


def read_lock(path: Path = WEIGHTS_LOCK) -> dict[str, str]:
    """Source -> SHA-256; empty where there is no lock file yet.

    Raises:
        WeightsError: the file isn't a lock file.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if not path.is_file():
        return {}
    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")) or {}
    except (YAMLError, OSError, UnicodeDecodeError) as error:
        raise WeightsError(
            f"{path}: not readable as YAML ({' '.join(str(error).split())}). Restore it: git"
            f" checkout -- {path.name}"
        ) from error
    if not isinstance(raw, dict) or not all(
        isinstance(k, str) and _is_sha256(v) for k, v in raw.items()
    ):
        raise WeightsError(
            f"{path}: expected lines of `source: SHA-256` (64 hex digits, quoted). Restore it: git"
            f" checkout -- {path.name}"
        )
    return dict(raw)


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def write_lock(lock: dict[str, str], path: Path = WEIGHTS_LOCK) -> None:
    """Write the lock file, sources sorted, whole or not at all."""
    lines = [
        f"{json.dumps(source, ensure_ascii=False)}: {json.dumps(lock[source])}\n"
        for source in sorted(lock)
    ]
    write_text(path, _HEADER + "".join(lines))


@dataclass(frozen=True)
class Known:
    """What is known about a source's content before it is fetched.

    Attributes:
        source: as the lock writes it.
        pinned: SHA-256 of fetch.sha256, None without one.
        locked: SHA-256 of weights.lock, None at first use.
        digits: hex digits that the source itself declares: the first eight (torchvision) or all
            (the hub), else empty.
        promise: where it declares them.
        accept: a change of the locked hash is accepted.
        given: as the user wrote the source, where the lock doesn't write it so.
    """

    source: str
    pinned: str | None = None
    locked: str | None = None
    digits: str = ""
    promise: str = "the digits in torchvision's file name"
    accept: bool = False
    given: str = ""

    @property
    def expected(self) -> str | None:
        """The full hash that the content must have, None where any will do."""
        whole = self.digits if len(self.digits) == 64 else None
        return self.pinned or (None if self.accept else self.locked) or whole

    def verify(self, found: str) -> None:
        """Compare a SHA-256 with what is known.

        Raises:
            ChecksumError: they differ; both are shown, and what accepts the new one.
        """
        if self.pinned is not None and found != self.pinned:
            raise ChecksumError(
                f"{self.source}: SHA-256 found {found}, expected {self.pinned} (fetch.sha256 in"
                " params.yaml). Nothing was kept. If the new content is right, put its hash into"
                " fetch.sha256."
            )
        if not found.startswith(self.digits):
            begin = "" if len(self.digits) == len(found) else "it to begin with "
            raise ChecksumError(
                f"{self.source}: SHA-256 found {found}, expected {begin}{self.digits}"
                f" ({self.promise}). Nothing was kept: this isn't the source's own file. Fetch"
                " again, or mend fetch.mirror."
            )
        if (
            self.pinned is None
            and self.locked is not None
            and not self.accept
            and found != self.locked
        ):
            raise ChecksumError(
                f"{self.source}: SHA-256 found {found}, expected {self.locked} (weights.lock): the"
                " source has changed. Nothing was kept. If you trust the new content: topwork"
                f" fetch {shlex.quote(self.given or self.source)} --accept"
            )


def absolute_name(path: Path) -> str:
    """How the lock names a file outside of the project: an absolute path means nothing on another
    machine and isn't committed, but two files of one name are two sources.

    Example:
        >>> absolute_name(Path("/a/best.pth")), absolute_name(Path("/b/best.pth"))
        ('best.pth@6a50dc85', 'best.pth@9812b0b9')
    """
    folder = os.path.normpath(path.absolute().parent)
    return f"{path.name}@{hashlib.sha256(folder.encode()).hexdigest()[:8]}"


def record(source: str, digest: str, path: Path = WEIGHTS_LOCK, cache: Cache | None = None) -> None:
    """Write a source's hash into the lock, if it isn't there; processes take turns."""
    if read_lock(path).get(source) == digest:
        return
    with _turn(cache or Cache.default()):
        write_lock({**read_lock(path), source: digest}, path)


@contextmanager
def _turn(cache: Cache) -> Iterator[None]:
    """One process at a time, by one lock file in the cache that all projects share; where that
    folder can't be written, there are no turns, and a hash that's lost is written by the next
    fetch.
    """
    with ExitStack() as stack:
        with suppress(WeightsError):
            stack.enter_context(cache.held("weights.lock", lambda _: None))
        yield


def keep_lock(path: Path = WEIGHTS_LOCK) -> None:
    """Make sure that there is a lock file, empty where nothing was learned: DVC tracks it as an out
    of `fetch`.
    """
    if not path.is_file():
        write_lock({}, path)


def parent_lock(path: Path = WEIGHTS_LOCK) -> Path | None:
    """The lock of the project that this one is a copy of, None where it's none: DVC runs queued and
    temporary experiments in a copy of what git tracks, which lacks a lock that isn't committed yet,
    and names the original in DVC_ROOT.
    """
    parent = Path(os.environ.get("DVC_ROOT", ".")) / path
    return parent if parent.resolve() != path.resolve() else None
