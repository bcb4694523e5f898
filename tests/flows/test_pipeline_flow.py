"""The Prefect flow on a real DVC project: order, freshness, failures, logs."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

DVC_YAML = """
stages:
  left:
    cmd: python step.py left
    deps: [step.py]
    outs: [left.txt]
  right:
    cmd: python step.py right
    deps: [step.py]
    outs: [right.txt]
  join:
    cmd: python step.py join
    deps: [left.txt, right.txt]
    outs: [join.txt]
"""
UPSTREAM_YAML = """
stages:
  raw:
    cmd: python ../step.py raw
    outs: [raw.txt]
  unused:
    cmd: python ../step.py unused
    outs: [unused.txt]
"""
STEP = """
import json, os, pathlib, sys, time
name = sys.argv[1]
print(f"{name} speaks")
if name == "left":
    print("epoch 1/4  loss 3")
    if os.environ["TOPWORK_EVENTS"] == "1":
        for done in (1, 3):
            event = {"kind": "progress", "done": done, "total": 4, "unit": "epoch"}
            print("@topwork", json.dumps(event))
if pathlib.Path("break").exists() and name == "right":
    message = "right.txt: found a break, expected none. Remove it."
    print("@topwork", json.dumps({"kind": "error", "message": message}))
    raise SystemExit(1)
time.sleep(2 if name in ("left", "right") else 0)
pathlib.Path(f"{name}.txt").write_text(name)
"""


@pytest.fixture(scope="module")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "dvc.yaml").write_text(
        DVC_YAML.replace(
            "deps: [step.py]\n    outs: [left", "deps: [data/raw.txt]\n    outs: [left"
        )
    )
    (tmp_path / "data" / "dvc.yaml").write_text(UPSTREAM_YAML)
    (tmp_path / "step.py").write_text(STEP)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


def run_flow(project: Path, root: Path, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "PREFECT_HOME": str(home),
        "PREFECT_LOGGING_LEVEL": "INFO",
    }
    environment.pop("PREFECT_API_URL", None)
    return subprocess.run(
        [sys.executable, "-m", "flows.pipeline"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def progress_of(home: Path) -> dict[str, float]:
    """Latest progress artifacts that the server holds: key -> percent."""
    with sqlite3.connect(home / "prefect.db") as database:
        rows = database.execute("select key, data from artifact where type = 'progress'").fetchall()
    return {key: float(data) for key, data in rows}


def test_stages_run_in_dvcs_order_then_are_fresh_then_fail_with_their_own_error(
    project: Path, root: Path, prefect_home: Path
) -> None:
    first = run_flow(project, root, prefect_home)
    assert first.returncode == 0, first.stderr
    outcomes = dict(line.split(": ") for line in first.stdout.splitlines())
    assert outcomes == {"data/dvc.yaml:raw": "ran", "left": "ran", "right": "ran", "join": "ran"}
    assert "left speaks" in first.stderr, "a stage's output reaches the log"
    assert not (project / "data" / "unused.txt").exists(), "only what the pipeline needs is run"
    assert progress_of(prefect_home) == {"progress-left": 75.0}

    again = run_flow(project, root, prefect_home)
    assert {line.split(": ")[1] for line in again.stdout.splitlines()} == {"fresh"}
    assert "Fresh" in again.stderr

    (project / "break").touch()
    (project / "step.py").write_text(STEP + "# changed\n")
    (project / "join.txt").unlink()
    broken = run_flow(project, root, prefect_home)
    assert broken.returncode == 1
    assert "\nerror: right: right.txt: found a break, expected none. Remove it.\n" in broken.stderr
    assert not (project / "join.txt").exists(), "nothing downstream of a failure runs"


def test_the_graph_is_dvcs_own(root: Path) -> None:
    from flows.pipeline import stage_graph

    graph = stage_graph(root)
    assert graph["surgery"] == ["check", "fetch"]
    assert "data/dvc.yaml:demo" in graph["validate"]
    assert set(graph["gate"]) == {"evaluate", "report"}
    order = list(graph)
    assert all(order.index(up) < order.index(stage) for stage, ups in graph.items() for up in ups)
