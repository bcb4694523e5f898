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
from topwork.surgery.table import Table
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
    table = topwork.inspect(weights).frame().set_index("tensor")
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
    table = inspect_classes(weights).frame().set_index("class")
    assert table.loc["person", "weight_norm"] == 5
    assert table.loc["truck", "bias_mean"] == 3
    assert table.loc["truck", "nearest"][0][0] == "car"
    assert table.loc["person", "rows"] == 2
    assert table.loc["N/A", "nearest"] == []


def test_diff_by_class_name_whatever_the_order(weights):
    plan = {"truck": "keep", "person": "keep", "hat": "new"}
    done = topwork.graft(weights, plan, dropped="remove")
    after = dict(done.state_dict)
    after["head.weight"] = after["head.weight"].clone()
    after["head.weight"][2, 0] += 5  # person
    table = topwork.diff(weights, Weights(after, done.weights.columns, BUILDER)).frame()
    table = table.set_index(["tensor", "class"])
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


def test_what_can_be_inspected(weights, tmp_path):
    """A file, a module that `load` made, a plain state_dict: the same tensors; roles where the
    builder is known.
    """
    topwork.write_weights(tmp_path / "w.safetensors", weights)
    of_file = topwork.inspect(tmp_path / "w.safetensors", builder=BUILDER)
    assert {row["tensor"] for row in of_file} == set(weights.state_dict)
    model = topwork.load(weights)
    by_name = sorted(of_file, key=lambda row: row["tensor"])  # a file's order isn't a module's
    assert sorted(topwork.inspect(model, builder=BUILDER), key=lambda row: row["tensor"]) == by_name
    bare = topwork.inspect(model.state_dict())
    assert [row["tensor"] for row in bare] == list(model.state_dict())
    assert {row["role"] for row in bare} == {""}
    assert (bare.attrs["activation"], topwork.inspect(model).attrs["columns"]) == (
        None,
        list(COLUMNS),
    )
    with pytest.raises(SurgeryError, match="a builder without columns"):
        topwork.inspect(model.state_dict(), builder=BUILDER)
    with pytest.raises(SurgeryError, match="bring their own columns"):
        topwork.inspect(weights, columns=COLUMNS)
    with pytest.raises(SurgeryError, match="found int, expected weights, a file, a module"):
        topwork.inspect(3)


def test_a_table_fits_the_screen():
    rows = [
        {"tensor": f"backbone.features.{index}.very.deep.block.weight", "shape": (3, 4), "norm": v}
        for index, v in enumerate((1.0, math.nan))
    ]
    table = Table(("tensor", "shape", "norm"), rows, brief=("tensor", "norm"))
    assert table.text(80).splitlines() == [
        "tensor                                      shape  norm",
        "backbone.features.0.very.deep.block.weight  3x4       1",
        "backbone.features.1.very.deep.block.weight  3x4",
    ]
    narrow = table.text(40).splitlines()
    assert narrow[0].split() == ["tensor", "norm"]
    assert max(map(len, narrow)) <= 40
    assert narrow[1].startswith("backbone.f")
    assert narrow[1].endswith(".weight     1")
    assert table.csv().splitlines()[2].endswith('"(3, 4)",')
    assert json.loads(table.json())[1]["norm"] is None
    assert Table(("a",), []).text() == "nothing to show"


def test_short_forms_fit_a_screen(weights):
    done = topwork.graft(weights, {"person": "keep", "hat": "new"})
    assert repr(weights) == (
        f"Weights({BUILDER}: 4 classes: person, car, truck, N/A; 4 tensors, 0.0 M numbers)"
    )
    assert repr(done).startswith("Graft(keep: person; new: hat; absorbed: 2 classes)\n  Weights(")
    assert done.columns == ("__background__", "person", "hat")
    many = repr(topwork.demo_weights())
    assert len(many) < 240
    assert "20 classes: person, " in many
    assert ", ...;" in many


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
    assert main(["inspect", path, "--builder", BUILDER, "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert (
        main(["inspect", path, "--builder", BUILDER, "--classes", "truck", "--format", "json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)[0]["class"] == "truck"
    assert main(["inspect", path, "--builder", BUILDER, "--classes", "trick", "zebra"]) == 1
    assert re.search(
        r"'trick' isn't among .* \(near: truck\); 'zebra' isn't among", capsys.readouterr().err
    )
    assert main(["inspect", path, "--builder", BUILDER]) == 0
    assert "2 tensors don't depend on the classes; --all shows them" in capsys.readouterr().out
    assert main(["inspect", path, "--builder", BUILDER, "--all"]) == 0
    assert "backbone.weight" in capsys.readouterr().out
    assert main(["diff", path, path, "--builder", BUILDER, "--moved"]) == 0
    assert capsys.readouterr().out == "10 same\nnothing to show\n"
    grafted = str(project / "g.safetensors")
    topwork.write_weights(
        grafted,
        topwork.graft(
            topwork.read_weights(path, trust=True), {"truck": "keep", "hat": "new"}
        ).weights,
    )
    assert main(["diff", path, grafted, "--builder", BUILDER]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "10 same, 2 only after"
    assert [line.split()[0] for line in lines[2:]] == [
        "__background__",
        "truck",
        "hat",
        "2",
        "everything",
    ]
    assert main(["diff", path, grafted, "--builder", BUILDER, "--all", "--moved"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
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
