"""What the base install and each extra weigh, and how long imports take.

    python benchmarks/install.py

Sizes are those of the installed files of a requirement and all that it needs, from each
distribution's own record; import times are the least CPU time of two fresh processes, which other
jobs of the machine hardly change.
"""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMPORTS = (
    "import topwork",
    "import topwork.cli",
    "from topwork import graft",
    "from topwork import predict",
    "from topwork.stages import validate",
    "from topwork.stages import finetune",
)


def plain(requirement: str) -> str:
    """A requirement's name."""
    return re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def closure(names: Iterable[str]) -> set[str]:
    """Distributions that are needed, themselves included; those of extras left out."""
    todo, seen = list(names), set()
    while todo:
        name = plain(todo.pop())
        if name in seen or name == "topwork":
            continue
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        seen.add(name)
        todo += [need for need in needs if "extra ==" not in need]
    return seen


def megabytes(names: Iterable[str]) -> float:
    """Size of the installed files."""
    total = 0
    for name in names:
        for file in importlib.metadata.files(name) or []:
            path = Path(str(file.locate()))
            total += path.stat().st_size if path.is_file() else 0
    return total / 1e6


def seconds(statement: str) -> float:
    """Least CPU time of an import in a fresh process, without the interpreter's own."""
    code = (
        f"import time; begin = time.process_time()\n{statement}\nprint(time.process_time() - begin)"
    )
    taken = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(2)
    ]
    return min(taken)


def main() -> None:
    """Print both tables."""
    base = closure(PROJECT["dependencies"])
    torch = closure(["torch", "torchvision"])
    print(
        "| install | packages | MB | of that torch and torchvision with theirs |\n|---|---|---|---|"
    )
    print(f"| base | {len(base)} | {megabytes(base):,.0f} | {megabytes(torch):,.0f} |")
    for extra in ("pipeline", "flows", "export"):
        wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]]
        if "topwork[pipeline]" in wanted:
            wanted += PROJECT["optional-dependencies"]["pipeline"]
        needed = closure(wanted)
        print(f"| {extra} | {len(needed)} | {megabytes(needed):,.0f} | |")
    print("\n| import | CPU seconds |\n|---|---|")
    for statement in IMPORTS:
        print(f"| `{statement}` | {seconds(statement):.2f} |")


if __name__ == "__main__":
    main()
