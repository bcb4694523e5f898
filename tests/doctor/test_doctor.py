"""`topwork doctor` on a small project that is fine, and with one fault planted at a time: each is
named with what mends it.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from conftest import ROOT, edit_params
from topwork.cli import main
from topwork.demo.worlds import YARD, draw_split
from topwork.doctor import machine
from topwork.doctor.run_time import count
from topwork.errors import TopworkError
from topwork.params.document import parse_params
from topwork.scaffold.template import DEMO, add_files, template_files

PARAMS = """\
dataset:
  root: data/mine
  train: {annotations: train.json, images: train/images}
  test: {annotations: test.json, images: test/images}
fetch: {}
surgery:
  classes: {person: keep, helmet: new, forklift: {like: [truck, car]}}
unlabelled: {}
finetune: {epochs: 2}
predict: {}
evaluate: {}
retention:
  person: {min: 0.9, on: test}
learned:
  helmet: {min: 0.1}
report: {}
runtime: {}
"""


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor") / "project"
    add_files(folder, template_files(DEMO, flows=True))
    (folder / "params.yaml").write_text(PARAMS)
    for split in ("train", "test"):
        draw_split(YARD, folder / "data/mine", split, 6, 7, processes=1)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=folder, check=True)
    return folder


@pytest.fixture
def project(healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(healthy, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv(
        "PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    )
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    # the interpreter that `python` starts has to find the package that is tested here
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    return folder


def faults(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """Check -> text, of the faults that a run of the command prints."""
    code = main(["doctor", *(arguments or ("--no-time",))])
    lines = capsys.readouterr().out.splitlines()
    found = {line[6:19].strip(): line[19:] for line in lines if line.startswith("FAULT")}
    assert code == (1 if found else 0)
    assert lines[-1].startswith(f"{len(found)} fault")
    return found


def test_a_project_that_is_fine(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path for path in project.rglob("*"))
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^      time         (about|under) ", out, re.MULTILINE), out
    levels = [line[:6].strip() for line in out.splitlines() if line[:6].strip() in ("ok", "note")]
    assert levels.count("ok") == 14
    assert "note  remote       none" in out
    assert "data/mine: images 6 train, 6 test" in out
    assert sorted(path for path in project.rglob("*")) == before, "it writes nothing"


def _section_gone(project: Path) -> None:
    text = (project / "params.yaml").read_text().replace("predict: {}\n", "")
    (project / "params.yaml").write_text(text)


def _remove_people_of_the_test_set(project: Path) -> None:
    path = project / "data/mine/test.json"
    content = json.loads(path.read_text())
    person = next(c["id"] for c in content["categories"] if c["name"] == "person")
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != person]
    path.write_text(json.dumps(content))


def _rename_helmets(project: Path) -> None:
    path = project / "data/mine/train.json"
    path.write_text(path.read_text().replace('"helmet"', '"hard_helmet"'))


def _params(**changes: dict[str, object]) -> Callable[[Path], None]:
    return lambda project: edit_params(project, changes)


def _write(name: str, text: str) -> Callable[[Path], None]:
    def plant(project: Path) -> None:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)

    return plant


def _lose_images(project: Path) -> None:
    for image in sorted((project / "data/mine/test/images").iterdir())[:2]:
        image.unlink()


def _tracked_data(project: Path) -> None:
    shutil.rmtree(project / "data/mine")
    (project / "data/mine.dvc").write_text("outs: []\n")


def _no_test_set(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(re.sub(r"  test: .*\n", "", text, count=1))


def _replay(split: str, images: int | None = None) -> Callable[[Path], None]:
    """A share is to be chosen on images to replay, which are those of another split."""

    def plant(project: Path) -> None:
        content = json.loads((project / f"data/mine/{split}.json").read_text())
        content["images"] = content["images"][:images]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        (project / "data/mine/replay.json").write_text(json.dumps(content))
        replay = {"annotations": "replay.json", "images": f"{split}/images"}
        edit_params(
            project,
            {"dataset": {"replay": replay}, "finetune": {"interpolation": "retention"}},
        )

    return plant


@pytest.mark.parametrize(
    ("plant", "check", "found", "mend"),
    [
        (lambda project: (project / "params.yaml").unlink(), "params", "no such file", "init"),
        (
            _params(finetune={"epochz": 3}),
            "params",
            "`finetune.epochz`: unknown key",
            "did you mean `epochs`",
        ),
        (_section_gone, "params", "no section predict", "Write `predict: {}`"),
        (
            _write("requirements.txt", "topwork[pipeline]==0.0.1\n"),
            "version",
            "asks for topwork 0.0.1",
            "pip install -r requirements.txt",
        ),
        (
            lambda project: shutil.rmtree(project / "data/mine"),
            "data",
            "data/mine: no such folder",
            "dvc add data/mine",
        ),
        (_tracked_data, "data", "DVC tracks it", "dvc pull data/mine.dvc"),
        (
            _params(dataset={"train": {"annotations": "absent.json"}}),
            "data",
            "data/mine/absent.json: no such file",
            "mend `annotations` in dataset of params.yaml",
        ),
        (_lose_images, "images", "test: 2 of 6 aren't below", "dataset.*.images in params.yaml"),
        (
            _params(fetch={"source": "weights/best.pth"}),
            "weights",
            "weights/best.pth: no such file",
            "Mend it in params.yaml",
        ),
        (
            _params(fetch={"builder": "weights/detector.py:build"}),
            "weights",
            "weights/detector.py can't be imported",
            "Mend it, or fetch.builder",
        ),
        (
            _params(surgery={"classes": {"persson": "keep"}}),
            "plan",
            "persson wants 'persson'",
            "near: person",
        ),
        (
            _rename_helmets,
            "classes",
            "helmet: `new`, and no category of train is called so",
            "write `hard_helmet`, or `dataset.aliases: {hard_helmet: helmet}`",
        ),
        (
            _params(retention={"person": {"min": 0.9, "on": "source"}}),
            "contracts",
            "dataset.source isn't given",
            "sets to measure on are test",
        ),
        (
            _params(learned={"person": {"min": 0.3}}),
            "contracts",
            "person: a kept class",
            "stands in `retention`",
        ),
        (_remove_people_of_the_test_set, "contracts", "no object of person", "Ask on another set"),
        (_no_test_set, "contracts", "no test set", "let dataset.split take one"),
        (_replay("test", 2), "contracts", "none has 10 objects there", "Name more images"),
        (
            _replay("train"),
            "contracts",
            "3 of the 3 images of dataset.replay that are held out are copies",
            "Name more images",
        ),
        (_replay("test", 1), "contracts", "1 image, expected 2 or more", "write `replay: 0`"),
        (
            _params(runtime={"device": "cuda:7"}),
            "device",
            "device 'cuda:7'",
            "runtime.device",
        ),
        (lambda project: shutil.rmtree(project / ".git"), "repository", "no git", "git init"),
        (lambda project: shutil.rmtree(project / ".dvc"), "repository", "no DVC", "dvc init"),
        (
            _write(".dvc/config", "[core]\nremote = gone\n['remote \"here\"']\nurl = /tmp/x\n"),
            "remote",
            "default remote is 'gone'",
            "dvc remote default here",
        ),
    ],
    ids=[
        "no params.yaml",
        "misspelt key",
        "section missing",
        "another version",
        "no data",
        "data not pulled",
        "no annotations",
        "images missing",
        "no weights",
        "no builder",
        "class that the weights lack",
        "class that the data lack",
        "contract on a set that isn't given",
        "learning contract on a kept class",
        "no object in the contract's set",
        "no test set",
        "too few objects to choose a share on",
        "what a share is chosen on is trained on",
        "one image to choose a share on",
        "device that isn't there",
        "no git",
        "no dvc",
        "remote that isn't there",
    ],
)
def test_a_planted_fault_is_named_with_its_mend(
    project: Path,
    capsys: pytest.CaptureFixture[str],
    plant: Callable[[Path], None],
    check: str,
    found: str,
    mend: str,
) -> None:
    plant(project)
    named = faults(capsys)
    assert list(named) == [check], "one fault, one line"
    assert found in named[check]
    assert mend in named[check]


def test_an_interpreter_without_topwork_is_named(
    project: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """As `.venv/bin/dvc repro` is called where the environment isn't active."""
    (tmp_path / "bin").mkdir()
    other = tmp_path / "bin/python"
    other.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{other.parent}{os.pathsep}{os.environ['PATH']}")
    named = faults(capsys)
    assert list(named) == ["interpreter"]
    assert f"`python` in PATH is {other}, which has no topwork" in named["interpreter"]
    assert "source .venv/bin/activate" in named["interpreter"]


def test_a_prefect_server_that_does_not_answer_is_named(
    project: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can answer there
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/api"
        (tmp_path / "prefect").mkdir()
        (tmp_path / "prefect/profiles.toml").write_text(
            f'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "{url}"\n'
        )
        named = faults(capsys)
    assert list(named) == ["prefect"]
    assert f"PREFECT_API_URL is {url}, and nothing answers there" in named["prefect"]
    assert "prefect config unset PREFECT_API_URL" in named["prefect"]


def test_an_extra_that_is_missing_is_named(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = machine.importlib.util.find_spec
    monkeypatch.setattr(
        machine.importlib.util,
        "find_spec",
        lambda name: None if name in ("dvclive", "hotcoco") else find(name),
    )
    assert faults(capsys) == {
        "packages": "dvclive, hotcoco aren't installed, and the stages need them: pip install"
        " 'topwork[pipeline]'"
    }


def test_doctor_needs_none_of_the_packages_that_it_names() -> None:
    """Else it would end where it should say which is missing."""
    code = "import sys; sys.modules['hotcoco'] = None; import topwork.doctor.project"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_disk_that_is_too_full_is_named() -> None:
    """14 copies of 2 GB and half a GB: 28.5 GB."""
    assert machine.room(2 * 10**9, 29 * 10**9) == "29.0 GB free, about 28.5 GB are needed"
    with pytest.raises(TopworkError, match=r"28\.0 GB are free.*about 28\.5 GB.*dvc gc"):
        machine.room(2 * 10**9, 28 * 10**9)


def test_all_faults_are_named_together(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_params(
        project, {"surgery": {"classes": {"persson": "keep"}}, "runtime": {"device": "cuda:7"}}
    )
    (project / "data/mine/test.json").unlink()
    assert list(faults(capsys)) == ["data", "plan", "device"]


def test_the_time_is_counted() -> None:
    """10 s an image of training, 1 s of prediction: 4 epochs of 6 images and as many replayed;
    2 validations and 5 to choose the interpolation, of 3 images; 3 detectors on 5 held-out images,
    one on 6 training images. A stage starts in 1.25 times its imports.
    """
    params = parse_params(
        {
            "dataset": {"root": "data", "train": {"annotations": "train.json"}},
            "surgery": {"classes": {"person": "keep"}},
            "finetune": {"epochs": 4, "validate_every": 2, "replay": 0.5, "distill": 0},
        }
    )
    images = {"train": 6, "val": 3, "test": 4, "source": 1, "replay": 50}
    found = count(params, images, forward=1.0, training=10.0, imports=0.5)
    assert (found.training, found.prediction) == (4 * 12 * 10 + 7 * 3, 3 * 5 + 6)
    stages = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())["stages"]
    assert found.starts == len(stages) * 1.25 * 0.5

    # by retention: once before and 5 times, on half of the images to replay; on all for a branch
    chosen = params.finetune.model_copy(update={"interpolation": "retention"})
    by_retention = params.model_copy(update={"finetune": chosen})
    found = count(by_retention, images, forward=1.0, training=10.0, imports=0.5)
    assert found.training == 4 * 12 * 10 + 2 * 3 + 6 * 25
