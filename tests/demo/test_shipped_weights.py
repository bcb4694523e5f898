"""The shipped detector: the file its record speaks of, small, half precision, loading strictly, and
seeing people.
"""

import json
from collections.abc import Iterator
from random import Random

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from topwork.demo.street import STREET_CLASSES
from topwork.demo.worlds import STREET
from topwork.download.shipped import RECORD, WEIGHTS
from topwork.files import sha256_file

COLUMNS = ["__background__", *STREET_CLASSES]


def test_the_record_names_the_file_by_hash_and_size() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record["sha256"] == sha256_file(WEIGHTS)
    assert record["bytes"] == WEIGHTS.stat().st_size <= 8_000_000
    assert record["classes"] == COLUMNS
    assert record["figures"]["map"] > 0.5
    assert record["figures"]["per_class"]["person"]["ap"] > 0.5


def test_the_metadata_says_what_the_columns_mean() -> None:
    with safe_open(WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["topwork"] == "1"
    assert metadata["builder"] == "ssdlite320_mobilenet_v3_large"
    assert json.loads(metadata["columns"]) == COLUMNS
    provenance = json.loads(metadata["provenance"])
    assert provenance["licence"] == "Apache-2.0"
    assert set(provenance) == {"source", "recipe", "licence", "figures"}


def test_its_figures_are_from_pictures_it_never_saw() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record["figures"]["split"] == "street pretrain_test, held out"
    assert set(record["recipe"]["draw"]) == {"train", "val", "test", "processes"}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Several threads that wait for each other take minutes on a busy machine; one takes a
    second.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_it_loads_strictly_and_finds_a_drawn_person() -> None:
    stored = load_file(WEIGHTS)
    assert {t.dtype for t in stored.values()} == {torch.float16, torch.int64}
    model = ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=len(COLUMNS)
    ).eval()
    model.load_state_dict(
        {name: t.float() if t.is_floating_point() else t for name, t in stored.items()}, strict=True
    )
    best = 0.0
    for index in range(3):
        picture, people = _street_picture(index)
        if people:
            with torch.inference_mode():
                (output,) = model([picture])
            best = max(
                best, output["scores"][output["labels"] == COLUMNS.index("person")].max().item()
            )
    assert best > 0.5


def _street_picture(index: int) -> tuple[torch.Tensor, int]:
    """A fresh street picture, float[3, H, W] in 0..1, and how many people it shows."""
    rng = Random(f"shipped/{index}")
    scene = STREET.draw(rng)
    picture = torch.from_numpy(np.array(scene.develop(rng))).permute(2, 0, 1).float() / 255
    return picture, sum(annotation["category_id"] == 1 for annotation in scene.annotations(1, 1))
