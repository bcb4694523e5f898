"""The template: the repository's own top level, which the wheel carries along, with the deps on
topwork's code pinned by version.
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path

from topwork import __version__
from topwork.files import write_text

DEMO = (
    "params.yaml",
    "dvc.yaml",
    "data/dvc.yaml",
    "weights/README.md",
    "prefect.yaml",
    ".dvcignore",
    ".gitignore",
    "flows",
)
"""What `init --demo` writes: the repository's own top level."""
OWN = ("dvc.yaml", "weights/README.md", ".dvcignore")
"""What a project with data of its own has of it."""
FLOWS = ("prefect.yaml", "flows")
REQUIREMENTS = "requirements.txt"
CODE_DEP = re.compile(r"( *- )src/\S+\n")


def template() -> Path:
    """Where the template lies: in an installed package next to the code, in a checkout at its top
    level.
    """
    packaged = Path(__file__).parents[1] / "template"
    return packaged if packaged.is_dir() else Path(__file__).parents[3]


def template_files(parts: tuple[str, ...], flows: bool) -> dict[str, str]:
    """Path -> text of a project's files; deps on topwork's own code become one dep on
    requirements.txt, which pins the version: an upgrade is an edit there, and runs every stage
    again.
    """
    files = {}
    for part in parts:
        source = template() / part
        for file in sorted(source.rglob("*.py")) if source.is_dir() else [source]:
            name = file.relative_to(template()).as_posix()
            text = file.read_text(encoding="utf-8")
            files[name] = _own_code_pinned(text) if name.endswith("dvc.yaml") else text
    extras = "[pipeline,flows]" if flows else "[pipeline]"
    files[REQUIREMENTS] = f"topwork{extras}=={__version__}\n"
    return files


def _own_code_pinned(text: str) -> str:
    """Replace each run of deps on topwork's code by one dep on requirements.txt."""
    return re.sub(rf"(?:{CODE_DEP.pattern})+", rf"\g<1>{REQUIREMENTS}\n", text)


def add_files(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Write files that aren't there; those that are stay as they are, but that a .gitignore gets
    the lines that it lacks.

    Returns:
        What was left alone, by name.
    """
    alone = []
    for name, text in files.items():
        target = folder / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_text(target, text)
        elif target.name == ".gitignore":
            before = target.read_text(encoding="utf-8")
            missing = [line for line in text.splitlines() if line not in before.splitlines()]
            write_text(target, before.rstrip("\n") + "\n" + "\n".join(missing) + "\n")
        elif target.read_text(encoding="utf-8", errors="replace") != text:
            alone.append(name)
    return alone


def changes(folder: Path, files: Mapping[str, str]) -> str:
    """What an update would change, as a unified diff; empty where nothing would."""
    parts: list[str] = []
    for name, text in files.items():
        target = folder / name
        before = target.read_text(encoding="utf-8") if target.is_file() else ""
        parts += difflib.unified_diff(
            before.splitlines(keepends=True),
            text.splitlines(keepends=True),
            name if before else "/dev/null",
            name,
        )
    return "".join(parts)
