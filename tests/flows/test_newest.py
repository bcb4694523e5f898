"""The flows with the newest versions that pyproject.toml admits, not those of the lock."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from conftest import ROOT

MOVING = ("prefect", "fastapi", "sqlalchemy", "dvc")
"""What moves under the flows; torch and its like are the environment's."""


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_flows_run_with_the_newest_versions_allowed(tmp_path: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    declared = extras["pipeline"] + extras["flows"]
    wanted = [line for line in declared if re.split(r"[\[<>=]", line)[0] in MOVING]
    assert len(wanted) == len(MOVING)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--upgrade", *wanted],
        capture_output=True,
        text=True,
    )
    if installed.returncode:
        pytest.skip(f"no package index, or no such set: {installed.stderr.strip()[-300:]}")
    versions = subprocess.run(
        [python, "-c", "import dvc, prefect; print(prefect.__version__, dvc.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    chosen = "order or own_code or breached or killed_run or cancelled"
    files = ["tests/flows/test_pipeline_flow.py", "tests/flows/test_served.py"]
    ran = subprocess.run(
        [
            *(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen),
            *("--basetemp", tmp_path / "inner", *files),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
            # an editable install is found by a file of the other environment, which isn't read here
            "PYTHONPATH": str(ROOT / "src"),
        },
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, f"{versions}{ran.stdout[-4000:]}"
    assert " passed" in ran.stdout
