"""`topwork validate` on the demo sets with planted faults: each is found, and nothing else is."""

import json
from collections import Counter
from pathlib import Path

import pytest

from topwork.cli import main
from topwork.validation.rules import RULES
from validation.planted import Fault, Planted, side_by_side, whole_files


def found(
    planted: Planted, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Counter[Fault]:
    """What the command finds in a project, which it must not change."""
    before = {path: path.stat().st_mtime_ns for path in planted.folder.rglob("*")}
    monkeypatch.chdir(planted.folder)
    assert main(["validate", "--format", "json", "--no-cache"]) == 1
    assert {path: path.stat().st_mtime_ns for path in planted.folder.rglob("*")} == before
    record = json.loads(capsys.readouterr().out)
    assert not record["left_out"]
    return Counter(
        (row["rule"], row["split"], row["image_id"], row["annotation_id"])
        for row in record["findings"]
    )


def test_every_planted_fault_is_found_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [side_by_side(tmp_path / "yard"), *whole_files(tmp_path)]
    for planted in sets:
        actual = found(planted, capsys, monkeypatch)
        assert (planted.expected - actual, actual - planted.expected) == (Counter(), Counter())
    assert len({rule for rule, *_ in sets[0].expected}) == 96
    assert {rule for planted in sets for rule, *_ in planted.expected} == set(RULES)
