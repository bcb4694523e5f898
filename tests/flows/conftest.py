"""One `make serve` for all tests of flows."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows_tiny import Served, make_tiny, start_served


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_tiny(tmp_path / "tiny")


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """For tests that don't kill its parts."""
    served = start_served(tmp_path_factory.mktemp("served"))
    yield served
    served.stop()
