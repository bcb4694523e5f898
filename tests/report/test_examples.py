"""The examples in the docstrings of the report run."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import topwork.report

MODULES = sorted(
    path.stem
    for path in Path(topwork.report.__file__).parent.glob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    found = doctest.testmod(import_module(f"topwork.report.{name}"))
    assert found.attempted > 0
    assert found.failed == 0
