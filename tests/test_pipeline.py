"""The whole pipeline on a small demo: real DVC, real Prefect, real git."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import done, edit_params, run

OUTPUTS = ("dvc.lock", "data/dvc.lock")


@pytest.fixture
def clone(project: Path, tmp_path: Path) -> Path:
    """A copy of the run project that a test may spoil; it shares nothing but the past."""
    folder = tmp_path / "clone"
    shutil.copytree(project, folder, symlinks=True)
    return folder


def test_a_second_repro_runs_nothing(project: Path) -> None:
    before = {name: (project / name).read_bytes() for name in OUTPUTS}
    output = done(project, "dvc", "repro")
    assert "Running stage" not in output
    assert output.count("didn't change, skipping") == 12
    assert {name: (project / name).read_bytes() for name in OUTPUTS} == before


def test_the_flow_gives_the_same_lock_and_finds_everything_fresh(project: Path) -> None:
    before = {name: (project / name).read_bytes() for name in OUTPUTS}
    output = done(project, "python", "-m", "flows.pipeline")
    *stages, last_line = output.splitlines()
    assert {line.rsplit(": ", 1)[1] for line in stages} == {"fresh"}
    assert last_line == "nothing has changed"
    assert {name: (project / name).read_bytes() for name in OUTPUTS} == before


def test_metrics_and_plots_are_dvcs_own(project: Path) -> None:
    metrics = json.loads(done(project, "dvc", "metrics", "show", "--json"))
    files = metrics[""]["data"]
    assert next(iter(files)) == "out/metrics.json"
    assert {
        name: set(values)
        for name, values in files["out/metrics.json"]["data"].items()
        if name != "map"
    } == {
        "retention": {"person"},
        "ap": {"helmet", "forklift"},
    }
    assert files["out/finetune/curves/metrics.json"]["data"]["train"]["loss"] > 0
    done(project, "dvc", "plots", "show", "--out", ".topwork/plots")
    page = (project / ".topwork" / "plots" / "index.html").read_text(encoding="utf-8")
    for title in (
        "train/loss",
        "lr/head",
        "val/map",
        "precision and recall",
        "confusion",
        "calibration",
    ):
        assert title in page


def test_dvc_shows_the_training_while_it_runs(clone: Path) -> None:
    """Loss, learning rates and validation AP, as an editor asks; no rate of the machine."""
    edit_params(clone, {"finetune": {"epochs": 40}})
    with subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "finetune"],
        cwd=clone,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert any(line.startswith("epoch 2/40") for line in process.stdout)
            found = json.loads(done(clone, "dvc", "metrics", "show", "--json"))[""]["data"]
            shown = found["out/finetune/curves/metrics.json"]["data"]
            plots = run(clone, "dvc", "plots", "show", "--json")
            assert process.poll() is None, "it is still training"
        finally:
            process.terminate()
    assert set(shown) == {"train", "lr", "val", "step"}
    assert set(shown["val"]) == {"map", "ap"}
    for name in ("train/loss", "lr/head", "val/map"):
        assert f"out/finetune/curves/plots/metrics/{name}.tsv" in plots.stdout


def test_the_model_is_an_artifact(project: Path, tmp_path: Path) -> None:
    done(project, "git", "tag", "--annotate", "detector@v1.0.0", "--message", "the first")
    command = (sys.executable, "-m", "dvc", "artifacts", "get", str(project), "detector")
    subprocess.run(command, cwd=tmp_path, check=True)
    ours = project / "out" / "finetune" / "weights.safetensors"
    assert (tmp_path / "weights.safetensors").read_bytes() == ours.read_bytes()
    done(project, "git", "tag", "--delete", "detector@v1.0.0")


def test_a_breached_contract_fails_the_gate_after_everything_is_written(clone: Path) -> None:
    edit_params(clone, {"retention": {"person": {"min": 5.0}}})
    broken = run(clone, "dvc", "repro")
    assert broken.returncode != 0
    assert "error: " in broken.stderr
    assert "person" in broken.stderr
    assert "5" in broken.stderr
    for written in ("out/metrics.json", "out/report/report.html", "out/evaluate/verdict.json"):
        assert (clone / written).stat().st_size > 0
    assert not (clone / "out/gate/verdict.json").exists()
    flow = run(clone, "python", "-m", "flows.pipeline")
    assert flow.returncode == 1
    assert "error: gate: " in flow.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"surgery": {"classes": {"persson": "keep"}}},
            ["persson", "near: person", "surgery.classes"],
        ),
        ({"fetch": {"sha256": "0" * 64}}, ["0000000000", "SHA-256"]),
        ({"fetch": {"source": "nowhere.pth"}}, ["nowhere.pth"]),
        ({"finetune": {"epochz": 3}}, ["finetune.epochz", "did you mean `epochs`"]),
        (
            {"dataset": {"train": {"annotations": "yard/absent.json"}}},
            ["data/demo/yard/absent.json"],
        ),
        (
            {"dataset": {"train": {"annotations": "yard/train/images"}}},
            ["data/demo/yard/train/images"],
        ),
    ],
    ids=[
        "unknown class",
        "wrong hash",
        "missing weights",
        "misspelt key",
        "missing annotations",
        "a folder for a file",
    ],
)
def test_bad_input_is_one_paragraph_and_leaves_what_was_there(
    clone: Path, changes: dict[str, dict[str, object]], words: list[str]
) -> None:
    lock = (clone / "dvc.lock").read_bytes()
    edit_params(clone, changes)
    broken = run(clone, "dvc", "repro")
    assert broken.returncode != 0
    (message,) = [line for line in broken.stderr.splitlines() if line.startswith("error: ")]
    assert all(word in message for word in words), message
    assert "Traceback" not in broken.stderr + broken.stdout
    assert (clone / "dvc.lock").read_bytes() == lock


def test_an_experiment_is_listed_and_every_record_holds(project: Path) -> None:
    done(
        project,
        "dvc",
        "exp",
        "run",
        "--quiet",
        "--name",
        "cooler",
        "--set-param",
        "evaluate.bootstrap=10",
    )
    done(project, "git", "checkout", "--quiet", "--force", ".")
    done(project, "dvc", "checkout", "--quiet")
    table = json.loads(done(project, "topwork", "audit", "list", "--format", "json"))
    assert {row["params.evaluate.bootstrap"] for row in table} >= {20, 10}
    for revision in ("HEAD", "cooler"):
        checks = json.loads(
            done(project, "topwork", "audit", "verify", revision, "--format", "json")
        )
        assert {check["status"] for check in checks} == {"holds"}, [
            c for c in checks if c["status"] != "holds"
        ]
