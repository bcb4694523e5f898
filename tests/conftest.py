"""What all tests share."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import dvc  # noqa: F401 (it logs to the stream that it finds when it is imported first: not one that a test captures and closes)
import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
# a shell starts background jobs with Ctrl-C ignored, and children inherit that; tests that send it
# need it to be received
signal.signal(signal.SIGINT, signal.default_int_handler)
SMALL = {
    "demo": {
        "yard_train": 16,
        "yard_val": 6,
        "yard_test": 8,
        "street_test": 10,
        "street_replay": 4,
    },
    "finetune": {"epochs": 1, "head_epochs": 0, "batch_size": 8, "lr": 0.0015, "validate_every": 1},
    "evaluate": {"bootstrap": 20},
    "retention": {"person": {"min": 0.01}},
    "learned": {},
    "report": {"pictures": 2},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share fixtures run in one process of `pytest -n`: those of a file, all that look
    at the run project, all that look at the audit's history, and all of flows.
    """
    for item in items:
        shares_project = item.path.parent == ROOT / "tests" and "project" in getattr(
            item, "fixturenames", ()
        )
        shares_history = "recorded" in getattr(item, "fixturenames", ())
        file = item.path.parent if item.path.parent.name == "flows" else item.path
        group = "project" if shares_project else "history" if shares_history else str(file)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's top level."""
    return ROOT


@pytest.fixture(scope="session")
def real() -> Path:
    """Real weights and real data, kept next to the repository; a test that wants them skips where
    they aren't.
    """
    folder = ROOT.parent / "shared" / "real"
    if not folder.is_dir():
        pytest.skip(
            f"no real weights and data: {folder.relative_to(ROOT.parent)} isn't next to the"
            " repository"
        )
    return folder


def run(folder: Path, *command: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would, with the tests' own Python first in PATH."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    environment.pop("PREFECT_API_URL", None)
    environment["PREFECT_HOME"] = str(folder / ".topwork" / "prefect")
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def done(folder: Path, *command: str, timeout: float = 900) -> str:
    """Run a command that must end well; its output."""
    ended = run(folder, *command, timeout=timeout)
    assert ended.returncode == 0, (
        f"{' '.join(command)}: {ended.stdout[-4000:]}{ended.stderr[-4000:]}"
    )
    return ended.stdout


def shrink(folder: Path) -> None:
    """Make a project's demo small enough for a test."""
    edit_params(folder, SMALL)


def edit_params(folder: Path, changes: dict[str, dict[str, object]]) -> None:
    """Change keys of params.yaml, its other keys and comments left as they are; nothing for a
    section empties it.
    """
    yaml = YAML()
    path = folder / "params.yaml"
    document = yaml.load(path.read_text(encoding="utf-8"))
    for section, values in changes.items():
        if not values:
            document[section] = {}
        for key, value in values.items():
            if isinstance(value, dict) and isinstance(document[section].get(key), dict):
                document[section][key].update(value)
            else:
                document[section][key] = value
    with path.open("w", encoding="utf-8") as stream:
        yaml.dump(document, stream)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's own project, small, run once by `dvc repro` and committed."""
    folder = tmp_path_factory.mktemp("project") / "topwork"
    names = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, names.decode().split("\0")):
        if (
            name.startswith((".dvc/", "out/", "data/dvc.lock", "dvc.lock"))
            or not (ROOT / name).is_file()
        ):
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    shrink(folder)
    done(folder, "git", "init", "--quiet", "--initial-branch", "main")
    done(folder, "git", "config", "user.email", "a@b.c")
    done(folder, "git", "config", "user.name", "a")
    done(folder, "dvc", "init", "--quiet")
    done(folder, "dvc", "repro")
    done(folder, "git", "add", "--all")
    done(folder, "git", "commit", "--quiet", "--message", "first run")
    return folder
