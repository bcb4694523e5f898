"""The code of a builder of one's own: which files it is, and their hash."""

import ast
import hashlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from topwork.files import sha256_file

BUILDER_HASH = "builder_sha256"
"""Key of a weights file's provenance that holds `builder_hash`."""


def look_here() -> None:
    """Let `module:function` be found in the current folder first, as `python -m` does for stages:
    commands find a project's own builder by the same rule.
    """
    here = str(Path.cwd())
    if "" not in sys.path and here not in sys.path:
        sys.path.insert(0, here)


def builder_file(builder: str) -> Path | None:
    """The file that holds a builder's function: of `path/to/file.py:function` the path, of
    `module:function` the module's; None of torchvision's builders and where there is no such file.
    """
    place = builder.rpartition(":")[0]
    if place.endswith(".py"):
        return Path(place) if Path(place).is_file() else None
    if place:
        look_here()
    try:
        spec = find_spec(place) if place else None
    except (ImportError, ValueError):
        return None
    origin = Path(spec.origin) if spec is not None and spec.origin else None
    return origin if origin is not None and origin.is_file() else None


def builder_files(builder: str) -> list[Path]:
    """A builder's file and the Python files that it imports from its own folder or the current
    one, however deep, the builder's own first. Installed packages don't count; files that code
    finds in other ways (data, names put together while it runs) aren't seen.
    """
    first = builder_file(builder)
    if first is None or "site-packages" in first.resolve().parts:
        return []
    module = builder.rpartition(":")[0]
    depth = 0 if module.endswith(".py") else module.count(".")
    folder = first.parent.parent if first.name == "__init__.py" else first.parent
    roots = list(dict.fromkeys([folder.joinpath(*[".."] * depth).resolve(), Path.cwd()]))
    found = [first]
    for file in found:  # grows while it is read
        known = {path.resolve() for path in found}
        found += [path for path in _imported(file, roots) if path.resolve() not in known]
    return found


def builder_hash(builder: str) -> str | None:
    """SHA-256 of a builder's file; where it imports files next to it, of all of them (a line `hash
    name` each, sorted); None where the builder has none of one's own.
    """
    files = builder_files(builder)
    if len(files) <= 1:
        return sha256_file(files[0]) if files else None
    lines = sorted({f"{sha256_file(file)} {file.name}\n" for file in files})
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _imported(file: Path, roots: list[Path]) -> list[Path]:
    """Files below the roots that a file imports; none where it isn't Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return []
    found: dict[Path, None] = {}
    for start, names in _names(tree, file, roots):
        for root in start:
            for length in range(1, len(names) + 1):
                place = root.joinpath(*names[:length])
                for path in (place.with_suffix(".py"), place / "__init__.py"):
                    if path.is_file():
                        found[path] = None
    return list(found)


def _names(tree: ast.AST, file: Path, roots: list[Path]) -> Iterator[tuple[list[Path], list[str]]]:
    """Of each import: folders to look in, and the parts of the module's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((roots, alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = [file.resolve().parents[node.level - 1]] if node.level else roots
            parts = node.module.split(".") if node.module else []
            yield from ((start, [*parts, alias.name]) for alias in node.names)
