"""Splits: the same in any order, stable, grouped, stratified."""

import re
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topwork.errors import DataError, ParamsError
from topwork.params.dataset import DatasetParams, SetParams
from topwork.project.names import CUSTOM_SPLITS, SPLITS
from topwork.validation.gate import to_divide
from topwork.validation.splits import assign, groups_of, place, read_places
from validation.scene import Scene, encoded, picture

# of a to h at 0.15 and 0.15
PLACES = [
    "val",
    "val",
    "test",
    "val",
    "train",
    "train",
    "train",
    "test",
]


def classes_of(count: int) -> list[Counter[str]]:
    """A common class, one in every fifth image, one in every twentieth."""
    return [
        Counter(
            {
                "common": 2,
                **({"some": 1} if i % 5 == 0 else {}),
                **({"rare": 1} if i % 20 == 0 else {}),
            }
        )
        for i in range(count)
    ]


@settings(max_examples=50, deadline=None, database=None)
@given(
    st.lists(st.text(min_size=1), min_size=1, unique=True),
    st.lists(st.text(min_size=1), unique=True),
    st.randoms(),
)
def test_added_images_move_none_and_order_means_nothing(
    old: list[str], new: list[str], random: object
) -> None:
    before = dict(zip(old, assign(old, [Counter()] * len(old), 0.2, 0.2), strict=True))
    everything = list(dict.fromkeys(old + new))
    random.shuffle(everything)  # type: ignore[attr-defined]
    after = dict(
        zip(everything, assign(everything, [Counter()] * len(everything), 0.2, 0.2), strict=True)
    )
    assert all(after[name] == split for name, split in before.items())


def test_places_are_the_same_for_ever() -> None:
    """Written down once: another release must not move anyone's test images."""
    assert [place(name, 0.15, 0.15) for name in ("a", "b", "c", "d", "e", "f", "g", "h")] == PLACES


def test_shares_hold_on_average() -> None:
    names = [f"image {i}" for i in range(10_000)]
    counts = Counter(assign(names, [Counter()] * len(names), 0.15, 0.1))
    assert counts["val"] == pytest.approx(1500, abs=150)
    assert counts["test"] == pytest.approx(1000, abs=130)


@pytest.mark.parametrize("count", [40, 200, 1000])
def test_stratified_shares_hold_for_every_class(count: int) -> None:
    names, classes = [f"image {i}" for i in range(count)], classes_of(count)
    places = assign(names, classes, 0.2, 0.2, {})
    for name in ("common", "some", "rare"):
        total = sum(c[name] for c in classes)
        for split in ("val", "test"):
            found = sum(c[name] for c, s in zip(classes, places, strict=True) if s == split)
            assert abs(found - 0.2 * total) <= max(2, 0.02 * total), (name, split)


def test_earlier_places_stay_and_new_images_fill_what_lacks() -> None:
    names, classes = [f"image {i}" for i in range(300)], classes_of(300)
    first = dict(zip(names[:200], assign(names[:200], classes[:200], 0.2, 0.2, {}), strict=True))
    places = dict(zip(names, assign(names, classes, 0.2, 0.2, first), strict=True))
    assert all(places[name] == split for name, split in first.items())
    rare = Counter(places[name] for name, c in zip(names, classes, strict=True) if c["rare"])
    assert rare == {"train": 9, "val": 3, "test": 3}


@pytest.mark.parametrize("earlier", [None, {}], ids=["by-hash", "stratified"])
def test_groups_stay_together(earlier: dict[str, str] | None) -> None:
    groups = [f"site {i // 7}" for i in range(210)]
    places = assign(groups, classes_of(210), 0.3, 0.3, earlier)
    homes = {
        group: {p for g, p in zip(groups, places, strict=True) if g == group} for group in groups
    }
    assert all(len(home) == 1 for home in homes.values())
    assert set(places) == set(CUSTOM_SPLITS)


def test_groups_by_field_and_by_pattern() -> None:
    names, digests, fields = (
        ["cam1_003.jpg", "cam2_004.jpg", "x.jpg"],
        ["", "", ""],
        [{"site": 4}, {"site": "b"}, {}],
    )
    assert groups_of(names, digests, fields, "site") == ["4", "b", None]
    assert groups_of(names, digests, fields, r"^(cam\d+)_") == ["cam1", "cam2", None]
    assert groups_of(names, ["h1", "h1", ""], fields, None) == ["h1", "h1", "name:x.jpg"]
    with pytest.raises(
        ParamsError, match=re.escape("dataset.split.group_by: '(' is neither a field")
    ):
        groups_of(names, digests, fields, "(")
    with pytest.raises(ParamsError, match="as a pattern it matches no file name"):
        groups_of(names, digests, fields, "zone")


def test_one_set_becomes_three_and_findings_move_along(tmp_path: Path) -> None:
    scene = Scene(tmp_path).box(0, 3, 5, 12, 1).option(split={"val": 0.3, "test": 0.3})
    found = scene.run()
    tables = found.tables
    assert len(tables.images) == 4
    assert len(tables.annotations) == 24
    for split in tables.splits:
        part = tables.split(split)
        assert set(part.annotations["image_id"]) <= set(part.images["image_id"])
    home = tables.images.set_index("image_id")["split"]
    assert [row.split for row in found.findings if row.rule == "box-tiny"] == [home[1]]
    assert {(split, name) for _, split, name in found.places} == set(
        zip(tables.images["split"], tables.images["file_name"], strict=True)
    )


def test_the_same_image_twice_never_parts(tmp_path: Path) -> None:
    scene = Scene(tmp_path).option(split={"val": 0.4, "test": 0.3})
    for seed in range(4):
        scene.file(f"train/{seed}.jpg", encoded(picture(0)))
    assert len(scene.run().tables.images["split"].unique()) == 1


def test_places_of_an_earlier_run_are_kept(tmp_path: Path) -> None:
    scene = Scene(tmp_path).option(split={"val": 0.3, "test": 0.3, "group_by": r"(\d)"})
    (tmp_path / "places.csv").write_text(
        "group,split,file_name\n0,test,0.jpg\n1,val,1.jpg\n2,test,2.jpg\n"
    )
    scene.options["split"]["assigned"] = Path("places.csv")
    tables = scene.run().tables
    home = dict(zip(tables.images["file_name"], tables.images["split"], strict=True))
    assert home == {"0.jpg": "test", "1.jpg": "val", "2.jpg": "test", "3.jpg": "train"}


def test_a_list_of_places_at_fault(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"nowhere\.csv: no such file, and dataset\.split\.assigned names it"
    ):
        read_places(tmp_path / "nowhere.csv")
    (tmp_path / "p.csv").write_text("group,split\na,dev\n")
    with pytest.raises(DataError, match=r"p\.csv: split is 'dev', expected train, val or test"):
        read_places(tmp_path / "p.csv")
    (tmp_path / "q.csv").write_text("image,where\na,dev\n")
    with pytest.raises(DataError, match=r"q\.csv: not a CSV with the columns group and split"):
        read_places(tmp_path / "q.csv")


def test_the_splits_are_the_sets_of_the_params() -> None:
    sets = [
        name
        for name, field in DatasetParams.model_fields.items()
        if SetParams in get_args(field.annotation) or field.annotation is SetParams
    ]
    assert tuple(sets) == SPLITS


@pytest.mark.parametrize(
    ("given", "split", "expected"),
    [
        ((), {"val": 0.2}, (0.2, 0.15)),
        (("val",), {"test": 0.2}, (0.0, 0.2)),
        (("test",), {"val": 0.3}, (0.3, 0.0)),
        (("val",), {"group_by": "x"}, None),
        (("val", "test"), {"val": 0.2, "test": 0.2}, None),
        (("val",), None, None),
    ],
    ids=["train alone", "no test", "no val", "groups alone", "all given", "no split"],
)
def test_parts_that_are_named_and_not_given_are_taken_out_of_train(
    given: tuple[str, ...], split: dict[str, object] | None, expected: tuple[float, float] | None
) -> None:
    sets = {name: {"annotations": f"{name}.json"} for name in ("train", *given)}
    dataset = DatasetParams.model_validate({"root": "data", **sets, "split": split})
    found = to_divide(dataset)
    assert (None if found is None else (found.val, found.test)) == expected


def test_a_test_set_is_taken_out_of_train_where_val_is_given(tmp_path: Path) -> None:
    """Val stays what it was, and no image is in two splits."""
    scene = Scene(tmp_path).other("val")
    whole = scene.run().tables
    found = scene.option(split={"test": 0.5}).run().tables
    assert found.splits == ["train", "val", "test"]
    files = {name: set(found.split(name).images["file_name"]) for name in found.splits}
    assert files["val"] == set(whole.split("val").images["file_name"])
    assert files["train"] | files["test"] == set(whole.split("train").images["file_name"])
    assert files["test"]
    assert not files["train"] & files["test"]
