"""A real history, small: topwork in its own project, a tiny detector, a dozen drawn images, one
epoch; four commits, one of them with a breached contract, and a DVC experiment.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from conftest import ROOT, done, edit_params
from topwork.environment import environment_of
from topwork.weights.format import Weights, write_weights
from training import tiny

CLASSES = ("person", "box")
SPLITS = {"train": 6, "val": 2, "test": 4}
PARAMS = """\
dataset:
  root: data/mine
  train: {annotations: train.json, images: images}
  val: {annotations: val.json, images: images}
  test: {annotations: test.json, images: images}
fetch:
  source: weights/tiny.safetensors
  builder: weights/tiny.py:build
surgery:
  classes: {person: keep, box: new}
  dropped: absorb
unlabelled: {min_score: 0.3}
finetune: {epochs: 1, head_epochs: 0, batch_size: 2, lr: 0.01, threads: 1, augmentation: ssdlite}
predict: {batch_size: 2}
evaluate: {bootstrap: 10}
retention: {}
learned: {}
report: {pictures: 1}
runtime: {device: cpu, workers: 0}
"""
STAGES = (
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
)
TRAINED_ANEW = ("check", *STAGES[STAGES.index("finetune") :])
RUN = """
import subprocess, sys
from importlib import import_module

codes, well = [], []
for name in sys.argv[1:]:
    if name == "report":  # it shows what the lock has of those before
        subprocess.run(["dvc", "commit", "--quiet", "--force", *well], check=True)
        well.clear()
    codes.append(import_module(f"topwork.stages.{name}").main())
    well += [name] if codes[-1] == 0 else []
subprocess.run(["dvc", "commit", "--quiet", "--force", *well], check=True)
print(*codes)
"""


def draw(folder: Path) -> None:
    """Images with a dark and a yellow rectangle each, and their annotations."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for split, count in SPLITS.items():
        images, annotations = [], []
        for number in range(count):
            noise = random.integers(0, 60, (tiny.SIDE, tiny.SIDE, 3), dtype=np.uint8)
            picture = Image.fromarray(noise)
            pen = ImageDraw.Draw(picture)
            for category, fill in ((1, (0, 0, 0)), (2, (200, 200, 40))):
                x, y = (int(value) for value in random.integers(2, 30, 2))
                w, h = (int(value) for value in random.integers(16, 30, 2))
                pen.rectangle([x, y, x + w, y + h], fill=fill)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number + 1,
                        "category_id": category,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                    }
                )
            name = f"{split}_{number}.png"
            picture.save(folder / "images" / name)
            size = {"width": tiny.SIDE, "height": tiny.SIDE}
            images.append({"id": number + 1, "file_name": name, **size})
        categories = [{"id": key, "name": name} for key, name in enumerate(CLASSES, start=1)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(document))


def write_project(folder: Path) -> None:
    """The project before its first run."""
    for name in ("dvc.yaml", ".gitignore", ".dvcignore", "requirements.lock"):
        shutil.copyfile(ROOT / name, folder / name)
    hidden = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.pyc")
    shutil.copytree(ROOT / "src" / "topwork", folder / "src" / "topwork", ignore=hidden)
    (folder / "params.yaml").write_text(PARAMS)
    (folder / "weights").mkdir()
    shutil.copyfile(ROOT / "tests" / "training" / "tiny.py", folder / "weights" / "tiny.py")
    plain = tiny.pretrained()
    weights = Weights(plain.state_dict, plain.columns, "weights/tiny.py:build")
    write_weights(folder / "weights" / "tiny.safetensors", weights)
    draw(folder / "data" / "mine")


def run_stages(folder: Path, *stages: str) -> list[int]:
    """What `dvc repro` does, in one process instead of one a stage: run the stages with the
    project's own code, then let DVC record those that ended well; their exit codes.
    """
    ended = subprocess.run(
        [sys.executable, "-c", RUN, *stages],
        cwd=folder,
        env=environment_of(folder),
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(code) for code in ended.stdout.splitlines()[-1].split()]


def commit(folder: Path, message: str) -> None:
    done(folder, "git", "add", "--all")
    done(folder, "git", "commit", "--quiet", "--message", message)


def build(folder: Path) -> None:
    """Write the project and run its history."""
    folder.mkdir(parents=True)
    write_project(folder)
    done(folder, "git", "init", "--quiet", "--initial-branch", "main")
    done(folder, "git", "config", "user.email", "a@b.c")
    done(folder, "git", "config", "user.name", "a")
    done(folder, "dvc", "init", "--quiet")
    done(folder, "dvc", "add", "--quiet", "data/mine")
    assert not any(run_stages(folder, *STAGES))
    commit(folder, "first run")
    edit_params(folder, {"finetune": {"lr": 0.02}})
    assert not any(run_stages(folder, *TRAINED_ANEW))
    commit(folder, "a higher rate")
    edit_params(folder, {"retention": {"person": {"min": 99.0, "on": "test"}}})
    assert run_stages(folder, "check", "evaluate", "report", "gate") == [0, 0, 0, 1]
    commit(folder, "breached")
    edit_params(folder, {"retention": {"person": {"min": 0.05}}, "evaluate": {"bootstrap": 12}})
    assert not any(run_stages(folder, "check", "evaluate", "report", "gate"))
    commit(folder, "mended")
    edit_params(folder, {"finetune": {"seed": 1}})
    assert not any(run_stages(folder, *TRAINED_ANEW))
    done(folder, "dvc", "exp", "save", "--quiet", "--name", "bold")
    done(folder, "git", "checkout", "--quiet", "--force", ".")
    done(folder, "dvc", "checkout", "--quiet", "--force")
