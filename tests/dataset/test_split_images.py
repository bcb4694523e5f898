"""The images of splits: which of them are the same."""

from pathlib import Path

import pandas as pd
import pytest

from topwork.dataset.images import ImageStore
from topwork.dataset.split_images import SplitImages
from topwork.dataset.tables import IMAGE_COLUMNS, Tables

CONTENT = {
    "train": [b"same", b"else", b"long one"],
    "replay": [b"same", b"diff", b"a longer one", b"else", b"gone"],
}


def test_copies_are_found_by_their_bytes_and_only_images_of_one_size_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    for split, contents in CONTENT.items():
        (tmp_path / split).mkdir()
        for number, content in enumerate(contents):
            (tmp_path / split / f"{number}.png").write_bytes(content)
            rows.append((split, number, f"{number}.png", 4, 4, split))
    (tmp_path / "replay/4.png").unlink()
    empty = Tables.join([])
    table = pd.DataFrame(rows, columns=list(IMAGE_COLUMNS))
    images = SplitImages(Tables(table, empty.annotations, empty.categories), tmp_path)
    read: list[str] = []
    original = ImageStore.read
    monkeypatch.setattr(
        ImageStore,
        "read",
        lambda store, name: read.append(f"{store.root.name}/{name}") or original(store, name),  # type: ignore[func-returns-value]
    )
    assert images.copies("replay", range(5), {"train": range(3)}) == {0, 3}
    assert sorted(read) == [
        *("replay/0.png", "replay/1.png", "replay/3.png"),
        *("train/0.png", "train/1.png"),
    ]
    assert images.copies("replay", [1, 3], {"train": [0], "replay": [0]}) == frozenset()
    assert images.copies("replay", [3], {"train": [], "replay": [1]}) == frozenset()
