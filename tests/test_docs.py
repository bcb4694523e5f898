"""The documentation: it builds strictly, its Python runs, its YAML is valid, its commands are run
somewhere, and the messages that it explains exist.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from topwork.params.document import parse_params

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
GENERATED = ("params.md", "cli.md", "python.md")

ELSEWHERE = {
    "pip install 'topwork[pipeline]'": "tests/test_install.py installs the wheel",
    "topwork init yard --demo": "tests/test_readme.py, as README has it",
    "cd yard": "",
    "cd site": "",
    "topwork init site --data PATH": "tests/scaffold/test_init.py, on a terminal",
    "dvc repro": "tests/test_pipeline.py",
    "topwork doctor": "tests/doctor/test_doctor.py",
    "topwork summary": "tests/test_readme.py",
    "git add --all": "tests/test_install.py, long",
    'git commit --message "first run"': "tests/test_install.py, long",
    "dvc push": "tests/test_install.py, long, to a folder",
    "git push": "not run: it wants a server",
    "topwork fetch https://example.org/best.pth --accept": "tests/download, on a server of theirs",
    "python -m flows.pipeline": "tests/flows/test_pipeline_flow.py",
    "python -m flows.pipeline --revision HEAD --label try --set finetune.lr=0.0005": (
        "tests/flows/test_pipeline_flow.py, of another project"
    ),
    "make serve": "tests/flows/test_served.py, what it runs",
    "export PREFECT_API_URL=http://127.0.0.1:4200/api": "",
    "prefect deployment run pipeline/nightly --param label=now --param 'params={"
    '"finetune.lr": 0.0005}\'': "tests/flows/test_served.py, by Prefect's client",
    "python -m flows.notify https://hooks.example.org/T000/B000": (
        "tests/flows/test_served.py, to a server of theirs"
    ),
    "topwork champion promote nightly-20261127T023000-e525963": "tests/report/test_champion.py",
    "topwork champion": "tests/report/test_champion.py",
    'topwork champion demote --why "misses forklifts at night"': "tests/report/test_champion.py",
    "dvc artifacts get https://git.example.org/yard.git detector --stage champion": (
        "tests/report/test_champion.py, of a repository on disk"
    ),
    "python -m flows.sweep --set finetune.lr=0.0005,0.001 --set finetune.seed=1,2 --at-once 2": (
        "tests/flows/test_sweep.py, of another project"
    ),
    "git clone https://git.example.org/yard.git && cd yard": "not run: it wants a server",
    "export TOPWORK_ROOT=$PWD PYTHONPATH=$PWD PREFECT_API_URL=http://server:4200/api": "",
    "prefect worker start --pool topwork": "tests/flows/test_machines.py, long",
    "docker build --file Dockerfile --tag registry.example.org/yard:1 .": "not run: no Docker here",
    "prefect work-pool create topwork-docker --type docker": "tests/flows/test_machines.py, long",
    "prefect --no-prompt deploy --all --prefect-file docker.yaml": (
        "tests/flows/test_machines.py, long"
    ),
    "prefect worker start --pool topwork-docker": "not run: no Docker here",
    "prefect work-pool create topwork-kubernetes --type kubernetes --base-job-template"
    " kubernetes.json": "tests/flows/test_machines.py, long",
    "prefect --no-prompt deploy --all --prefect-file kubernetes.yaml": (
        "tests/flows/test_machines.py, long"
    ),
    "prefect worker start --pool topwork-kubernetes": "not run: no Kubernetes here",
    "dvc remote add --default storage s3://bucket/yard": "not run: it wants an account",
}
"""Commands that the pages show -> the test that runs them, or why none does."""


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    """Links and anchors included."""
    pytest.importorskip("zensical", reason="the documentation's tool isn't installed")
    shutil.copytree(DOCS, tmp_path / "docs")
    for name in ("mkdocs.yml", "CHANGELOG.md"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site/index.html").is_file()


def test_every_page_is_in_the_navigation() -> None:
    def files(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        inner = entry if isinstance(entry, list) else list(entry.values())
        return [name for item in inner for name in files(item)]

    config = YAML(typ="safe", pure=True).load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = files(config["nav"])
    assert sorted(named) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


def test_the_python_of_plain_pytorch_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(blocks(DOCS / "pytorch.md", "python")):
        exec(compile(block, f"docs/pytorch.md, block {number}", "exec"), names)
    assert (tmp_path / "grafted.safetensors").is_file()


def test_yaml_of_the_guide_is_valid() -> None:
    """Sections that it shows, in a project whose other sections are the least there is."""
    found = blocks(DOCS / "guide.md", "yaml")
    assert found
    for block in found:
        shown = YAML(typ="safe", pure=True).load(block)
        least = {
            "dataset": {"root": "data", "train": {"annotations": "train.json"}},
            "surgery": {"classes": {"person": "keep"}},
        }
        parse_params({**least, **shown})


def test_params_of_the_recommendations_are_valid() -> None:
    """The column of what to write."""
    text = (DOCS / "guide.md").read_text(encoding="utf-8")
    written = re.findall(r"`finetune: (\{.*?\})`", text)
    assert len(written) >= 6
    for section in written:
        parse_params(
            {
                "dataset": {
                    "root": "data",
                    "train": {"annotations": "train.json"},
                    "replay": {"annotations": "replay.json"},
                },
                "surgery": {"classes": {"person": "keep"}},
                "finetune": YAML(typ="safe", pure=True).load(section),
            }
        )


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in GENERATED], ids=str)
def test_every_command_is_run_somewhere(page: Path) -> None:
    for block in blocks(page, "console"):
        for line in block.splitlines():
            assert line.startswith("$ "), f"{page.name}: {line!r} is no command"
            assert line.removeprefix("$ ") in ELSEWHERE, f"{page.name}: {line}"


@cache
def messages() -> str:
    """Every text of the code."""
    return "\n".join(
        node.value
        for file in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def test_messages_that_are_explained_exist() -> None:
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    explained = re.findall(r"^### `(.*)`$", text, re.MULTILINE)
    assert len(explained) >= 20
    assert [message for message in explained if message not in messages()] == []


def test_experiments_have_their_figures_as_numbers() -> None:
    pages = list((DOCS / "experiments").glob("2*.md"))
    assert pages
    for page in pages:
        assert re.search(r"commit `[0-9a-f]{7,40}`", page.read_text(encoding="utf-8"))
        record = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
        assert record["commit"] in page.read_text(encoding="utf-8")
        tables = len(re.findall(r"^\|[\s:|-]+\|$", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert len(record["tables"]) == tables
