"""A finished project, built once for all tests of the report; a test that changes it copies it."""

import shutil
from pathlib import Path

import pytest
import torch

from report.project import build_project
from topwork.report.run import Run, WorkingFiles


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's folder; read it, don't change it."""
    folder = tmp_path_factory.mktemp("finished")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    build_project(folder)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(finished, tmp_path / "project"))


@pytest.fixture
def finished_run(finished: Path) -> Run:
    """The run, read."""
    from topwork.params.document import load_params

    return Run(WorkingFiles(finished), load_params(finished / "params.yaml"))
