"""The benchmark of devices runs, on whatever device there is."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_rows_are_printed_as_they_are_measured(tmp_path: Path) -> None:
    options = "--device cpu --images 2 --blocks 1 --batch-size 1 --workers 0 --limit 300"
    rows = ["large: ours, not*", "large: predict, float32", "large: predict, tf32"]
    command = [sys.executable, "benchmarks/gpu.py", *options.split(), "--out", str(tmp_path)]
    run = subprocess.run(
        [*command, "--rows", *rows], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["row"].partition(": ")[2] for row in found] == [
        "ours, not deterministic",
        "predict, float32",
        "predict, tf32",
    ]
    assert all(row["rate"] > 0 for row in found[:2])
    assert "tf32 is a mode of CUDA devices" in found[2]["failed"]
    assert run.stdout.count("\n| ssdlite320") == 3
