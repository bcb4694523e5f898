"""Class names of columns: the shipped sets against torchvision, and what users give."""

from pathlib import Path

import pytest
from torchvision.models._meta import _COCO_CATEGORIES, _VOC_CATEGORIES

from topwork.classes import BACKGROUND, CATEGORY_SETS, UNUSED, category_set
from topwork.errors import ClassPlanError, WeightsError
from topwork.weights.categories import check_same_names, columns_of


def test_coco() -> None:
    columns = category_set("coco-91")
    assert columns == tuple(_COCO_CATEGORIES)
    assert len(columns) == 91
    # by hand, from COCO's own list of ids
    assert {
        1: "person",
        12: UNUSED,
        13: "stop sign",
        26: UNUSED,
        66: UNUSED,
        71: UNUSED,
        83: UNUSED,
        90: "toothbrush",
    }.items() <= dict(enumerate(columns)).items()
    assert columns.count(UNUSED) == 10


def test_coco_80_is_coco_without_gaps() -> None:
    assert category_set("coco-80") == tuple(name for name in _COCO_CATEGORIES if name != UNUSED)
    assert len(category_set("coco-80")) == 81


def test_voc() -> None:
    assert category_set("voc-21") == tuple(_VOC_CATEGORIES)


def test_open_images() -> None:
    columns = category_set("open-images-601")
    assert len(columns) == len(set(columns)) == 602
    assert {1: "Tortoise", 69: "Person", 400: "Truck", 571: "Car", 601: "Helmet"}.items() <= dict(
        enumerate(columns)
    ).items()


def test_names_that_contradict_the_weights_own_are_shown_side_by_side() -> None:
    own = category_set("coco-91")
    check_same_names(category_set("coco-91"), own, "w.pth")
    # the 80 names in a row
    shifted = (
        *own[:12],
        *(name for name in own[12:] if name != UNUSED),
        *[UNUSED] * 10,
    )
    with pytest.raises(
        WeightsError,
        match=(
            r"w\.pth: .* column 12 is 'N/A', fetch\.classes has 'stop sign'; column 13 is .*; and"
            r" 73 more"
        ),
    ):
        check_same_names(shifted, own, "w.pth")
    with pytest.raises(
        WeightsError, match=r"fetch\.classes: found 81 columns, the weights have 91"
    ):
        check_same_names(category_set("coco-80"), own, "w.pth")


@pytest.mark.parametrize("name", CATEGORY_SETS)
def test_every_set_says_where_it_is_from(root: Path, name: str) -> None:
    assert (root / f"src/topwork/category_sets/{name}.txt").read_text().startswith("# Source: ")


def test_lists_and_files(tmp_path: Path) -> None:
    assert columns_of(["helmet", "forklift"]) == (BACKGROUND, "helmet", "forklift")
    assert columns_of([BACKGROUND, "helmet", UNUSED, UNUSED]) == (
        BACKGROUND,
        "helmet",
        UNUSED,
        UNUSED,
    )
    (tmp_path / "names.txt").write_text("# the yard\nhelmet\n\n  forklift \n")
    assert columns_of(str(tmp_path / "names.txt")) == (BACKGROUND, "helmet", "forklift")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("coco-19", r"'coco-19' is no category set \(nearest: coco-91\)"),
        (["a", "b", "a"], r"fetch\.classes: a named twice"),
        (["a", " "], r"fetch\.classes: found an empty name"),
        ([], r"fetch\.classes: found no name"),
        (["a", BACKGROUND], rf"fetch\.classes: {BACKGROUND} is number 1; expected it first"),
    ],
)
def test_bad_names(classes: list[str] | str, message: str) -> None:
    with pytest.raises((ClassPlanError, WeightsError), match=message):
        columns_of(classes)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WeightsError, match=r"names\.txt: not readable as a list of class names"):
        columns_of(str(tmp_path / "names.txt"))
