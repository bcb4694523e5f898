"""Comparison of runs: what changed is counted by hand, and chance isn't taken for progress."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from report.project import changed, document, predict_and_evaluate
from topwork.commands import compare
from topwork.compare.comparison import Comparison, changed_params, compare_runs, moved_rows
from topwork.compare.page import render_comparison, sentence
from topwork.dataset.tables import Tables
from topwork.errors import TopworkError
from topwork.params.document import load_params
from topwork.project.evaluate import CLASSES, IMAGES, ClassesRecord
from topwork.project.predictions import predictions_path
from topwork.report.figures import Estimate
from topwork.report.run import Run, WorkingFiles
from topwork.weights.format import Weights, read_weights, write_weights


def run_of(folder: Path, name: str) -> Run:
    return Run(WorkingFiles(folder), load_params(folder / "params.yaml"), name)


def compared(*folders: Path) -> Comparison:
    documents = [json.loads((folder / "params.yaml").read_text()) for folder in folders]
    return compare_runs(
        [run_of(folder, chr(97 + index)) for index, folder in enumerate(folders)], documents
    )


@pytest.fixture
def other(finished: Path, tmp_path: Path) -> Path:
    """The project after some work."""
    return changed(finished, tmp_path / "other")


def test_equal_runs_are_equal(finished: Path, project: Path) -> None:
    found = compared(finished, project)
    assert found.params == []
    assert found.data == [[]]
    assert found.weights == ["The two files are equal, byte for byte."]
    assert {row.verdict(1) for row in found.metrics} == {"equal"}
    assert sentence(found) == "b equals a in every figure."


def test_changes_are_counted(finished: Path, other: Path) -> None:
    found = compared(finished, other)
    assert found.params == [("finetune.lr", ["", "0.02"])]
    ((change,),) = found.data
    assert (change.split, change.images, change.annotations) == ("train", (0, 0, 1), (0, 1, 1))
    assert [after - before for before, after in change.classes.values()] == [-1]


def test_better_and_worse_by_the_paired_interval(finished: Path, other: Path) -> None:
    params = load_params(other / "params.yaml")
    from report import project as made

    good = dict(made.QUALITY)
    made.QUALITY["finetuned"] = {
        "person": (0.5, 0.12, 1.0),
        "helmet": (0.99, 0.01, 0.0),
        "forklift": good["finetuned"]["forklift"],
    }
    try:
        predict_and_evaluate(other, params, seed=3)
    finally:
        made.QUALITY.update(good)
    found = {(row.on, row.name): row for row in compared(finished, other).metrics}
    person, helmet = found[("test", "person")], found[("test", "helmet")]
    assert (person.verdict(1), helmet.verdict(1)) == ("worse", "better")
    for row in (person, helmet):
        assert row.ap[0] is not None
        assert row.ap[1] is not None
        difference = row.differences[1]
        assert difference.value == pytest.approx(row.ap[1].value - row.ap[0].value, abs=1e-12)
        assert difference.low is not None
        assert difference.high is not None
        assert difference.low <= difference.value <= difference.high


def test_other_resamples_are_no_other_set(finished: Path, project: Path) -> None:
    """A run that drew fewer resamples, and is far worse: its drop is found, by resamples drawn
    alike for both.
    """
    from report import project as made

    (project / "params.yaml").write_text(
        json.dumps(document(evaluate={"bootstrap": 20, "seed": 9}))
    )
    good = dict(made.QUALITY)
    made.QUALITY["finetuned"] = {"person": (0.2, 0.2, 1.0)}
    try:
        predict_and_evaluate(project, load_params(project / "params.yaml"))
    finally:
        made.QUALITY.update(good)
    for order in ((finished, project), (project, finished)):
        found = {(row.on, row.name): row.verdict(1) for row in compared(*order).metrics}
        assert found[("test", "person")] == ("worse" if order[0] == finished else "better")


def test_another_set_and_no_interval_are_distinguished(finished: Path, project: Path) -> None:
    tables = Tables.read(project / "out/validate")
    annotations = tables.annotations
    first = annotations.index[annotations["split"] == "test"][0]
    annotations.loc[first, "x"] += 1  # one person of the test set lies elsewhere
    Tables(tables.images, annotations, tables.categories).write(project / "out/validate")
    changed = compared(finished, project)
    name = tables.names("test")[annotations.loc[first, "category_id"]]
    found = {(row.on, row.name): row.verdict(1) for row in changed.metrics}
    assert found.pop(("test", name)) == "other set"
    assert set(found.values()) == {"equal"}
    (project / predictions_path("finetuned", "test")).unlink()
    rows = []
    for row in ClassesRecord.read(project / CLASSES).classes:
        nothing = row.models["finetuned"].model_copy(update={"ap": 0.0})
        rows.append(row.model_copy(update={"models": {**row.models, "finetuned": nothing}}))
    ClassesRecord(classes=tuple(rows)).write(project / CLASSES)
    assert {row.verdict(1) for row in compared(finished, project).metrics if row.on == "test"} == {
        "no interval"
    }


def test_rows_that_moved_bear_their_class(finished: Path, project: Path) -> None:
    before = read_weights(finished / "out/finetune/weights.safetensors")
    state = {name: tensor.clone() for name, tensor in before.state_dict.items()}
    name = "head.classification_head.module_list.0.1.bias"
    columns = len(before.columns) + len(before.absorbed)
    state[name][1] += 3.0  # anchor-major: row 1 is person's for the first anchor
    state[name][1 + columns] += 4.0  # and for the second
    write_weights(
        project / "out/finetune/weights.safetensors",
        Weights(
            state,
            before.columns,
            before.builder,
            before.builder_args,
            before.absorbed,
            before.provenance,
        ),
    )
    moved = moved_rows(run_of(finished, "a"), run_of(project, "b"))
    assert not isinstance(moved, str)
    by_class = moved.set_index("class")["moved"]
    assert by_class["person"] == pytest.approx(5.0, rel=1e-5)  # sqrt(9 + 16)
    assert by_class.drop("person").max() == 0


def test_page_and_terminal_show_the_same(
    finished: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    found = compared(finished, other)
    page = render_comparison(found, pictures=2)
    assert page == render_comparison(compared(finished, other), pictures=2)
    compare.print_comparison(found, Console(width=200))
    printed = capsys.readouterr().out
    for words in ("finetune.lr", "0.02", "training", "person"):
        assert words in page
        assert words in printed
    assert page.count('class="shot"') == 2
    (other / IMAGES).unlink()
    without = render_comparison(compared(finished, other), pictures=2)
    assert "or evaluate left no scores of them" in without
    assert "<span" not in printed


def test_params_of_another_shape() -> None:
    assert changed_params([{"a": {"b": 1}, "c": [1]}, {"a": {"b": 1}, "c": [1, 2], "d": None}]) == [
        ("c", ["1", "1, 2"]),
        ("d", ["", "none"]),
    ]


def test_one_revision_or_an_unevaluated_one_is_refused(finished: Path, project: Path) -> None:
    with pytest.raises(TopworkError, match="one revision given, expected two or more"):
        compare_runs([run_of(finished, "a")], [{}])
    (project / CLASSES).unlink()
    with pytest.raises(TopworkError, match=r"b has no out/evaluate/classes\.json"):
        compared(finished, project)


def test_verdict_by_hand() -> None:
    from topwork.compare.comparison import MetricRow

    def verdict(*estimate: float) -> str:
        return MetricRow("a", "test", [], [], {1: Estimate(*estimate)}).verdict(1)

    assert [
        verdict(0.1, 0.02, 0.2),
        verdict(-0.1, -0.2, -0.02),
        verdict(0.1, -0.01, 0.2),
        verdict(0.1),
        verdict(0.0, 0.0, 0.0),
    ] == [
        "better",
        "worse",
        "within chance",
        "no interval",
        "equal",
    ]


def dvc_project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a folder under git and DVC; returns what runs a command in it."""

    def do(*command: str) -> None:
        if command[0] == "dvc":
            command = (sys.executable, "-m", *command)
        done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    do("git", "init", "-q")
    do("git", "config", "user.email", "t@example.org")
    do("git", "config", "user.name", "t")
    do("dvc", "init", "-q")
    return do


def test_git_and_dvc_revisions(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two commits of one project whose outs lie in DVC's cache; the second changes a param."""
    do = dvc_project(project, monkeypatch)
    do("dvc", "add", "-q", "data/demo", "out")
    do("git", "add", "-A")
    do("git", "commit", "-qm", "one")
    (project / "params.yaml").write_text(json.dumps(document(finetune={"lr": 0.5})))
    do("git", "commit", "-qam", "two")
    assert (
        compare.run(
            compare_arguments(
                "HEAD~1", "HEAD", "workspace", "--html", "page.html", "--pictures", "1"
            )
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "finetune.lr" in printed
    assert "data the same" in printed
    assert "HEAD equals HEAD~1 in every figure; workspace equals HEAD~1" in " ".join(
        printed.split()
    )
    assert (project / "page.html").read_text().count('class="shot"') == 1


def test_dvc_experiments(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A `dvc exp run` that ruins the detections of people is found by its name, and the working
    tree isn't touched.
    """
    from report import project as made

    do = dvc_project(project, monkeypatch)
    (project / "params.yaml").write_text(json.dumps(document(finetune={"lr": 0.01})))
    (project / "out").rename(project / "made-0.01")
    shutil.copytree(project / "made-0.01", project / "out")
    monkeypatch.setitem(made.QUALITY, "finetuned", {"person": (0.2, 0.2, 1.0)})
    predict_and_evaluate(project, load_params(project / "params.yaml"))
    (project / "out").rename(project / "made-0.5")
    stage = {
        "cmd": "cp -r made-${finetune.lr} out",
        "deps": ["made-${finetune.lr}"],
        "params": ["finetune.lr"],
        "outs": ["out"],
    }
    (project / "dvc.yaml").write_text(json.dumps({"stages": {"all": stage}}))
    (project / ".gitignore").write_text("/made-*\n")
    do("dvc", "add", "-q", "data/demo")
    do("dvc", "repro", "-q")
    do("git", "add", "-A")
    do("git", "commit", "-qm", "base")
    do("dvc", "exp", "run", "-q", "--name", "bold", "--set-param", "finetune.lr=0.5")
    do("git", "checkout", "-q", ".")
    do("dvc", "checkout", "-q")
    before = (project / CLASSES).read_bytes()
    assert (
        compare.run(compare_arguments("HEAD", "bold", "--html", "page.html", "--pictures", "1"))
        == 0
    )
    printed = " ".join(capsys.readouterr().out.split())
    assert "bold is worse on person (test)" in printed
    assert "finetune.lr 0.01 0.5" in printed
    assert (project / CLASSES).read_bytes() == before
    assert (project / "page.html").read_text().count('<p class="panel-title">bold</p>') == 1
    with pytest.raises(TopworkError, match="bald: no such revision"):
        compare.run(compare_arguments("HEAD", "bald"))


def compare_arguments(*arguments: str):  # type: ignore[no-untyped-def]
    import argparse

    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    return parser.parse_args(arguments)
