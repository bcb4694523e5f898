"""What a checkpoint is resumed by: code, inputs and params that decide the bits; nothing else."""

import compileall
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from training.tiny import make_project

ROOT = Path(__file__).parents[2]
CODE = (
    "import json, sys; from topwork.params.document import parse_params;"
    " from topwork.stages import finetune; finetune.run(parse_params(json.loads(sys.argv[1])))"
)


def start(folder: Path, source: Path, raw: dict) -> "subprocess.Popen[str]":
    """The stage in a process of its own, with the code below `source`."""
    path = os.pathsep.join([str(source), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", CODE, json.dumps(raw)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A folder with a project, killed after a checkpoint, and a copy of the code; the params."""
    folder = tmp_path_factory.mktemp("killed")
    params = make_project(folder / "project", epochs=60)
    raw = params.model_dump(mode="json", exclude_defaults=True)
    raw["dataset"] = {"root": "data", "train": {"annotations": "train.json"}}
    shutil.copytree(ROOT / "src", folder / "src")
    assert compileall.compile_dir(folder / "src", quiet=1)
    process = start(folder / "project", folder / "src", raw)
    end = time.monotonic() + 120
    # a checkpoint that is still being written begins with a dot
    while not list((folder / "project").glob(".topwork/scratch/*/[0-9]*.checkpoint")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.communicate()
    return folder, raw


def edit(name: str) -> Callable[[Path, dict], None]:
    def change(folder: Path, raw: dict) -> None:
        file = folder / "src" / "topwork" / name
        file.write_bytes(file.read_bytes() + b"# another word\n")

    return change


def forget_compiled(folder: Path, raw: dict) -> None:
    for cache in (folder / "src").rglob("__pycache__"):
        shutil.rmtree(cache)


def touch_images(folder: Path, raw: dict) -> None:
    for image in (folder / "project" / "data").rglob("*.png"):
        os.utime(image, ns=(1, 1))


def swap_images(folder: Path, raw: dict) -> None:
    """The same names, sizes and times for all that a look at the folder can tell; other content."""
    one, other = (folder / "project" / "data" / "train" / f"{number}.png" for number in (0, 1))
    content, stamp = one.read_bytes(), one.stat()
    one.write_bytes(other.read_bytes()[: len(content)].ljust(len(content), b"\0"))
    os.utime(one, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def more_workers(folder: Path, raw: dict) -> None:
    raw["runtime"] = {**raw["runtime"], "workers": 1, "image_cache_mib": 1}


def other_rate(folder: Path, raw: dict) -> None:
    raw["finetune"] = {**raw["finetune"], "lr": 0.011}


@pytest.mark.parametrize(
    ("change", "resumed"),
    [
        (forget_compiled, True),
        (edit("report/sections.py"), True),
        (touch_images, True),
        (more_workers, True),
        (edit("detectors/builders.py"), False),
        (edit("dataset/images.py"), False),
        (edit("surgery/branch.py"), False),
        (swap_images, False),
        (other_rate, False),
    ],
    ids=[
        "no compiled files",
        "report",
        "times",
        "workers",
        "builders",
        "decoder",
        "branches",
        "image",
        "param",
    ],
)
def test_a_checkpoint_is_resumed_by_what_decides_the_bits(
    killed: tuple[Path, dict], tmp_path: Path, change: Callable[[Path, dict], None], resumed: bool
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(killed[0], folder)
    raw = dict(killed[1])
    change(folder, raw)
    process = start(folder / "project", folder / "src", raw)
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if line.startswith(("epoch ", "resumed")):
            break  # it is under way: from the checkpoint or from the start
    process.kill()
    process.communicate()
    assert lines, "the stage printed nothing"
    assert lines[-1].startswith("resumed" if resumed else "epoch 1/"), lines


def test_nothing_is_kept_of_an_image_that_was_another_one_for_a_while(tmp_path: Path) -> None:
    """Swapped while training reads it and put back afterwards: the run fails, and the next one ends
    in the bits of a run that never saw the other image.
    """
    params = make_project(
        tmp_path / "project", epochs=40, runtime={"workers": 0, "image_cache_mib": 0}
    )
    raw = params.model_dump(mode="json", exclude_defaults=True)
    raw["dataset"] = {"root": "data", "train": {"annotations": "train.json"}}
    shutil.copytree(tmp_path / "project", tmp_path / "undisturbed")
    image = tmp_path / "project" / "data" / "train" / "3.png"
    content = image.read_bytes()
    process = start(tmp_path / "project", ROOT / "src", raw)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            break  # the first epoch's checkpoint is there
    Image.new("RGB", Image.open(image).size, (90, 0, 0)).save(image)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "images: changed while the stage was reading them" in output
    image.write_bytes(content)
    weights = "out/finetune/weights.safetensors"
    assert not (tmp_path / "project" / weights).exists()
    for folder in ("project", "undisturbed"):
        output, _ = start(tmp_path / folder, ROOT / "src", raw).communicate(timeout=300)
        assert ("resumed" in output) == (folder == "project"), output
    assert (tmp_path / "project" / weights).read_bytes() == (
        tmp_path / "undisturbed" / weights
    ).read_bytes()
