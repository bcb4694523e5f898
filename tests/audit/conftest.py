"""The history that the audit's tests look at."""

import os
from pathlib import Path

import pytest

from audit.history import build


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real history of five experiments (`audit.history`), built once; not to be changed."""
    given = os.environ.get("TOPWORK_TEST_HISTORY")  # one that was built before
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("recorded") / "project"
    build(folder)
    return folder
