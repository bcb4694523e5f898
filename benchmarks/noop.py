"""What a `dvc repro` costs that has nothing to do: this project's pipeline against an empty one of
as many stages, in turns.

    python benchmarks/noop.py [--rounds 7]

Run `make run` first: the project's pipeline has to be fresh.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
DVC = [sys.executable, "-m", "dvc"]


def empty_project(folder: Path, stages: int) -> None:
    """A chain of stages without code, data or params."""
    lines = ["stages:"]
    for n in range(stages):
        dep = f", deps: [{n - 1}.txt]" if n else ""
        lines.append(f"  s{n}: {{cmd: touch {n}.txt, outs: [{n}.txt]{dep}}}")
    (folder / "dvc.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run([*DVC, "init", "--quiet"], cwd=folder, check=True)
    subprocess.run([*DVC, "config", "core.analytics", "false"], cwd=folder, check=True)
    subprocess.run([*DVC, "repro", "--quiet"], cwd=folder, check=True)


def seconds(folder: Path) -> float:
    """Wall time of one `dvc repro` that must find nothing to do."""
    start = time.perf_counter()
    done = subprocess.run([*DVC, "repro"], cwd=folder, capture_output=True, text=True, check=True)
    spent = time.perf_counter() - start
    if "Running stage" in done.stdout:
        raise SystemExit(f"{folder} wasn't fresh; run `make run` first.")
    return spent


def main() -> int:
    """Measure in turns and print medians, ratio and spread."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    rounds: int = parser.parse_args().rounds
    stages = sum(
        len(YAML(typ="safe").load(ROOT / name)["stages"]) for name in ("dvc.yaml", "data/dvc.yaml")
    )
    with tempfile.TemporaryDirectory() as name:
        empty = Path(name)
        empty_project(empty, stages)
        # the first round warms the disk cache
        pairs = [(seconds(ROOT), seconds(empty)) for _ in range(rounds + 1)][1:]
    ratios = sorted(ours / theirs for ours, theirs in pairs)
    print(f"{stages} stages, {rounds} rounds in turns")
    print(f"this pipeline   {statistics.median(o for o, _ in pairs):6.2f} s")
    print(f"empty pipeline  {statistics.median(t for _, t in pairs):6.2f} s")
    print(
        f"ratio           {statistics.median(ratios):6.2f}  (from {ratios[0]:.2f} to"
        f" {ratios[-1]:.2f}; aim: at most 1.3)"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
