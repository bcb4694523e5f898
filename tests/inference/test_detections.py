"""`topwork.predict`: the detections of the tables, as tensors; images that aren't what they should
be.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import topwork
from evaluation.colours import COLOURS, colour_weights
from topwork.errors import DataError, EvaluationError, TopworkError
from topwork.inference import progress
from topwork.weights.format import Weights


@pytest.fixture
def weights() -> Weights:
    return colour_weights(("person", "truck", "N/A", "forklift"), {"truck": 0.5})


def pixels(truck: bool = True) -> np.ndarray:
    """A person at (3, 5) of 10 pixels, and a truck, found at half its size."""
    image = np.zeros((40, 80, 3), dtype=np.uint8)
    image[5:15, 3:13] = np.asarray(COLOURS["person"]) * 255
    if truck:
        image[20:30, 50:60] = np.asarray(COLOURS["truck"]) * 255
    return image


def tensor() -> Tensor:
    return torch.from_numpy(pixels()).permute(2, 0, 1)


def test_every_kind_of_image_gives_the_same_detections(weights: Weights, tmp_path: Path) -> None:
    model = topwork.load(weights)
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    given = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.fromarray(pixels()),
        tensor(),
        tensor() / 255,
        (tensor() / 255).double(),
    ]
    for found in topwork.predict(model, given, batch_size=4):
        assert found["boxes"].tolist() == [[3, 5, 13, 15], [52.5, 22.5, 57.5, 27.5]]
        assert found["names"] == ["person", "truck"]
        assert found["labels"].tolist() == [1, 2]
        assert found["scores"].tolist() == pytest.approx([0.9, 0.9])
        assert not any(value.requires_grad for value in (found["boxes"], found["scores"]))
        assert not found["boxes"].is_inference(), "it may go into a computation with gradients"
    assert topwork.predict(model, []) == []
    (one,) = topwork.predict(model, given[0])
    assert one["names"] == ["person", "truck"]
    assert topwork.predict(model, given[:1], score=0.95)[0]["names"] == []


def test_a_module_in_training_is_left_in_it(weights: Weights) -> None:
    model = topwork.load(weights).train()
    topwork.predict(model, tensor())
    assert model.training


def test_a_file_of_weights_will_do(tmp_path: Path) -> None:
    topwork.write_weights(tmp_path / "w.safetensors", topwork.demo_weights())
    (found,) = topwork.predict(tmp_path / "w.safetensors", torch.rand(3, 64, 64), score=0)
    assert set(found) == {"boxes", "scores", "labels", "names"}
    assert len(found["names"]) == len(found["scores"]) > 0


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (tensor().float(), r"image 0 has floats from 0 to 255, expected 0 to 1. Divide by 255"),
        (tensor() / 127 - 1, "image 0 has floats from -1 to 1.*don't normalise"),
        (torch.full((3, 4, 4), torch.nan), "floats from nan to nan"),
        (tensor().permute(1, 2, 0), r"image 0 has shape \[40, 80, 3\], expected \[3, height"),
        (tensor().long(), "image 0 is torch.int64, expected uint8"),
        (pixels(), "image 0 is ndarray, expected a file, a PIL image or a tensor"),
    ],
    ids=["0..255", "normalised", "nan", "channels last", "int64", "array"],
)
def test_an_image_that_is_not_one(weights: Weights, image: object, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        topwork.predict(topwork.load(weights), [image])  # type: ignore[list-item]


def test_what_it_says_of_missing_things(weights: Weights, tmp_path: Path) -> None:
    model = topwork.load(weights)
    with pytest.raises(DataError, match=r"gone\.jpg"):
        topwork.predict(model, tmp_path / "gone.jpg")
    with pytest.raises(TopworkError, match=r"gone\.safetensors: no such file"):
        topwork.predict(tmp_path / "gone.safetensors", tensor())
    del model.columns
    with pytest.raises(EvaluationError, match="doesn't name its labels"):
        topwork.predict(model, tensor())


def test_long_predictions_print_how_much_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where there is no terminal: a line a minute, by a clock that goes 50 s an image."""
    clock = iter(range(0, 10_000, 50))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    shown = progress.ImageProgress("finetuned on test", 4)
    for done in range(1, 5):
        shown.update(done)
    shown.end()
    assert capsys.readouterr().out.splitlines() == [
        "finetuned on test: 4 images",
        "finetuned on test: 2/4 images, 2 min left",
    ]
