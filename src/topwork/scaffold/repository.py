"""A project's git and DVC repositories."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from topwork.errors import TopworkError
from topwork.scaffold.template import add_files, template

Taking = Literal["copy", "link", "import"]
SOURCE_SET = Path("source-set")
"""Where a source set is copied to, below the data."""


def git(folder: Path, *arguments: str, check: bool = True) -> str:
    """Run git; its output.

    Raises:
        TopworkError: it fails, with its own words.
    """
    return _run(folder, ["git", *arguments], check)


def dvc(folder: Path, *arguments: str) -> str:
    """Run DVC by this interpreter; its output.

    Raises:
        TopworkError: it fails, with its own words.
    """
    return _run(folder, [sys.executable, "-m", "dvc", *arguments], True)


def _run(folder: Path, command: Sequence[str], check: bool) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode and check:
        shown = " ".join(["dvc" if command[0] == sys.executable else command[0], *command[-4:]])
        raise TopworkError(f"{folder}: `{shown}` failed: {done.stderr.strip() or done.stdout}")
    return done.stdout.strip()


def initialise(folder: Path) -> str:
    """Make the folder a DVC project, in the git repository around it where there is one; say what
    was done.
    """
    top = git(folder, "rev-parse", "--show-toplevel", check=False)
    if not top:
        git(folder, "init", "--quiet")
    # before DVC writes one of its own
    add_files(folder, {".dvcignore": (template() / ".dvcignore").read_text(encoding="utf-8")})
    inside = bool(top) and Path(top).resolve() != folder.resolve()
    if not (folder / ".dvc").is_dir():
        dvc(folder, "init", "--quiet", *(["--subdir"] if inside else []))
        quiet = "[core]\n    analytics = false\n    check_update = false\n"
        (folder / ".dvc" / "config").write_text(quiet, encoding="utf-8")
    if not top:
        return "git and DVC repository made"
    return f"DVC project in the git repository {top}" if inside else "in its git repository"


def take_data(root: Path, folder: Path, how: Taking, source_set: Path | None = None) -> Path:
    """Bring a data set into a project.

    Args:
        root: the folder that holds all of it.
        folder: of the project, a DVC project already.
        how: `copy` and track it by DVC; `import` it by DVC, which remembers where it is from
            (`dvc update`); or a symbolic `link`, which stays on this machine.
        source_set: a folder that is copied to SOURCE_SET below the data, where they are copied.

    Returns:
        Where it lies, relative to the project.

    Raises:
        TopworkError: another thing is in its place, or it can't be brought.
    """
    here, place = folder.resolve(), root.resolve()
    if place.is_relative_to(here):
        inside = place.relative_to(here)
        if not (folder / f"{inside}.dvc").exists():
            dvc(folder, "add", "--quiet", inside.as_posix())
        return inside
    target = Path("data") / (root.resolve().name or "mine")
    if (folder / target).exists() or (folder / f"{target}.dvc").exists():
        raise TopworkError(
            f"{folder / target}: is there already; nothing was written over it. Take it away, or"
            f" name it as the data: --data {folder / target}"
        )
    (folder / target.parent).mkdir(parents=True, exist_ok=True)
    if how == "link":
        (folder / target).symlink_to(place, target_is_directory=True)
    elif how == "import":
        dvc(folder, "import-url", "--quiet", str(place), target.as_posix())
    else:
        partial = folder / target.with_name(f".{target.name}-partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            shutil.copytree(place, partial)
            if source_set is not None:
                shutil.copytree(source_set, partial / SOURCE_SET)
            partial.replace(folder / target)
        except (OSError, shutil.Error) as error:
            raise TopworkError(f"{root}: can't be copied to {target}: {error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        dvc(folder, "add", "--quiet", target.as_posix())
    return target


def commit(folder: Path, names: Sequence[str]) -> str:
    """Commit files of the project and no others; what was done, or what is left to do."""
    known = [name for name in names if (folder / name).exists()]
    git(folder, "add", "--", *known)
    if not git(folder, "var", "GIT_COMMITTER_IDENT", check=False):
        return (
            "not committed, since git doesn't know who you are: git config --global user.name NAME;"
            " git config --global user.email MAIL; git commit"
        )
    if not git(folder, "status", "--porcelain", "--", *known):
        return "nothing to commit"
    git(folder, "commit", "--quiet", "--message", "A topwork project", "--", *known)
    return "committed"
