"""`topwork init FOLDER`: a new project, made from the files at topwork's own top level."""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from topwork import __version__
from topwork.errors import TopworkError

PARTS = (
    "params.yaml",
    "dvc.yaml",
    "data/dvc.yaml",
    "weights/README.md",
    "prefect.yaml",
    ".dvcignore",
    ".gitignore",
    "flows",
)
CODE_DEP = re.compile(r"( *- )src/\S+\n")
REQUIREMENTS = "requirements.txt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = "Example: topwork init yard && cd yard && dvc repro"
    parser.add_argument("folder", type=Path, help="new or empty folder")


def run(arguments: argparse.Namespace) -> int:
    """Write the project, make it a git and DVC repository, and print what to do next."""
    folder: Path = arguments.folder
    write_project(folder)
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise TopworkError(f"{folder}: `{' '.join(command)}` failed: {done.stderr.strip()}")
    for option in ("core.analytics", "core.check_update"):
        subprocess.run(
            [sys.executable, "-m", "dvc", "config", option, "false"], cwd=folder, check=True
        )
    print(
        f"{folder}: ready. Next:\n  cd {folder}\n  dvc repro        # the demo, in about eight"
        " minutes on two cores\n  topwork summary\nThen point params.yaml at your own data"
        " (dataset.root) and run `dvc repro` again."
    )
    return 0


def write_project(folder: Path) -> None:
    """Write the template into a new or empty folder, whole or not at all.

    A stage's deps on topwork's own code become one dep on requirements.txt, which pins the version:
    an upgrade is an edit there, and runs every stage again.

    Raises:
        TopworkError: the folder holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TopworkError(
            f"{folder}: exists and isn't empty; nothing was written. Name a new folder."
        )
    temporary = folder.with_name(f".{folder.name}-new")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for part in PARTS:
            target = temporary / part
            target.parent.mkdir(parents=True, exist_ok=True)
            source = template() / part
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            elif part.endswith("dvc.yaml"):
                target.write_text(
                    _own_code_pinned(source.read_text(encoding="utf-8")), encoding="utf-8"
                )
            else:
                shutil.copyfile(source, target)
        (temporary / REQUIREMENTS).write_text(f"topwork=={__version__}\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        temporary.replace(folder)
    except OSError as error:
        raise TopworkError(
            f"{folder}: can't be written ({error}); nothing was left there."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def template() -> Path:
    """Where the template lies: in an installed package next to the code, in a checkout at its top
    level.
    """
    packaged = Path(__file__).parents[1] / "template"
    return packaged if packaged.is_dir() else Path(__file__).parents[3]


def _own_code_pinned(text: str) -> str:
    """Replace each run of deps on topwork's code by one dep on requirements.txt."""
    return re.sub(rf"(?:{CODE_DEP.pattern})+", rf"\g<1>{REQUIREMENTS}\n", text)
