"""A project runs its own code, in the environment that it pins."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT, done, edit_params
from topwork import __version__
from topwork.environment import (
    check_environment,
    check_own_code,
    differences,
    environment_of,
    imported_distributions,
    requirements,
)
from topwork.errors import RevisionError
from topwork.project.runs import RUNS, runs

STAGE = "src/topwork/stages/demo.py"
EDIT = (
    '    Path("data/demo/edited.txt").write_text("by code that nobody committed")\n\n\ndef main()'
)
SMALL = {"demo": {"yard_train": 2, "yard_val": 1, "yard_test": 1, "street_test": 1}}


def drawn(folder: Path) -> str:
    """The lock's hash of what the stage drew."""
    return (folder / "data" / "dvc.lock").read_text().split("path: data/demo\n")[1].split()[3]


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with topwork in it and one stage that has run, all of it committed."""
    folder = tmp_path_factory.mktemp("own") / "project"
    (folder / "data").mkdir(parents=True)
    hidden = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src" / "topwork", folder / "src" / "topwork", ignore=hidden)
    for name in ("params.yaml", "data/dvc.yaml", ".gitignore", ".dvcignore"):
        shutil.copyfile(ROOT / name, folder / name)
    edit_params(folder, {"demo": {**SMALL["demo"], "street_replay": 1}})
    for command in (
        ("git", "init", "--quiet", "--initial-branch", "main"),
        ("git", "config", "user.email", "a@b.c"),
        ("git", "config", "user.name", "a"),
        ("dvc", "init", "--quiet"),
        ("dvc", "repro", "--quiet", "data/dvc.yaml"),
        ("git", "add", "--all"),
        ("git", "commit", "--quiet", "--message", "drawn"),
    ):
        done(folder, *command)
    return folder


@pytest.fixture
def edited(committed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The project with an edit that isn't committed; it is the topwork that Python imports, as an
    editable install would have it.
    """
    monkeypatch.setenv("PYTHONPATH", str(committed / "src"))
    yield committed
    done(committed, "git", "checkout", "--quiet", "--force", ".")
    done(committed, "dvc", "checkout", "--quiet", "--force")


def edit(project: Path) -> None:
    stage = project / STAGE
    before = stage.read_text()
    assert before.count("\n\ndef main()") == 1
    stage.write_text(before.replace("\n\ndef main()", EDIT))
    shutil.rmtree(project / ".dvc" / "cache" / "runs", ignore_errors=True)


def test_a_worktree_runs_its_own_code_and_the_run_cache_stays_clean(
    edited: Path, tmp_path: Path
) -> None:
    edit(edited)
    clean = drawn(edited)
    tree = tmp_path / "tree"
    done(edited, "git", "worktree", "add", "--quiet", "--detach", str(tree))
    done(tree, "dvc", "cache", "dir", "--local", str(edited / ".dvc" / "cache"))
    done(tree, "dvc", "repro", "--quiet", "--force", "data/dvc.yaml")
    assert drawn(tree) == clean
    assert not (tree / "data" / "demo" / "edited.txt").exists()
    assert (tree / "data" / "demo" / "yard" / "train.json").is_file()
    done(edited, "git", "worktree", "remove", "--force", str(tree))

    done(edited, "git", "checkout", "--quiet", "--force", ".")
    shutil.rmtree(edited / "data" / "demo")
    (edited / "data" / "dvc.lock").unlink()
    done(edited, "dvc", "repro", "--quiet", "data/dvc.yaml")
    assert drawn(edited) == clean, "what DVC's run cache gives back"


def test_an_experiment_in_a_copy_runs_the_copys_code(
    committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever topwork is installed meanwhile, one with a stage that can't be imported even."""
    installed = tmp_path / "src"
    shutil.copytree(committed / "src", installed)
    (installed / "topwork" / "stages" / "demo.py").write_text("an edit half done")
    monkeypatch.setenv("PYTHONPATH", str(installed))
    change = ("--set-param", "demo.seed=8", "data/dvc.yaml")
    done(committed, "dvc", "exp", "run", "--temp", "--name", "apart", *change)
    refs = done(committed, "git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    (ref,) = [ref for ref in refs if ref.endswith("/apart")]
    assert "seed: 8" in done(committed, "git", "show", f"{ref}:data/dvc.lock")
    assert runs(committed)[-1].outs["data/demo"] in done(
        committed, "git", "show", f"{ref}:data/dvc.lock"
    ), "its record is in the original"


def test_a_run_leaves_its_record_and_a_failed_one_too(edited: Path) -> None:
    first = runs(edited)[0]
    assert (first.stage, first.state, first.error, first.resumes) == ("demo", "done", None, 0)
    assert first.outs == {"data/demo": drawn(edited)}
    assert first.code.commit is None, "nothing was committed yet"
    assert first.environment.distributions["dvc"]
    assert first.seconds is not None
    (edited / "params.yaml").write_text("demo: {seeds: 1}\n")
    edit(edited)
    command = [sys.executable, "-m", "topwork.stages.demo"]
    assert subprocess.run(command, cwd=edited, capture_output=True).returncode == 1
    failed = runs(edited)[-1]
    assert failed.state == "failed"
    assert "`demo.seeds`: unknown key" in str(failed.error)
    assert failed.code.commit == done(edited, "git", "rev-parse", "HEAD").strip()
    assert set(failed.code.changed) == {"params.yaml", STAGE}
    assert "by code that nobody committed" in str(failed.code.patch)
    killed = failed.model_copy(update={"state": "running", "process": 2**22 + 1})
    killed.write(edited / RUNS / "20990101-demo-1.json")
    (edited / RUNS / "20990102-demo-2.json").write_text("{}")
    assert runs(edited)[-1].state == "killed"
    assert subprocess.run(command, cwd=edited, capture_output=True).returncode == 1
    assert max(run.resumes for run in runs(edited)) == 3


def test_a_record_that_cannot_be_written_stops_nothing(committed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(committed, folder, symlinks=True)
    shutil.rmtree(folder / ".topwork")
    (folder / ".topwork").write_text("no folder")
    ended = subprocess.run([sys.executable, "-m", "topwork.stages.demo"], cwd=folder)
    assert ended.returncode == 0


def test_a_stage_that_cannot_import_its_own_code_refuses(committed: Path, tmp_path: Path) -> None:
    """Python's isolated mode doesn't look at PYTHONPATH."""
    lock = (committed / "data" / "dvc.lock").read_bytes()
    start = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r});"
        " from topwork.stages import demo; raise SystemExit(demo.main())"
    )
    ended = subprocess.run(
        [sys.executable, "-I", "-c", start], cwd=committed, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: {committed / 'src' / 'topwork'}: is this project's own")
    assert str(ROOT / "src" / "topwork") in ended.stderr
    assert (committed / "data" / "dvc.lock").read_bytes() == lock


def test_the_environment_of_a_revision_has_its_source_and_this_interpreter_first(
    committed: Path, tmp_path: Path
) -> None:
    base = {"PYTHONPATH": os.pathsep.join(["/other", str(committed / "src")]), "PATH": "/bin"}
    found = environment_of(committed, base)
    assert found["PYTHONPATH"].split(os.pathsep) == [str(committed / "src"), "/other"]
    assert found["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/bin"]
    assert "PYTHONPATH" not in environment_of(tmp_path, {}), "topwork is no part of this project"


@pytest.mark.parametrize(
    ("pin", "refused"),
    [
        (f"topwork=={__version__}", False),
        ("topwork==9.9.9", True),
        ("topwork[flows]>=9", True),
        ("torch==1.0\n--index-url nowhere", False),
        ("# topwork==9.9.9", False),
    ],
)
def test_a_project_that_pins_another_topwork_is_refused(
    tmp_path: Path, pin: str, refused: bool
) -> None:
    (tmp_path / "requirements.txt").write_text(f"{pin}\n")
    if not refused:
        check_own_code(tmp_path)
        return
    with pytest.raises(RevisionError, match=r"requirements\.txt: pins topwork.*9.*pip install"):
        check_own_code(tmp_path)


def test_what_a_run_can_import_is_held_against_the_lock(tmp_path: Path) -> None:
    lock = (
        "numpy==0.0.1 \\\n    --hash=sha256:00\n"
        "ruff==0.0.1 \\\n    --hash=sha256:00\n"
        "torch==0.1 ; python_full_version < '3' \\\n    --hash=sha256:00\n"
    )
    (tmp_path / "requirements.lock").write_text(lock)
    (found,) = differences(tmp_path)
    assert (found.name, found.pinned) == ("numpy", "==0.0.1")
    with pytest.raises(RevisionError, match=r"numpy==0\.0\.1 pinned, \d[\w.]+ installed.*differs"):
        check_environment(tmp_path)
    (tmp_path / "requirements.lock").write_text("a b c\n")
    with pytest.raises(RevisionError, match=r"requirements\.lock: found 'a b c', expected"):
        differences(tmp_path)


def test_distributions_of_a_run_are_topworks_requirements_and_theirs() -> None:
    found = imported_distributions()
    assert {"topwork", "torch", "numpy", "dvc", "pyyaml", "msgspec", "typing-extensions"} <= found
    assert not {"ruff", "pytest", "mypy", "playwright"} & found
    path = ROOT / "requirements.lock"
    pinned = {requirement.name for requirement in requirements(path.read_text(), path)}
    assert {"torch", "ruff"} <= pinned
