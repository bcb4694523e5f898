"""What a revision's dvc.yaml asks for, expanded by DVC itself: templates, `foreach`, `matrix`."""

import posixpath
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from topwork.audit.repository import git
from topwork.audit.revision import Revision, normal
from topwork.errors import AuditError

READ_BY_DVC = (".yaml", ".yml", ".json", ".toml", ".py", ".dvc", ".dvcignore")


@dataclass(frozen=True)
class Definition:
    """A stage as dvc.yaml has it.

    Attributes:
        name: its address (`validate`, `data/dvc.yaml:demo`).
        cmd: its command or commands.
        deps, outs: paths relative to the project's root.
        in_git: those outs that git keeps, and not the cache.
        persistent: those outs that DVC leaves in place when the stage runs again.
        wdir: where the command runs.
        params: file -> tracked keys; an empty tuple stands for the whole file.
        frozen: whether DVC never runs it (`frozen: true`).
    """

    name: str
    cmd: Any
    deps: frozenset[str]
    outs: frozenset[str]
    in_git: frozenset[str]
    persistent: frozenset[str]
    wdir: str
    params: dict[str, tuple[str, ...]]
    frozen: bool


def definitions(revision: Revision) -> dict[str, Definition]:
    """Every stage of every dvc.yaml of the revision, by address.

    Raises:
        AuditError: DVC can't read or expand one of them.
    """
    if not revision.definition_files:
        return {}
    from dvc.exceptions import DvcException
    from dvc.fs import GitFileSystem
    from dvc.repo import Repo
    from dvc.scm import SCM

    # DVC's own reader waits for ever on an object that is damaged: look at each first
    revision.read_md5s(path for path in revision.tracked if path.endswith(READ_BY_DVC))
    prefix = git(revision.root, "rev-parse", "--show-prefix").decode().strip().rstrip("/")
    try:
        scm = SCM(str(revision.root))
        files = GitFileSystem(scm=scm, rev=revision.commit)
        with Repo(root_dir=f"/{prefix}", fs=files, scm=scm) as repo:
            found = [_definition(stage, f"/{prefix}") for stage in repo.index.stages if stage.cmd]
    except (DvcException, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise AuditError(
            f"dvc.yaml at {revision.rev}: DVC can't read or expand it: {reason}"
        ) from error
    return {definition.name: definition for definition in found}


def _definition(stage: Any, root: str) -> Definition:
    from dvc.dependency import ParamsDependency

    file = PurePosixPath(stage.path).relative_to(root)
    wdir = PurePosixPath(normal(PurePosixPath(), _relative(stage.wdir, root)))
    name = stage.name if str(file) == "dvc.yaml" else f"{file}:{stage.name}"
    params: dict[str, tuple[str, ...]] = {}
    deps = set()
    for dep in stage.deps:
        path = normal(wdir, str(dep.def_path))
        if isinstance(dep, ParamsDependency):
            params[path] = tuple(dep.params)
        else:
            deps.add(path)
    outs = {normal(wdir, str(out.def_path)): out for out in stage.outs}
    return Definition(
        name=name,
        cmd=stage.cmd,
        deps=frozenset(deps),
        outs=frozenset(outs),
        in_git=frozenset(path for path, out in outs.items() if not out.use_cache),
        persistent=frozenset(path for path, out in outs.items() if out.persist),
        wdir=str(wdir),
        params=params,
        frozen=bool(stage.frozen),
    )


def _relative(path: str, root: str) -> str:
    return posixpath.relpath(path, root)
