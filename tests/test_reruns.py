"""What runs again: after an edit of each room's code, of each param, in the workspace and in DVC's
copies of it.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from conftest import done, edit_params, run

EVERYTHING = {
    "demo",
    "validate",
    "fetch",
    "check",
    "surgery",
    "baseline",
    "unlabelled",
    "finetune",
    "predict",
    "evaluate",
    "report",
    "gate",
}
TRAINED_ANEW = {"check", "finetune", "predict", "evaluate", "report", "gate"}
RERUNS: dict[str, set[str]] = {
    "errors.py": set(),
    "environment.py": set(),
    "extras.py": set(),
    "events.py": set(),
    "files.py": EVERYTHING,
    "classes.py": EVERYTHING - {"demo", "gate"},
    "category_sets/coco-91.txt": {"validate", "fetch", "surgery"},
    "params/section.py": EVERYTHING,
    "params/demo.py": {"demo", "report"},
    "params/report.py": {"report"},
    "params/document.py": {"report"},
    "params/finetune.py": {"check", "finetune", "report"},
    "params/learned.py": {"check", "evaluate", "report", "gate"},
    "project/record.py": EVERYTHING,
    "project/report.py": {"report", "gate"},
    "dataset/tables.py": EVERYTHING - {"demo", "fetch", "surgery", "gate"},
    "dataset/images.py": {"validate", "baseline", "finetune", "predict", "report"},
    "validation/rules.py": {"validate"},
    "validation/read_yolo.py": {"validate"},
    "weights/format.py": {"fetch", "check", "surgery", "baseline", "finetune", "predict"},
    "weights/branches.py": {"fetch", "check", "surgery", "baseline", "finetune", "predict"},
    "weights/load_raw.py": {"fetch"},
    "download/transport.py": {"fetch"},
    "download/cache.py": {"fetch"},
    "detectors/builders.py": {"fetch", "surgery", "baseline", "finetune", "predict"},
    "detectors/branches.py": {"fetch", "surgery", "baseline", "finetune", "predict"},
    "surgery/graft.py": {"surgery", "finetune"},
    "surgery/branch.py": {"finetune"},
    "surgery/keeping.py": {"finetune"},
    "surgery/cost.py": set(),
    "surgery/verification.py": set(),
    "surgery/inspection.py": set(),
    "metrics/coco.py": {"unlabelled", "finetune", "evaluate"},
    "metrics/bootstrap.py": {"evaluate"},
    "inference/prediction.py": {"baseline", "finetune", "predict"},
    "inference/latency.py": set(),
    "training/held_out.py": {"check", "finetune"},
    "training/loop.py": {"finetune"},
    "evaluation/console.py": {"evaluate"},
    "evaluation/exactness.py": {"evaluate"},
    "evaluation/plan_fit.py": {"check", "evaluate"},
    "evaluation/retention.py": {"evaluate"},
    "evaluation/unlabelled.py": {"unlabelled", "evaluate"},
    "export/onnx.py": set(),
    "report/sections.py": {"report"},
    "compare/comparison.py": set(),
    "audit/verification.py": set(),
    "doctor/project.py": set(),
    "scaffold/rules.py": set(),
    "demo/yard.py": {"demo"},
    "commands/summary.py": set(),
    "stages/predict.py": {"predict"},
    "cli.py": set(),
}
"""File below src/topwork -> stages that an edit of it makes stale."""


@pytest.fixture
def clone(project: Path, tmp_path: Path) -> Path:
    """A copy of the run project that a test may spoil."""
    folder = tmp_path / "clone"
    shutil.copytree(project, folder, symlinks=True)
    return folder


def changed(folder: Path) -> set[str]:
    """Stages that DVC finds stale."""
    with Repo(str(folder)) as repo:
        return {name.rpartition(":")[2] for name in repo.status()}


def ran(output: str) -> list[str]:
    """Stages that a command of DVC's ran."""
    return [
        name.rpartition(":")[2]
        for name in re.findall(r"^Running stage '(.*)':$", output, re.MULTILINE)
    ]


def lock_of(folder: Path, revision: str) -> dict[str, str]:
    """Path of each out -> hash, as a revision's lock records them."""
    text = subprocess.run(
        ["git", "show", f"{revision}:dvc.lock"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    stages = YAML(typ="safe", pure=True).load(text)["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def forget_runs(folder: Path) -> None:
    """Take DVC's run cache away, which would give results back instead of computing them."""
    shutil.rmtree(folder / ".dvc" / "cache" / "runs", ignore_errors=True)


def experiment(folder: Path, name: str) -> str:
    """The commit of a DVC experiment."""
    refs = done(
        folder, "git", "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps"
    ).splitlines()
    (commit,) = [line.split()[0] for line in refs if line.endswith(f"/{name}")]
    return commit


def test_the_table_names_every_room(root: Path) -> None:
    rooms = {
        path.name
        for path in (root / "src" / "topwork").iterdir()
        if path.is_dir() and path.name != "__pycache__"
    }
    assert rooms == {file.split("/")[0] for file in RERUNS if "/" in file}


def test_an_edit_makes_stale_what_it_can_change(clone: Path) -> None:
    assert changed(clone) == set()
    found = {}
    for name in RERUNS:
        file = clone / "src" / "topwork" / name
        before = file.read_bytes()
        file.write_bytes(before + b"# a word mended\n")
        found[name] = changed(clone)
        file.write_bytes(before)
    assert found == RERUNS


@pytest.mark.parametrize(
    ("changes", "stale"),
    [
        (
            {
                "runtime": {
                    "device": "cpu",
                    "workers": 0,
                    "image_cache_mib": 7,
                    "checkpoint_steps": 3,
                }
            },
            set(),
        ),
        ({"evaluate": {"bootstrap": 7}}, {"evaluate", "report"}),
        ({"finetune": {"lr": 0.0007}}, {"check", "finetune", "report"}),
        ({"unlabelled": {"min_score": 0.5}}, {"unlabelled", "report"}),
        ({"report": {"pictures": 1}}, {"report"}),
        ({"retention": {"person": {"min": 0.02}}}, {"check", "evaluate", "report", "gate"}),
        ({"learned": {"helmet": {"min": 0.02}}}, {"check", "evaluate", "report", "gate"}),
    ],
    ids=["runtime", "evaluate", "finetune", "unlabelled", "report", "retention", "learned"],
)
def test_a_param_makes_stale_what_reads_it(
    clone: Path, changes: dict[str, dict[str, object]], stale: set[str]
) -> None:
    edit_params(clone, changes)
    assert changed(clone) == stale


def test_an_edit_of_what_an_own_builder_imports_runs_what_it_can_change(clone: Path) -> None:
    """Also where the weights' file is one that topwork itself wrote."""
    (clone / "weights" / "detector.py").write_text(
        "from torchvision.models import get_model_builder\n"
        "from weights.settings import THRESHOLD\n"
        "def build(num_classes, **kwargs):\n"
        "    make = get_model_builder('ssdlite320_mobilenet_v3_large')\n"
        "    plain = dict(weights=None, weights_backbone=None)\n"
        "    return make(num_classes=num_classes, score_thresh=THRESHOLD, **plain)\n"
    )
    (clone / "weights" / "settings.py").write_text("THRESHOLD = 0.3\n")
    assert changed(clone) == {"fetch"}
    shutil.copyfile(
        clone / "out/fetch/pretrained.safetensors", clone / "weights/street.safetensors"
    )
    edit_params(
        clone,
        {
            "fetch": {
                "source": "weights/street.safetensors",
                "builder": "weights/detector.py:build",
            }
        },
    )
    done(clone, "dvc", "repro", "baseline")
    before = (clone / "out/baseline/training.parquet").read_bytes()
    (clone / "weights" / "settings.py").write_text("THRESHOLD = 0.4\n")
    assert ran(done(clone, "dvc", "repro", "baseline")) == ["fetch", "check", "surgery", "baseline"]
    assert (clone / "out/baseline/training.parquet").read_bytes() != before


def test_more_resamples_run_no_model(clone: Path) -> None:
    output = done(clone, "dvc", "exp", "run", "--set-param", "evaluate.bootstrap=25")
    assert ran(output) == ["evaluate", "report", "gate"]


def test_a_learning_rate_runs_training_and_what_follows_and_ends_alike_everywhere(
    clone: Path,
) -> None:
    """In the workspace, in a temporary copy, and from the queue: the same hashes."""
    common = ("--set-param", "finetune.lr=0.0007")
    output = done(clone, "dvc", "exp", "run", "--name", "plain", *common)
    assert set(ran(output)) == TRAINED_ANEW
    done(clone, "git", "checkout", "--quiet", "--force", ".")
    done(clone, "dvc", "checkout", "--quiet")
    assert changed(clone) == set()
    forget_runs(clone)
    output = done(clone, "dvc", "exp", "run", "--temp", "--name", "temporary", *common)
    assert set(ran(output)) == TRAINED_ANEW
    forget_runs(clone)
    done(clone, "dvc", "exp", "run", "--queue", "--name", "queued", *common)
    done(clone, "dvc", "exp", "run", "--run-all")
    locks = {
        name: lock_of(clone, experiment(clone, name)) for name in ("plain", "temporary", "queued")
    }
    assert locks["plain"] != lock_of(clone, "HEAD")
    assert locks["plain"] == locks["temporary"] == locks["queued"]


def test_an_experiment_in_a_copy_learns_a_source_and_keeps_it(clone: Path) -> None:
    """A weights file that isn't committed is named before anything runs; a committed one is
    learned, and the experiment has its hash.
    """
    own = clone / "weights" / "street.safetensors"
    shutil.copyfile(clone / "out" / "fetch" / "pretrained.safetensors", own)
    command = (
        "dvc",
        "exp",
        "run",
        "--temp",
        "--name",
        "own",
        "--set-param",
        "fetch.source=weights/street.safetensors",
    )
    broken = run(clone, *command)
    assert broken.returncode != 0
    assert (
        "fetch.source: weights/street.safetensors: is in the project but not in this experiment's"
        " copy of it" in broken.stderr
    )
    done(clone, "git", "add", "weights")
    done(clone, "git", "commit", "--quiet", "--message", "own weights")
    done(clone, *command)
    lock = done(clone, "git", "show", f"{experiment(clone, 'own')}:weights.lock")
    assert '"weights/street.safetensors": ' in lock


def test_sections_that_are_missing_are_named_before_anything_runs(clone: Path) -> None:
    """And empty ones stand for the defaults, which DVC takes as well."""
    params = clone / "params.yaml"
    document = YAML(typ="safe", pure=True).load(params.read_text(encoding="utf-8"))
    for name in ("predict", "report", "fetch", "unlabelled"):
        del document[name]
    document["dataset"]["fail_on"] = "never"
    with params.open("w", encoding="utf-8") as stream:
        YAML().dump(document, stream)
    failed = run(clone, "dvc", "repro")
    assert failed.returncode != 0
    assert (
        "error: params.yaml: no section fetch, predict, report, unlabelled, which DVC needs for its"
        " stages. Write `fetch: {}`, `predict: {}`, `report: {}`, `unlabelled: {}` for the defaults"
    ) in failed.stdout + failed.stderr
    with params.open("a", encoding="utf-8") as stream:
        stream.writelines(
            f"{name}: {{}}\n" for name in ("predict", "report", "fetch", "unlabelled")
        )
    assert set(ran(done(clone, "dvc", "repro", "fetch", "validate"))) == {"validate", "fetch"}
    assert "baseline" in changed(clone)
