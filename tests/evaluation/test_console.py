"""The table on the terminal: whole at 80 columns, intervals where there's room."""

import io

import pytest
from rich.console import Console

from topwork.evaluation.console import print_classes
from topwork.project.evaluate import ClassesRecord, ClassRecord, ModelFigures, VerdictRecord
from topwork.project.names import MODELS

FIGURES = ModelFigures(ap=0.585, interval=(0.551, 0.612), figures=None, best=None, ece=None)
ROW = ClassRecord(
    split="source",
    name="forklift",
    origin="like",
    objects=12_345,
    images=99,
    note=None,
    models=dict.fromkeys(MODELS, FIGURES),
    retention=3.938,
    interval_retention=(3.21, 5.02),
)


def printed(width: int, **changes: object) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_classes(
        console,
        ClassesRecord(classes=(ROW.model_copy(update=changes),)),
        VerdictRecord(holds=True, contracts=()),
    )
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 120, 200])
def test_nothing_is_cut(width: int) -> None:
    text = printed(width)
    for words in (
        "set",
        "class",
        "objects",
        "pretrained",
        "grafted",
        "fine-tuned",
        "retention",
        "source",
        "forklift",
        "12345",
        "3.938",
    ):
        assert words in text, words
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert ("0.551-0.612" in text) == (width >= 120)


def test_a_long_name_folds_and_brackets_are_no_markup() -> None:
    text = printed(80, name="personal flotation device [red]")
    assert "…" not in text
    assert "[red]" in "".join(text.split())
    assert "0.585" in text
    assert printed(80, retention=None).rstrip().endswith("-")
