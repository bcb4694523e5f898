"""What the README shows is executed: its Python here, its commands in a small copy of the
repository.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# `make test` is what runs this; `make run` and `make flow` are run by test_pipeline.py on the same
# copy, and what `make serve` runs by tests/flows; an environment is active here
ELSEWHERE = {"make run", "make test", "make flow", "make serve", "source .venv/bin/activate"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_first_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert "person" in capsys.readouterr().out
    model, graft = names["model"], names["graft"]
    assert model.state_dict().keys() == graft.state_dict.keys()  # type: ignore[attr-defined]
    assert set(names["found"]) == {"boxes", "scores", "labels", "names"}  # type: ignore[call-overload]
    assert all(p.grad is not None for p in model.parameters())  # type: ignore[attr-defined]
    code = [line for line in example.splitlines() if line.strip()]
    assert len(code) <= 14


def test_the_params_of_the_example_are_valid() -> None:
    from ruamel.yaml import YAML

    from topwork.params.document import parse_params

    (example,) = blocks("yaml")
    parse_params(YAML(typ="safe", pure=True).load(example))


def test_every_command_is_run(project: Path) -> None:
    """In the order of the page; `cd` is followed."""
    folder = project
    ran = 0
    for block in blocks("console"):
        for line in block.splitlines():
            command = line.removeprefix("$ ")
            assert command != line, f"{line!r} is no command"
            if command.startswith("cd "):
                folder = folder / command.removeprefix("cd ")
                continue
            if command in ELSEWHERE:
                continue
            words = shlex.split(command)
            environment = {
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "PREFECT_HOME": str(project / ".topwork" / "prefect"),
            }
            environment.pop("PREFECT_API_URL", None)
            done = subprocess.run(
                words, cwd=folder, env=environment, capture_output=True, text=True, timeout=900
            )
            assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
            ran += 1
        folder = project
    assert ran >= 10
