"""git as the audit reads it: objects by their names, replaced by nothing."""

import hashlib
import os
import subprocess
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from topwork.errors import AuditError
from topwork.files import CHUNK_BYTES

DVC_FOLDER = ".dvc"
_NO_COMMIT = ("does not have any commits yet", "bad revision 'HEAD'")


def project_root(folder: Path) -> Path:
    """The DVC project that a folder lies in.

    Raises:
        AuditError: it lies in none.
    """
    place = folder.resolve()
    for candidate in (place, *place.parents):
        if (candidate / DVC_FOLDER).is_dir():
            return candidate
    raise AuditError(
        f"{place}: no DVC project here or above (a folder with {DVC_FOLDER}/ in it). Go into the"
        " project, or make one with `topwork init FOLDER --data PATH`."
    )


def git(root: Path, *arguments: str) -> bytes:
    """Run git in `root`, with its objects as they are: `git replace` is left aside.

    Raises:
        AuditError: git isn't there, or fails; the message is git's own.
    """
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=root,
            env=_environment(),
            capture_output=True,
            check=False,
        )
    except OSError as error:
        raise AuditError(
            f"git can't be run ({error}); the audit reads the project's history through it."
        ) from error
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip()
        if any(sign in message for sign in _NO_COMMIT):
            raise AuditError(
                f"{root.resolve()}: this git repository has no commit yet, so that there is nothing"
                " to audit. Run the pipeline, then commit: `git add -A` and `git commit`."
            )
        raise AuditError(
            f"git {' '.join(arguments)}: {message or 'failed'}. Is {root.resolve()} inside a git"
            " repository?"
        )
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "GIT_NO_REPLACE_OBJECTS": "1", "LC_ALL": "C"}


def is_shallow(root: Path) -> bool:
    """Whether a part of the history isn't in this clone."""
    return git(root, "rev-parse", "--is-shallow-repository").strip() == b"true"


def replaced(root: Path) -> list[str]:
    """Objects that `git replace` shows as others; the audit reads the originals."""
    listing = git(root, "for-each-ref", "--format=%(refname:lstrip=2)", "refs/replace")
    return listing.decode().split()


class Blob:
    """A file's content in git: its MD5, its length, and its bytes where they were asked for."""

    def __init__(self, md5: str, size: int, content: bytes | None) -> None:
        self.md5 = md5
        self.size = size
        self.content = content


def read_blobs(root: Path, names: Iterable[str], *, keep: bool) -> Iterator[tuple[str, Blob]]:
    """Objects of git, one after the other from one process; a content is held against its name.

    Args:
        root: a folder inside of the repository.
        names: of the objects.
        keep: whether the bytes are wanted; else they are hashed as they stream by.

    Raises:
        AuditError: an object is missing, or its content isn't the one that its name says.
    """
    wanted = list(dict.fromkeys(names))
    if not wanted:
        return
    with subprocess.Popen(
        ["git", "cat-file", "--batch"],
        cwd=root,
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asking = threading.Thread(target=_ask, args=(process.stdin, wanted), daemon=True)
        asking.start()
        try:
            for name in wanted:
                yield name, _read_blob(process.stdout, name, keep)
        finally:
            process.stdout.close()
            process.kill()
            asking.join()


def _ask(stream: IO[bytes], names: list[str]) -> None:
    try:
        for name in names:
            stream.write(f"{name}\n".encode())
        stream.close()
    except OSError:
        pass  # the reader has stopped


def _read_blob(stream: IO[bytes], name: str, keep: bool) -> Blob:
    head = stream.readline().split()
    if len(head) != 3:
        raise AuditError(
            f"git: object {name}: {b' '.join(head[1:]).decode() or 'unreadable'}. The repository is"
            " damaged or incomplete: git fsck tells more."
        )
    size = int(head[2])
    md5 = hashlib.md5(usedforsecurity=False)
    own = hashlib.new("sha1" if len(name) == 40 else "sha256", b"blob %d\0" % size)
    parts, left = [], size
    while left:
        chunk = stream.read(min(left, CHUNK_BYTES))
        if not chunk:
            raise AuditError(
                f"git: object {name}: ends early. The repository is damaged: git fsck tells more."
            )
        left -= len(chunk)
        md5.update(chunk)
        own.update(chunk)
        if keep:
            parts.append(chunk)
    stream.read(1)  # the line's end
    if own.hexdigest() != name:
        raise AuditError(
            f"git: object {name}: its content has the hash {own.hexdigest()}. The repository was"
            " tampered with, or is damaged: git fsck tells more."
        )
    return Blob(md5.hexdigest(), size, b"".join(parts) if keep else None)
