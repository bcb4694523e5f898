"""inspect, diff, plan: what is shown, against numbers by hand."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

import topwork
from detectors import tiny
from topwork.classes import ClassPlan
from topwork.cli import main
from topwork.errors import SurgeryError
from topwork.surgery.inspection import inspect_classes
from topwork.surgery.preview import near_classes, preview
from topwork.weights.format import Weights
from validation.scene import Scene

COLUMNS = ("__background__", "person", "car", "truck", "N/A")
BUILDER = f"{Path(tiny.__file__)}:points"


@pytest.fixture
def weights():
    state_dict = tiny.points(5).state_dict()
    rows = {
        0: [0, 0, 0, 0, 0, 0],
        1: [3, 4, 0, 0, 0, 0],
        2: [0, 0, 1, 1, 0, 0],
        3: [0, 0, 2, 2.1, 0, 0],
        4: [0, 0, 0, 0, 0, 0],
    }
    state_dict["head.weight"] = torch.tensor([rows[k] for k in range(5)]).float()
    state_dict["head.bias"] = torch.arange(5.0)
    return Weights(state_dict, COLUMNS, BUILDER)


def test_tensors(weights):
    table = topwork.inspect(weights).set_index("tensor")
    assert list(table.index) == list(weights.state_dict)
    head = table.loc["head.weight"]
    assert (
        head["shape"],
        head["numbers"],
        head["bytes"],
        head["role"],
        head["layout"],
        head["rows"],
    ) == (
        (5, 6),
        30,
        120,
        "scores",
        "plain",
        "1",
    )
    assert head["norm"] == pytest.approx(math.sqrt(9 + 16 + 2 + 4 + 2.1**2))
    assert table.loc["backbone.weight", "role"] == ""
    assert topwork.inspect(weights).attrs["activation"] == "softmax"


def test_classes(weights):
    table = inspect_classes(weights).set_index("class")
    assert table.loc["person", "weight_norm"] == 5
    assert table.loc["truck", "bias_mean"] == 3
    assert table.loc["truck", "nearest"][0][0] == "car"
    assert table.loc["person", "rows"] == 2
    assert table.loc["N/A", "nearest"] == []


def test_diff_by_class_name_whatever_the_order(weights):
    done = topwork.graft(weights, {"truck": "keep", "person": "keep", "hat": "new"})
    after = dict(done.state_dict)
    after["head.weight"] = after["head.weight"].clone()
    after["head.weight"][2, 0] += 5  # person
    table = topwork.diff(weights, Weights(after, done.weights.columns, BUILDER)).set_index(
        ["tensor", "class"]
    )
    assert table.loc[("head.weight", "truck"), "status"] == "same"
    person = table.loc[("head.weight", "person")]
    assert (person["status"], person["moved"], person["relative"], person["largest"]) == (
        "moved",
        5,
        1,
        5,
    )
    assert person["cosine"] == pytest.approx((8 * 3 + 16) / (5 * math.hypot(8, 4)))
    assert table.loc[("head.weight", "car"), "status"] == "only before"
    assert table.loc[("head.bias", "hat"), "status"] == "only after"
    assert table.loc[("backbone.weight", ""), "status"] == "same"


def test_diff_wants_one_builder(weights):
    with pytest.raises(
        SurgeryError, match=r"diff: the first is of .*:points \{\}, the second of other"
    ):
        topwork.diff(weights, Weights(weights.state_dict, COLUMNS, "other"), builder=None)


def test_preview_is_what_the_graft_does(weights):
    plan = ClassPlan.parse(
        {"truck": "keep", "person helmet": "new", "van": {"like": ["car", "truck"]}},
        dropped="absorb",
    )
    shown = preview(weights, plan)
    done = topwork.graft(weights, plan)
    assert [row["class"] for row in shown.classes] == [
        *done.weights.columns,
        *done.weights.absorbed,
    ]
    assert shown.dropped == ["person", "car"]
    for item, tensor in zip(
        shown.tensors,
        [t for t in done.receipt["tensors"] if t["status"] == "changed"][::-1],
        strict=True,
    ):
        assert item["shape_after"] == tensor["shape_after"]
        assert [row["to"] for row in item["rows"]] == [row["rows"] for row in tensor["rows"]]
        assert [row["from"] for row in item["rows"] if row["class"] != "N/A"] == [
            {source["class"]: source["rows"] for source in row["from"]}
            for row in tensor["rows"]
            if row["class"] != "N/A"
        ]
    assert shown.classes[2]["suggestions"] == ["person"]


def test_near_names():
    assert near_classes("fire-truck", ["car", "truck", "fire hydrant"])[:2] == [
        "truck",
        "fire hydrant",
    ]
    assert near_classes("policeCar", ["car", "truck"]) == ["car"]
    assert near_classes("persons", ["person", "parrot"]) == ["person"]
    assert near_classes("helmet", ["car", "truck"]) == []


@pytest.fixture
def project(tmp_path, weights):
    topwork.write_weights(tmp_path / "w.safetensors", weights)
    (tmp_path / "params.yaml").write_text(
        "dataset: {root: data, train: {annotations: a.json}}\nsurgery: {classes: {person: keep,"
        " trucks: new}}\n"
    )
    return tmp_path


def test_commands(project, capsys):
    path = str(project / "w.safetensors")
    before = (project / "w.safetensors").read_bytes()
    assert main(["inspect", path, "--builder", BUILDER]) == 0
    out = capsys.readouterr().out
    assert "points, softmax head, 4 tensors" in out
    assert "classes (4): person, car, truck, N/A" in out
    assert main(["inspect", path, "--builder", BUILDER, "--heads", "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert (
        main(["inspect", path, "--builder", BUILDER, "--classes", "truck", "--format", "json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)[0]["class"] == "truck"
    assert main(["inspect", path, "--builder", BUILDER, "--classes", "trick", "zebra"]) == 1
    assert re.search(
        r"'trick' isn't among .* \(near: truck\); 'zebra' isn't among", capsys.readouterr().err
    )
    assert main(["diff", path, path, "--builder", BUILDER, "--moved"]) == 0
    assert capsys.readouterr().out == "10 same\nnothing to show\n"
    grafted = str(project / "g.safetensors")
    topwork.write_weights(
        grafted,
        topwork.graft(
            topwork.read_weights(path, trust=True), {"truck": "keep", "hat": "new"}
        ).weights,
    )
    assert main(["diff", path, grafted, "--builder", BUILDER, "--heads"]) == 0
    assert capsys.readouterr().out.startswith("6 same, 4 only before, 2 only after\n")
    Path(grafted).unlink()
    assert (
        main(
            [
                "plan",
                "--params",
                str(project / "params.yaml"),
                "--weights",
                path,
                "--builder",
                BUILDER,
                "--rows",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "5 columns -> 3, softmax head; nothing is changed by this command" in out
    assert "new, prior 0.01; near in the weights: truck (write `like: truck`)" in out
    assert (
        "2 other classes are absorbed: car, truck\nkept classes' scores stay what they were, but"
        " for new rows\n" in out
    )
    assert "head.weight  scores, plain  [5, 6] -> [6, 6]" in out
    assert re.search(r"^ {4}truck +\[4\] <- truck \[3\]$", out, re.MULTILINE)
    assert (project / "w.safetensors").read_bytes() == before
    assert sorted(path.name for path in project.iterdir()) == ["params.yaml", "w.safetensors"]
    assert (
        main(
            [
                "plan",
                "--params",
                str(project / "params.yaml"),
                "--weights",
                path,
                "--builder",
                BUILDER,
                "--format",
                "json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["untouched"] == 2
    assert (
        main(
            [
                "plan",
                "--params",
                str(project / "params.yaml"),
                "--weights",
                path,
                "--builder",
                BUILDER,
                "--format",
                "json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["data"] == {"faults": [], "told": []}


def test_plan_holds_the_classes_against_validated_data(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The project's tables have helmets and forklifts; its plan asks for trucks and a person."""
    tables = Scene(project / "data").run().tables
    (project / "out" / "validate").mkdir(parents=True)
    tables.write(project / "out" / "validate")
    arguments = ["plan", "--params", str(project / "params.yaml"), "--builder", BUILDER]
    arguments += ["--weights", str(project / "w.safetensors")]
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert (
        "data: helmet: a category with 12 boxes in train that surgery.classes doesn't name" in out
    )
    assert "trucks: `new`, and no category of train is called so" in err
