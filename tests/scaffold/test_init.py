"""`topwork init`: what it finds, asks, writes and leaves alone."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ruamel.yaml import YAML

import topwork
from conftest import ROOT, done
from topwork.cli import main
from topwork.commands import init
from topwork.demo.worlds import STREET, YARD, draw_split
from topwork.errors import TopworkError
from topwork.evaluation.contract import check_objects
from topwork.params.document import parse_params
from topwork.scaffold.detector import cached
from topwork.scaffold.texts import params_text
from topwork.validation.gate import validate
from validation.layouts import LAYOUTS

DEMO = ("--yes", "--source", "demo")


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sets as COCO, and enough persons in the test set for a contract."""
    folder = tmp_path_factory.mktemp("export") / "yard"
    for split, count in (("train", 6), ("val", 3), ("test", 12)):
        draw_split(YARD, folder, split, count, 7, processes=1)
    return folder


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user that git knows."""
    config = tmp_path / "gitconfig"
    config.write_text("[user]\n  name = a\n  email = a@b.c\n[init]\n  defaultBranch = main\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))


def params_of(folder: Path) -> dict[str, Any]:
    document = YAML(typ="safe", pure=True).load((folder / "params.yaml").read_text())
    assert isinstance(document, dict)
    return document


def test_a_project_of_own_data(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One call: what was found is printed, what is needed is written and committed, pictures
    aren't; once more, it has nothing to change.
    """
    folder, remote = tmp_path / "site", tmp_path / "remote"
    arguments = ["init", str(folder), "--data", str(export), *DEMO, "--epochs", "2"]
    assert main([*arguments, "--remote", str(remote), "--rules", "helmet = new"]) == 0
    out = capsys.readouterr().out
    assert "images: train 6, val 3, test 12; 3 classes: person, helmet, forklift" in out
    assert re.search(r"^  person +\d+ train, \d+ val, \d+ test$", out, re.MULTILINE)
    assert "git and DVC repository made; committed; contract: person {min: 0.9, on: test}" in out
    document = params_of(folder)
    parse_params(document)
    assert "demo" not in document
    assert document["dataset"]["root"] == "data/yard"
    assert list(document["surgery"]["classes"]) == ["person", "forklift", "helmet"]
    assert document["retention"] == {"person": {"min": 0.9, "on": "test"}}
    assert document["finetune"] == {"epochs": 2}
    graph = YAML(typ="safe", pure=True).load((folder / "dvc.yaml").read_text())
    tracked = {key.split(".")[0] for stage in graph["stages"].values() for key in stage["params"]}
    assert tracked <= set(document), "DVC asks for each"
    assert set(done(folder, "git", "ls-files").split()) == {
        ".dvc/.gitignore",
        ".dvc/config",
        ".dvcignore",
        ".gitignore",
        "Makefile",
        "README.md",
        "data/.gitignore",
        "data/yard.dvc",
        "dvc.yaml",
        "params.yaml",
        "requirements.txt",
        "weights/README.md",
    }
    assert done(folder, "git", "status", "--short") == ""
    assert (folder / "data/yard/test.json").read_bytes() == (export / "test.json").read_bytes()
    done(folder, "dvc", "push")
    done(tmp_path, "git", "clone", "--quiet", str(folder), "clone")
    done(tmp_path / "clone", "dvc", "pull", "data/yard.dvc")
    assert (tmp_path / "clone/data/yard/test.json").is_file(), "DVC sees the data in a clone"
    config = (folder / ".dvc/config").read_text()
    assert "analytics = false" in config
    assert "remote = storage" in config
    assert main(["init", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}: as a project that is made today.\n"
    assert main(["init", str(folder), "--data", str(export), *DEMO]) == 1
    assert "holds a topwork project already; nothing was written" in capsys.readouterr().err


def test_an_older_project_is_shown_what_a_newer_one_has(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing changes without a yes."""
    folder = tmp_path / "site"
    assert main(["init", str(folder), "--data", str(export), *DEMO]) == 0
    graph, params = folder / "dvc.yaml", folder / "params.yaml"
    today = graph.read_text(), params.read_text()
    graph.write_text(today[0].replace("      - learned\n", ""))
    params.write_text(re.sub(r"learned: .*\n", "", today[1]))
    (folder / "requirements.txt").write_text("topwork[pipeline]==0.0.1\n")
    older = graph.read_text(), params.read_text()
    capsys.readouterr()
    assert main(["init", str(folder)]) == 0
    out = capsys.readouterr().out
    for line in ("+      - learned", "+learned: {}", "-topwork[pipeline]==0.0.1"):
        assert f"\n{line}\n" in out
    assert out.endswith("nothing was changed; --yes writes it\n")
    assert (graph.read_text(), params.read_text()) == older
    assert main(["init", str(folder), "--yes"]) == 0
    assert graph.read_text() == today[0]
    assert params_of(folder)["learned"] == {}
    assert params.read_text().startswith(older[1])


def test_in_an_existing_repository_nothing_is_written_over(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A subfolder of somebody's repository, with a README, a .gitignore and work that is staged."""
    top = tmp_path / "monorepo"
    folder = top / "vision"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("mine\n")
    (folder / ".gitignore").write_text("*.log\n/.topwork/\n")
    done(top, "git", "init", "--quiet")
    done(top, "git", "add", ".")
    done(top, "git", "commit", "--quiet", "--message", "before")
    (top / "work.txt").write_text("half done\n")
    done(top, "git", "add", "work.txt")
    assert main(["init", str(folder), "--data", str(export), *DEMO, "--flows"]) == 0
    out = capsys.readouterr().out
    assert f"left alone: {folder / 'README.md'}, which is there already" in out
    assert f"DVC project in the git repository {top}" in out
    assert (folder / "README.md").read_text() == "mine\n"
    ignored = (folder / ".gitignore").read_text().splitlines()
    assert ignored[:2] == ["*.log", "/.topwork/"]
    assert ignored.count("/.topwork/") == 1
    assert "*.pth" in ignored
    assert (folder / ".dvc").is_dir()
    assert not (top / ".dvc").exists()
    assert (folder / "flows/pipeline.py").is_file()
    assert "flows" in (folder / "requirements.txt").read_text()
    assert done(top, "git", "status", "--short") == "A  work.txt\n", "it isn't committed along"


def test_a_project_of_another_kind_is_refused(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "params.yaml").write_text("train: {lr: 0.1}\n")
    assert main(["init", str(folder), "--data", str(export), *DEMO]) == 1
    assert "has a params.yaml of another pipeline; nothing was written" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "of what? With data of your own: topwork init"),
        (["--demo", "--data", "x"], "--demo and --data exclude each other"),
        (["--data", "EXPORT", "--yes"], "--yes needs --source, since the detector decides"),
        (["--data", "EXPORT"], "there is no terminal to ask on. Give --yes with --source"),
        (["--data", "gone", *DEMO], "gone: no such file or folder"),
        (["--data", "EXPORT", *DEMO, "--epochs", "0"], "--epochs 0, expected 1 or more"),
        (["--data", "EXPORT", *DEMO, "--keep", "persn"], "no class 'persn' (near: person"),
        (["--data", "EXPORT", *DEMO, "--rules", "cone = new"], "expected a class and a rule"),
        (["--data", "EXPORT", "--yes", "--source", "torchvision:nothing"], "torchvision:nothing"),
        (["--data", "EXPORT", "--yes", "--source", "gone.pth"], "gone.pth: no such file"),
        (["--data", "EXPORT", "--yes", "--source", "ftp:x"], "--source ftp:x: expected demo"),
    ],
    ids=[
        "neither",
        "both",
        "no source",
        "no terminal",
        "no data",
        "no epochs",
        "unknown class",
        "unknown rule",
        "unknown entry",
        "no weights",
        "unknown kind",
    ],
)
def test_what_it_refuses_is_reported_and_nothing_is_written(
    export: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    given = [str(export) if word == "EXPORT" else word for word in arguments]
    assert main(["init", str(tmp_path / "new"), *given]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_demo_wants_a_new_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["init", str(tmp_path), "--demo"]) == 1
    assert "exists and isn't empty; nothing was written" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "params.yaml").exists()


@pytest.mark.parametrize("row", LAYOUTS)
def test_every_layout_becomes_a_project_that_validates(
    row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to params.yaml, which `validate` takes where the data lie; a test set is always there."""
    draw, kind, splits = LAYOUTS[row]
    monkeypatch.chdir(tmp_path)
    draw(Path("data/export"))
    flags = {"yes": True, "source": "demo", "keep": [], "rules": "", "epochs": None}
    flags["source_set"] = None
    flags |= {"data": Path("data/export"), "images": None, "builder": None, "classes": None}
    layout, _, choices = init._choose("site", SimpleNamespace(**flags))  # type: ignore[arg-type]
    assert layout.format == kind
    assert {"helmet", "forklift"} >= set(choices.rules)
    Path("params.yaml").write_text(params_text(choices))
    params = parse_params(params_of(Path()))
    assert params.dataset.root == layout.root
    found = validate(params.dataset, workers=1)
    assert found.readable
    # two pictures can't be three sets; nothing else would stop the stage
    assert {row.rule for row in found.findings if row.severity == "error"} <= {"split-empty"}
    taken = params.dataset.split.model_fields_set if params.dataset.split else set()
    assert set(splits) | taken == {"train", "val", "test"}


def test_it_asks_twice_on_a_terminal(export: Path, tmp_path: Path) -> None:
    """The detector and the classes; a slip in an answer is reported, and asked again."""
    folder = tmp_path / "site"
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "topwork.cli", "init", str(folder), "--data", str(export)],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "TOPWORK_CACHE": str(tmp_path)},
    ) as process:
        answers = ("demo", "helmet = nwe", "helmet = like person; forklift = new", "")
        os.write(controller, "".join(f"{answer}\n" for answer in answers).encode())
        out, _ = process.communicate(timeout=120)
    os.close(controller)
    os.close(terminal)
    assert process.returncode == 0, out
    assert "torchvision:fasterrcnn_resnet50_fpn_v2/COCO_V1 (to be downloaded)" in out
    assert "demo (drawn streets only, for a try)" in out
    assert "'helmet = nwe': expected a class and a rule" in out
    classes = params_of(folder)["surgery"]["classes"]
    assert classes == {"person": "keep", "helmet": {"like": "person"}, "forklift": "new"}


def test_a_test_set_that_lacks_is_taken_out_of_train(export: Path, tmp_path: Path) -> None:
    """Found after 30 epochs, formerly. The data are linked: nothing is copied, DVC tracks none."""
    data = tmp_path / "two"
    shutil.copytree(export, data)
    shutil.rmtree(data / "test")
    (data / "test.json").unlink()
    folder = tmp_path / "site"
    assert main(["init", str(folder), "--data", str(data), *DEMO, "--take", "link"]) == 0
    assert params_of(folder)["dataset"]["split"] == {"test": 0.15}
    assert (folder / "data/two").is_symlink()
    assert not (folder / "data/two.dvc").exists()
    assert "data/two" not in done(folder, "git", "ls-files")
    assert "data/two" not in done(folder, "git", "status", "--short", "--untracked-files=all")
    done(folder, "dvc", "repro", "validate")
    assert ",test," in (folder / "out/validate/splits.csv").read_text()
    assert "Running" not in done(folder, "dvc", "repro", "validate")


def test_a_source_set_is_copied_along_and_asked_there(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures of the street; the class is called otherwise in the data, and their test set has too
    few of it.
    """
    for split, count in (("train", 1), ("val", 20)):
        draw_split(STREET, tmp_path / "street", split, count, 3, processes=1)
    data = tmp_path / "few"
    shutil.copytree(export, data)
    for split in ("train", "val", "test"):
        document = json.loads((data / f"{split}.json").read_text())
        for category in document["categories"]:
            category["name"] = category["name"].replace("person", "worker")
        if split == "test":
            document["annotations"] = document["annotations"][:15]
        (data / f"{split}.json").write_text(json.dumps(document))
    folder = tmp_path / "site"
    given = [str(data), "--source-set", str(tmp_path / "street"), "--keep", "worker=person"]
    assert main(["init", str(folder), "--data", *given, *DEMO, "--take", "link"]) == 1
    assert "name it as dataset.source in params.yaml" in capsys.readouterr().err
    assert not folder.exists()
    for place, message in (
        ("far/labels", "none of the images of train.json is near it. Put them there"),
        ("labels", "lies in its own data"),  # whose images are found in the folder above
    ):
        (tmp_path / place).mkdir(parents=True)
        shutil.copyfile(data / "train.json", tmp_path / place / "train.json")
        alone = ["--data", str(data), "--source-set", str(tmp_path / place)]
        assert main(["init", str(folder), *alone, *DEMO]) == 1
        assert message in capsys.readouterr().err
        assert not folder.exists()
    assert main(["init", str(folder), "--data", *given, *DEMO]) == 0
    out = capsys.readouterr().out
    assert "its val is the source set" in out
    assert "contract: worker {min: 0.9, on: source})" in out
    assert "dvc remote add --default storage URL; dvc push" in out
    raw = params_of(folder)
    assert raw["dataset"]["source"] == {
        "annotations": "source-set/val.json",
        "images": "source-set/val/images",
    }
    raw["dataset"]["root"] = str(folder / raw["dataset"]["root"])
    params = parse_params(raw)
    tables = validate(params.dataset).tables
    assert len(tables.split("source").images) == 20
    check_objects(params.retention, params.learned, params.surgery.plan(), tables)
    again = tmp_path / "again"
    taken = ["--data", str(folder / "data/few"), "--source-set", str(tmp_path / "street")]
    assert main(["init", str(again), *taken, *DEMO]) == 1
    assert "source-set: is there already" in capsys.readouterr().err


def test_weights_of_ones_own_go_along(export: Path, tmp_path: Path) -> None:
    """The file is DVC's, not git's; the data are imported."""
    own = tmp_path / "street.safetensors"
    topwork.write_weights(own, topwork.demo_weights())
    folder = tmp_path / "site"
    arguments = ["--yes", "--source", str(own), "--take", "import"]
    assert main(["init", str(folder), "--data", str(export), *arguments]) == 0
    assert params_of(folder)["fetch"] == {"source": "weights/street.safetensors"}
    files = done(folder, "git", "ls-files").split()
    assert "weights/street.safetensors.dvc" in files
    assert "weights/street.safetensors" not in files
    assert "data/yard.dvc" in files
    assert "deps:" in (folder / "data/yard.dvc").read_text(), "DVC knows where it is from"
    done(folder, "dvc", "repro", "fetch")


def test_cached_sources_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPWORK_CACHE", str(tmp_path))
    assert cached() == []
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources/a.json").write_text(json.dumps({"source": "torchvision:x/Y"}))
    (tmp_path / "sources/b.json").write_text("{")
    assert cached() == ["torchvision:x/Y"]


def test_data_that_lie_in_several_folders_are_refused(tmp_path: Path) -> None:
    layout = SimpleNamespace(
        root=tmp_path,
        params=lambda: {"root": "x", "train": {"annotations": "../a.json", "images": "i"}},
    )
    with pytest.raises(TopworkError, match=r"train.annotations: \.\./a\.json lies outside"):
        init._section(layout)  # type: ignore[arg-type]


def test_a_project_in_its_own_data_is_refused(
    export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be copied into itself."""
    before = sorted(export.iterdir())
    assert main(["init", str(export), "--data", str(export), *DEMO]) == 1
    assert "lies in its own data" in capsys.readouterr().err
    assert sorted(export.iterdir()) == before
