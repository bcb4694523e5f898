"""Which files are a builder's code, and their hash."""

import hashlib
from pathlib import Path

import pytest

from topwork.weights.builder_files import builder_file, builder_files, builder_hash


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("builder", "files", "expected"),
    [
        ("mine.py:build", {"mine.py": "import torch, json\n"}, ["mine.py"]),
        (
            "w/mine.py:build",
            {
                "w/mine.py": "def build(n):\n    import helper\n",
                "w/helper.py": "from w.other import X\n",
                "w/other.py": "import mine\n",
                "w/unrelated.py": "",
            },
            ["w/mine.py", "w/helper.py", "w/other.py"],
        ),
        (
            "own_pkg.net:build",
            {
                "own_pkg/__init__.py": "",
                "own_pkg/net.py": "from . import heads\nfrom .trunk import Trunk\n",
                "own_pkg/heads.py": "from own_pkg.deep import a\n",
                "own_pkg/trunk.py": "",
                "own_pkg/deep/__init__.py": "",
                "own_pkg/deep/a.py": "",
            },
            [
                "own_pkg/net.py",
                "own_pkg/heads.py",
                "own_pkg/trunk.py",
                "own_pkg/__init__.py",
                "own_pkg/deep/__init__.py",
                "own_pkg/deep/a.py",
            ],
        ),
        ("broken.py:build", {"broken.py": "def (:\n"}, ["broken.py"]),
        ("ssdlite320_mobilenet_v3_large", {}, []),
        ("torchvision.models:resnet18", {}, []),
        ("gone.py:build", {}, []),
        ("gone.module:build", {}, []),
    ],
    ids=["alone", "helpers", "package", "not python", "name", "installed", "no file", "no module"],
)
def test_the_files_that_a_builder_is_made_of(
    here: Path, builder: str, files: dict[str, str], expected: list[str]
) -> None:
    write(here, files)
    found = builder_files(builder)
    assert {path.resolve() for path in found} == {here / name for name in expected}
    assert len(found) == len(expected)
    assert (builder_hash(builder) is None) == (not expected)
    if expected:
        assert found[0].resolve() == here / expected[0]
        assert builder_file(builder) == found[0]


def test_a_lone_files_hash_is_what_sha256sum_prints_and_a_helper_counts(here: Path) -> None:
    write(here, {"mine.py": "import helper\n"})
    alone = builder_hash("mine.py:build")
    assert alone == hashlib.sha256(b"import helper\n").hexdigest()
    write(here, {"helper.py": "A = 1\n"})
    first = builder_hash("mine.py:build")
    write(here, {"helper.py": "A = 2\n"})
    assert len({alone, first, builder_hash("mine.py:build")}) == 3
