"""Every rule: one set that triggers it, and the nearest one that doesn't."""

from pathlib import Path

import pytest

from topwork.validation.rules import RULES
from validation.cases_boxes import BOX_CASES
from validation.cases_formats import FORMAT_CASES
from validation.cases_images import IMAGE_CASES
from validation.cases_records import RECORD_CASES, Case
from validation.scene import Scene, rules

CASES: dict[str, tuple[Case, Case]] = {**RECORD_CASES, **BOX_CASES, **IMAGE_CASES, **FORMAT_CASES}


def test_every_rule_has_its_two_cases() -> None:
    assert set(CASES) == set(RULES)
    assert len(RULES) >= 40


def test_the_sound_set_has_no_finding(tmp_path: Path) -> None:
    found = Scene(tmp_path).other().run()
    assert [row.text() for row in found.findings] == []
    assert len(found.tables.images) == 8
    assert len(found.tables.annotations) == 48


@pytest.mark.parametrize("rule", CASES)
def test_rule_is_triggered(rule: str, tmp_path: Path) -> None:
    assert rule in rules(CASES[rule][0](Scene(tmp_path)).run())


@pytest.mark.parametrize("rule", CASES)
def test_rule_is_not_triggered_by_its_neighbour(rule: str, tmp_path: Path) -> None:
    assert rule not in rules(CASES[rule][1](Scene(tmp_path)).run())
