"""The code that decides a run's bits: a module and all of this package that it imports, however
deep.
"""

import ast
import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

PACKAGE = __name__.partition(".")[0]
DECIDING_LIBRARIES = ("torch", "torchvision", "pillow")


def code_hash(module: str) -> str:
    """SHA-256 over the source of a module's import closure and the versions of the libraries that
    it computes with.

    Compiled files play no part: only the text of `*.py`, so that a lost `__pycache__` changes
    nothing.
    """
    digest = hashlib.sha256()
    for name, path in sorted(closure(module).items()):
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    for library in DECIDING_LIBRARIES:
        digest.update(f"{library}\0{version(library)}\n".encode())
    return digest.hexdigest()


def closure(module: str) -> dict[str, Path]:
    """Module name -> file: the module, the packages that it lies in, and whatever of this package
    they import.

    Imports inside functions count; those for type checkers alone don't.
    """
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = _file(name)
        parent = name.rpartition(".")[0]
        waiting += [parent] if parent else []
        waiting += _imported(ast.parse(found[name].read_text(encoding="utf-8")))
    return found


def _file(module: str) -> Path:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


def _imported(tree: ast.AST) -> Iterator[str]:
    """Modules of this package that a piece of code imports."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _ours(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module is not None and _ours(node.module):
            yield node.module
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if _is_module(name):
                    yield name
        yield from _imported(node)


def _ours(name: str) -> bool:
    return name.partition(".")[0] == PACKAGE


def _is_module(name: str) -> bool:
    parent, _, last = name.rpartition(".")
    folder = _file(parent).parent if _file(parent).name == "__init__.py" else None
    return folder is not None and (
        (folder / f"{last}.py").is_file() or (folder / last / "__init__.py").is_file()
    )
