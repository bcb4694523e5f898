"""What the base install and each extra weigh, and how long imports take.

    python benchmarks/install.py

in an environment that has all of them, such as one of the wheel. Sizes are those of the installed
files of a requirement and all that it needs, from each distribution's own record; import times are
the least CPU time of two fresh processes, which other jobs of the machine hardly change.
"""

import importlib.metadata
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

IMPORTS = (
    "import topwork",
    "import topwork.cli",
    "from topwork import graft",
    "from topwork import predict",
    "from topwork.stages import validate",
    "from topwork.stages import finetune",
)


def closure(requirements: Iterable[str]) -> set[str]:
    """Distributions that are needed, themselves included, with the extras that are asked for
    (torch's CUDA libraries are extras of one of them).
    """
    todo = [Requirement(text) for text in requirements]
    seen: set[tuple[str, str]] = set()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for extra in {"", *wanted.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            todo += [
                need
                for need in map(Requirement, needs)
                if need.marker is None or need.marker.evaluate({"extra": extra})
            ]
    return {name for name, _ in seen}


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
    torch = closure(["torch", "torchvision"])
    print(
        "| install | packages | MB | of that torch and torchvision with theirs |\n|---|---|---|---|"
    )
    for extra in ("", "pipeline", "flows", "export"):
        needed = closure([f"topwork[{extra}]" if extra else "topwork"])
        print(
            f"| {extra or 'base'} | {len(needed)} | {megabytes(needed):,.0f} |"
            f" {megabytes(torch):,.0f} |"
        )
    print("\n| import | CPU seconds |\n|---|---|")
    for statement in IMPORTS:
        print(f"| `{statement}` | {seconds(statement):.2f} |")


if __name__ == "__main__":
    main()
