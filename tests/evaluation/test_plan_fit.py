"""The class plan against the training data, and where it is held: stage `check`, `topwork plan`,
`topwork validate`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from evaluation.colours import colour_weights
from topwork.classes import ClassPlan
from topwork.cli import main
from topwork.dataset.tables import Tables
from topwork.errors import ClassPlanError, TrainingError
from topwork.evaluation.plan_fit import PlanFit, plan_fit
from topwork.project.check import VERDICT
from topwork.project.fetch import PRETRAINED
from topwork.stages import check
from topwork.weights.format import write_weights
from training.tiny import BUILDER, pretrained
from validation.scene import Scene


def fit(plan: Mapping[str, Any], folder: Path, *spoil: str) -> PlanFit:
    """The plan against four images with twelve helmets and twelve forklifts."""
    scene = Scene(folder)
    if "cone" in spoil:
        scene.add("categories", {"id": 3, "name": "cone"})
    for index, record in enumerate(scene.sets["train"]["annotations"]):
        if "no forklift" in spoil and record["category_id"] == 2:
            scene.annotation(index, category_id=1)
        if "crowds" in spoil and record["category_id"] == 2:
            scene.annotation(index, iscrowd=1)
    return plan_fit(ClassPlan.parse(plan), scene.run().tables)


def test_a_slip_of_the_pen_names_the_nearest_category(tmp_path: Path) -> None:
    found = fit({"helmt": "new", "forklift": {"like": "truck"}}, tmp_path)
    assert found.faults == (
        "helmt: `new`, and no category of train is called so; the nearest is 'helmet' with 12"
        " boxes, which would be learned as background: write `helmet`, or `dataset.aliases:"
        " {helmet: helmt}`",
    )
    assert found.notes == (
        "helmet: a category with 12 boxes in train that surgery.classes doesn't name: learned as"
        " background",
    )
    with pytest.raises(ClassPlanError, match=r"params.yaml: surgery.classes .*helmt.*Mend"):
        found.check()


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"helmet": "new", "Fork-Lift": "keep"}, "the nearest is 'forklift' with 12 boxes"),
        ({"helmet": "new", "truck": {"keep": "forklift"}}, "the nearest is 'forklift'"),
        ({"helmet": "new", "fork lift": {"like": "truck"}}, "the nearest is 'forklift'"),
        ({"helmet": "new", "zebra": "new"}, r"they are 'helmet', 'forklift'"),
    ],
    ids=["kept-other-case", "kept-renamed", "like", "nothing-near"],
)
def test_classes_that_the_data_lack(plan: dict[str, Any], words: str, tmp_path: Path) -> None:
    found = fit(plan, tmp_path)
    assert len(found.faults) == 1
    assert words in found.faults[0]


def test_a_kept_class_may_be_absent(tmp_path: Path) -> None:
    found = fit({"person": "keep", "helmet": "new", "forklift": "new"}, tmp_path)
    assert found.faults == ()
    assert found.notes[0].startswith("person: kept, and train has no category of that name")


@pytest.mark.parametrize("spoil", ["no forklift", "crowds"])
def test_a_class_without_a_box(spoil: str, tmp_path: Path) -> None:
    new = fit({"helmet": "new", "forklift": "new"}, tmp_path / "new", spoil)
    assert new.faults == (
        "forklift: `new`, and its category has no box in train, so that it can't be learned",
    )
    like = fit({"helmet": "new", "forklift": {"like": "truck"}}, tmp_path / "like", spoil)
    assert like.faults == ()
    assert "forklift: `like`, and its category has no box in train" in like.notes[0]


def test_a_plan_that_fits_says_nothing(tmp_path: Path) -> None:
    assert fit({"helmet": "new", "forklift": {"like": "truck"}}, tmp_path) == PlanFit()
    other = fit({"helmet": "new", "forklift": "new"}, tmp_path / "cone", "cone")
    assert other == PlanFit(
        (),
        (
            "cone: a category with 0 boxes in train that surgery.classes doesn't name: learned as"
            " background",
        ),
    )


def test_the_stage_stops_or_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = Scene(tmp_path).other("test").run().tables
    (tmp_path / "out" / "validate").mkdir(parents=True)
    tables.write(tmp_path / "out" / "validate")
    write_weights(tmp_path / PRETRAINED, colour_weights(("person", "truck")))
    for classes, fits in (
        ({"person": "keep", "helmet": "new"}, True),
        ({"person": "keep", "helmt": "new", "forklift": "new"}, False),
    ):
        params = check.Params.model_validate({"surgery": {"classes": classes}})
        if not fits:
            with pytest.raises(ClassPlanError, match="the nearest is 'helmet'"):
                check.run(params, tmp_path)
        else:
            check.run(params, tmp_path)
            assert (tmp_path / VERDICT).is_file()
        assert "note: forklift: a category with 12 boxes" in capsys.readouterr().out or not fits


def test_a_share_that_cannot_be_chosen_stops_the_stage_and_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too few objects of kept classes in the images to replay that are held out."""
    monkeypatch.chdir(tmp_path)
    tables = Scene(tmp_path).other("test").other("replay").run().tables
    (tmp_path / "out" / "validate").mkdir(parents=True)
    tables.write(tmp_path / "out" / "validate")
    write_weights(tmp_path / PRETRAINED, pretrained())
    split = {"annotations": "train.json"}
    document = {
        "dataset": {"root": ".", "train": split, "replay": split},
        "surgery": {"classes": {"person": "keep", "helmet": "new"}},
        "finetune": {"interpolation": "retention"},
    }
    message = (
        r"dataset\.replay: a share is to be chosen .* none has 10 objects there: person \(\d\)"
    )
    params = check.Params.model_validate({k: document[k] for k in ("surgery", "finetune")})
    with pytest.raises(TrainingError, match=message):
        check.run(params)
    assert not VERDICT.exists()
    Path("params.yaml").write_text(json.dumps(document))
    assert main(["plan", "--builder", BUILDER]) == 1
    assert re.search(message, capsys.readouterr().err)
    frames = (tables.images, tables.annotations, tables.categories)
    older = Tables(*(frame[frame["split"] != "replay"] for frame in frames))
    older.write(tmp_path / "out" / "validate")
    assert main(["plan", "--builder", BUILDER]) == 0, "validate has to run again first"

    document["finetune"] = {"interpolation": 0.5}
    params = check.Params.model_validate({k: document[k] for k in ("surgery", "finetune")})
    check.run(params)
    Path("params.yaml").write_text(json.dumps(document))
    assert main(["plan", "--builder", BUILDER]) == 0


def test_validate_holds_the_project_s_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Scene(tmp_path).write()
    monkeypatch.chdir(tmp_path)
    dataset = {"root": ".", "train": {"annotations": "train.json", "images": "train"}}
    for name, code in (("helmt", 1), ("helmet", 0)):
        classes = {name: "new", "forklift": "new"}
        Path("params.yaml").write_text(
            json.dumps({"dataset": dataset, "surgery": {"classes": classes}})
        )
        assert main(["validate", "--no-cache"]) == code
        assert ("error: class plan: helmt" in capsys.readouterr().out) == bool(code)
        assert main(["validate", "--no-cache", "--format", "json"]) == code
        plan = json.loads(capsys.readouterr().out)["plan"]
        assert len(plan["faults"]) == code
    # a set alone has no plan
    assert main(["validate", "train.json", "--no-cache"]) == 0
