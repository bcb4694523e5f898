"""Local files under params `fetch`: where they may lie, and what an experiment's copy lacks."""

from pathlib import Path

import pytest

from topwork.download.watched import check_watched
from topwork.errors import WeightsError
from topwork.params.fetch import FetchParams
from topwork.weights.categories import columns_of


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, as DVC makes one for an experiment: an empty copy of `project`."""
    (tmp_path / "project" / "weights").mkdir(parents=True)
    for name in ("project/weights/own.txt", "outside.txt"):
        (tmp_path / name).write_text("hat\n")
    (tmp_path / "copies" / "one").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "copies" / "one")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    return tmp_path


@pytest.mark.parametrize(
    "fields",
    [
        {"source": "weights/own.txt"},
        {"builder": "weights/own.txt:build"},
        {"classes": "weights/own.txt"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_file_that_an_experiments_copy_lacks_is_named(copy: Path, fields: dict[str, str]) -> None:
    (key,) = fields
    message = rf"fetch\.{key}: weights/own\.txt: is in the project but not in .*dvc add weights"
    with pytest.raises(WeightsError, match=message):
        check_watched(FetchParams(**fields))


def test_a_file_outside_of_the_project_is_to_be_named_by_its_whole_path(copy: Path) -> None:
    with pytest.raises(WeightsError, match=rf"Write `{copy}/outside\.txt`"):
        check_watched(FetchParams(source="../outside.txt"))
    check_watched(FetchParams(source=str(copy / "outside.txt")))


def test_what_a_builder_imports_has_to_lie_in_weights_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "mine.py").write_text("import inner\n")
    (tmp_path / "weights" / "inner.py").write_text("")
    check_watched(FetchParams(builder="weights/mine.py:build"))
    (tmp_path / "weights" / "inner.py").write_text("import outer\n")
    (tmp_path / "outer.py").write_text("")
    with pytest.raises(WeightsError, match=r"outer\.py: is in the project where DVC doesn't watch"):
        check_watched(FetchParams(builder="weights/mine.py:build"))


@pytest.mark.parametrize("classes", ["weights/nams.txt", "nams.txt"])
def test_a_class_list_that_isnt_there_is_a_missing_file(classes: str) -> None:
    with pytest.raises(WeightsError, match=rf"fetch\.classes: {classes}: no such file"):
        columns_of(classes)
