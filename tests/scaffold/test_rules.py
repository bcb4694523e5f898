"""Rules for classes: what names suggest, what a user may write."""

from typing import Any

import pytest
from ruamel.yaml import YAML

from topwork.classes import ClassPlan, category_set
from topwork.errors import ClassPlanError
from topwork.scaffold.rules import change, keep, propose, scalar, written

COCO = category_set("coco-91")


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("person", "keep"),
        ("Persons", {"keep": "person"}),
        ("fire_hydrant", {"keep": "fire hydrant"}),
        ("worker", {"like": "person"}),
        ("site worker", {"like": "person"}),
        ("van", {"like": ["truck", "car"]}),
        ("police van", {"like": ["truck", "car"]}),
        ("helmet", "new"),
        ("hard_hat", "new"),
        ("cargo", "new"),
    ],
)
def test_a_name_suggests_a_rule(name: str, rule: Any) -> None:
    assert propose([name], COCO) == {name: rule}


def test_kept_classes_come_first_and_the_plan_is_one() -> None:
    rules = propose(["helmet", "van", "person", "Dog"], COCO)
    assert list(rules) == ["person", "Dog", "van", "helmet"]
    ClassPlan.parse(rules).check(COCO)
    assert propose(["person", "van"], ()) == {"person": "new", "van": "new"}


def test_what_the_user_keeps_and_changes() -> None:
    rules = propose(["worker", "van", "cone"], COCO)
    kept = keep(rules, ["worker=person", "dog"], COCO)
    assert kept == {
        "worker": {"keep": "person"},
        "dog": "keep",
        "van": {"like": ["truck", "car"]},
        "cone": "new",
    }
    changed = change(kept, "van = like bus; cone = drop; worker = new; dog = keep", COCO)
    assert changed == {"dog": "keep", "van": {"like": "bus"}, "worker": "new"}
    with pytest.raises(ClassPlanError, match=r"--keep persn: .* no class 'persn' \(near: person"):
        keep(rules, ["persn"], COCO)


@pytest.mark.parametrize(
    "text",
    ["vann = new", "van", "van = maybe", "van = like", "van = keep car, bus", "van = like zzz"],
)
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(ClassPlanError, match=r"init: 'van"):
        change({"van": "new"}, text, COCO)


@pytest.mark.parametrize(
    "name", ["no", "on", "7", "1e3", "a: b", "x #y", '"', "it's", "null", "ünï", "-", "a b", "~"]
)
def test_names_survive_yaml(name: str) -> None:
    text = f"{scalar(name)}: {written({'like': [name, 'car']})}\n"
    assert YAML(typ="safe", pure=True).load(text) == {name: {"like": [name, "car"]}}
