"""What a project's runs are computed with: its own code, and the distributions that it pins.

A project that holds topwork's source (`src/topwork`) runs that source, whichever topwork is
installed: a git worktree of an older revision runs the older code, and so does a copy of the
project that DVC makes for an experiment. A project that pins a version in requirements.txt runs
that version. Nothing of it can change what a stage writes: it can only stop one.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from topwork.errors import RevisionError

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

SOURCE = Path("src")
REQUIREMENTS_LOCK = Path("requirements.lock")
REQUIREMENTS = Path("requirements.txt")


def own_source(root: Path) -> Path | None:
    """The folder that a project's own topwork is imported from, None where it has none in it."""
    source = (root / SOURCE).resolve()
    return source if (source / "topwork" / "__init__.py").is_file() else None


def imported_from() -> Path:
    """The folder that the running topwork was imported from."""
    return Path(__file__).resolve().parents[1]


def environment_of(root: Path, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment variables for a process that runs the project in `root`: its own source first in
    PYTHONPATH, this interpreter's commands first in PATH.

    Args:
        root: the project: a working tree, a git worktree, a copy.
        base: what to add to; this process's environment by default.
    """
    environment = dict(os.environ if base is None else base)
    source = own_source(root)
    if source is not None:
        environment["PYTHONPATH"] = _first(str(source), environment.get("PYTHONPATH", ""))
    environment["PATH"] = _first(str(Path(sys.executable).parent), environment.get("PATH", ""))
    return environment


def _first(entry: str, path: str) -> str:
    others = [other for other in path.split(os.pathsep) if other and other != entry]
    return os.pathsep.join([entry, *others])


def run_own_code(root: Path = Path()) -> None:
    """Start this process again with the project's own source first, where another topwork was
    imported; the process keeps its number, its arguments and its output.
    """
    source = own_source(root)
    if source is None or imported_from() == source:
        return
    if os.environ.get("PYTHONPATH", "").split(os.pathsep)[0] != str(source):
        interpreter = sys.executable
        os.execve(interpreter, [interpreter, *sys.orig_argv[1:]], environment_of(root))


def check_own_code(root: Path = Path()) -> None:
    """Refuse to work on a project with another topwork than its own.

    Raises:
        RevisionError: the project holds topwork's source and another one was imported, or it pins
            a version that isn't the running one.
    """
    source = own_source(root)
    if source is not None:
        if imported_from() != source:
            raise RevisionError(
                f"{source / 'topwork'}: is this project's own topwork, and the one that was"
                f" imported is {imported_from() / 'topwork'}. Put {source} first in PYTHONPATH,"
                " and start Python without -I and -E."
            )
        return
    from topwork import __version__

    pinned = pinned_version(root)
    if pinned is not None and not pinned[1].contains(__version__, prereleases=True):
        raise RevisionError(
            f"{pinned[0]}: pins topwork{pinned[1]}, and topwork {__version__} is what runs. Install"
            f" what is pinned (python -m pip install --requirement {pinned[0]}), or write"
            f" topwork=={__version__} there, which makes every stage run again."
        )


def pinned_version(root: Path) -> "tuple[Path, SpecifierSet] | None":
    """The file that pins topwork's version for the project, and the versions that it admits."""
    path = root / REQUIREMENTS
    if not path.is_file():
        return None
    for requirement in requirements(path.read_text(encoding="utf-8"), path):
        if _normal(requirement.name) == "topwork" and requirement.specifier:
            return path, requirement.specifier
    return None


@dataclass(frozen=True)
class Difference:
    """A distribution that a project pins, and this environment has otherwise.

    Attributes:
        name: as PEP 503 normalizes it.
        pinned: versions that the project admits, such as `==2.14.1`.
        installed: the version that is installed, None where it isn't.
    """

    name: str
    pinned: str
    installed: str | None

    def __str__(self) -> str:
        return f"{self.name}{self.pinned} pinned, {self.installed or 'none'} installed"


def differences(root: Path) -> list[Difference]:
    """Hold this environment against requirements.lock (or requirements.txt) of the project in
    `root`.

    Raises:
        RevisionError: the file can't be read as requirements.
    """
    path = environment_file(root)
    return [] if path is None else differences_from(path.read_text(encoding="utf-8"), path)


def differences_from(text: str, path: Path) -> list[Difference]:
    """Hold this environment against the text of a requirements file; `path` is for messages.

    Only what a run can import counts: the requirements of topwork, theirs, and so on. A formatter
    or a documentation tool is none of them.

    Raises:
        RevisionError: a line is no requirement.
    """
    from importlib.metadata import PackageNotFoundError, version

    imported = imported_distributions()
    found = []
    for requirement in requirements(text, path):
        name = _normal(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate()
        if name not in imported or not applies or not requirement.specifier:
            continue
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = None
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            found.append(Difference(name, str(requirement.specifier), installed))
    return sorted(found, key=lambda difference: difference.name)


def check_environment(root: Path) -> None:
    """Refuse an environment that isn't the one that the project in `root` pins.

    Raises:
        RevisionError: a distribution is missing or has another version; all are named.
    """
    found = differences(root)
    if found:
        raise RevisionError(
            f"{environment_file(root)}: this environment isn't the one that is pinned there:"
            f" {'; '.join(map(str, found))}. Install what is pinned, into an environment of its"
            " own, or go on with `--environment differs`: results may then differ."
        )


def environment_file(root: Path) -> Path | None:
    """The file in which a project pins its distributions, None where it pins none."""
    paths = (root / REQUIREMENTS_LOCK, root / REQUIREMENTS)
    return next((path for path in paths if path.is_file()), None)


@cache
def imported_distributions() -> frozenset[str]:
    """Normalized names of topwork, of what a stage of it requires, of what that requires..."""
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    found: set[str] = set()
    todo: list[tuple[str, frozenset[str]]] = [("topwork", frozenset({"pipeline"}))]
    seen = set()
    while todo:
        name, extras = entry = todo.pop()
        if entry in seen:
            continue
        seen.add(entry)
        found.add(name)
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            environments = [{"extra": extra} for extra in ("", *extras)]
            marker = requirement.marker
            if marker is None or any(marker.evaluate(values) for values in environments):
                todo.append((_normal(requirement.name), frozenset(requirement.extras)))
    return frozenset(found)


def requirements(text: str, path: Path) -> "Iterator[Requirement]":
    """The requirements of a pip requirements file; options and hashes are left aside.

    Raises:
        RevisionError: a line is no requirement.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    for line in text.replace("\\\n", " ").splitlines():
        words = line.split(" #")[0].split(" --")[0].strip()
        if words.startswith(("#", "-")) or not words:
            continue
        try:
            yield Requirement(words)
        except InvalidRequirement as error:
            raise RevisionError(
                f"{path}: found {words!r}, expected a requirement such as `torch==2.14.1`."
            ) from error


def _normal(name: str) -> str:
    from packaging.utils import canonicalize_name

    return str(canonicalize_name(name))
