"""Objects of the DVC cache, hashed again: each once, several at a time."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from topwork.audit.revision import Revision
from topwork.files import md5_file

THREADS = 8
"""hashlib lets go of the interpreter; more threads than cores hide waits for disks."""
_SEEN: dict[tuple[str, int, int, int, int], str] = {}
"""Objects that this process has hashed, by all that would change with them."""


class Objects:
    """The cache's objects that a revision names: MD5 and size as they are found."""

    def __init__(self, revision: Revision) -> None:
        self._revision = revision
        self._found: dict[str, tuple[str, int] | None] = {}

    def read(self, names: Iterable[str]) -> None:
        """Hash objects, those that aren't hashed yet."""
        wanted = sorted(set(names) - set(self._found))
        paths = [self._revision.cached(name) for name in wanted]
        with ThreadPoolExecutor(THREADS) as pool:
            self._found |= dict(zip(wanted, pool.map(_hashed, paths), strict=True))

    def found(self, name: str) -> tuple[str, int] | None:
        """MD5 (of a folder's listing with `.dir`) and size; None where the cache lacks it."""
        self.read([name])
        found = self._found[name]
        if found is None or not name.endswith(".dir"):
            return found
        return f"{found[0]}.dir", found[1]


def _hashed(path: Path) -> tuple[str, int] | None:
    try:
        state = path.stat()
        key = (str(path), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        if key not in _SEEN:
            _SEEN[key] = md5_file(path)
        return _SEEN[key], state.st_size
    except OSError:
        return None
