"""ONNX against PyTorch: every builder that torch exports, absorbed columns, class names, and
disagreement that is caught.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from detectors import efficient
from detectors.spread import spread_scores
from topwork.demo.worlds import STREET, draw_split
from topwork.detectors.builders import build, load, torchvision_builders
from topwork.detectors.families import Limits, family_of
from topwork.download.shipped import demo_weights
from topwork.errors import ExportError
from topwork.export.onnx import TOLERANCE, class_names, export_onnx, parity_of
from topwork.surgery.branch import branch
from topwork.surgery.graft import graft
from topwork.weights.format import Weights

onnx = pytest.importorskip("onnx", reason="the extra `export` isn't installed")
pytest.importorskip("onnxruntime", reason="the extra `export` isn't installed")

COLUMNS = ("__background__", "person", "helmet", "forklift")


def images() -> list[torch.Tensor]:
    """Two smooth pictures of different sizes."""
    generator = torch.Generator().manual_seed(5)
    rough = [
        torch.rand(1, 3, height, width, generator=generator) for height, width in ((8, 10), (10, 7))
    ]
    return [
        torch.nn.functional.interpolate(image, scale_factor=24, mode="bicubic")[0]
        .clamp(0, 1)
        .contiguous()
        for image in rough
    ]


def detector(builder: str, absorbed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(builder, len(COLUMNS), absorbed=absorbed).eval()
    spread_scores(model, images(), len(COLUMNS) + absorbed)
    model.columns = COLUMNS  # type: ignore[assignment]
    return model


def test_the_demo_absorbed_agrees_and_names_its_classes(tmp_path: Path) -> None:
    """The shipped detector, trained, its head cut to three classes with the rest absorbed, on a
    street picture and a part of one.
    """
    draw_split(STREET, tmp_path / "street", "test", 2, 7, processes=1)
    pictures = [
        pil_to_tensor(Image.open(file)).float().div(255)
        for file in sorted((tmp_path / "street/test/images").iterdir())
    ]
    pictures[1] = pictures[1][:, :200, 30:].contiguous()
    shutil.rmtree(tmp_path / "street")
    grafted = graft(
        demo_weights(),
        {"person": "keep", "tree": "keep", "forklift": {"like": ["truck", "car"]}},
        dropped="absorb",
    )
    path = tmp_path / "model.onnx"
    parity = export_onnx(load(grafted.weights), path, pictures, details={"licence": "none"})
    assert parity.images == 2
    assert parity.detections > 2
    assert parity.scores <= TOLERANCE
    assert parity.boxes <= TOLERANCE
    assert class_names(path) == {1: "person", 2: "tree", 3: "forklift"}
    properties = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
    assert json.loads(properties["columns"]) == ["__background__", "person", "tree", "forklift"]
    assert properties["licence"] == "none"
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mix", [0.0, 0.3])
def test_two_branches_are_one_graph(tmp_path: Path, mix: float) -> None:
    """With detections on a street picture, and without any on a grey one."""
    draw_split(STREET, tmp_path / "street", "test", 1, 7, processes=1)
    (file,) = (tmp_path / "street/test/images").iterdir()
    street = pil_to_tensor(Image.open(file)).float().div(255)
    grey = torch.full((3, 200, 150), 0.5)
    plan = {"person": "keep", "bus": "keep", "coach": {"like": "bus"}}
    model = load(branch(demo_weights(), plan, mix=mix))
    for part in (model.stock, *model.scions):
        part.score_thresh = 0.05
    assert len(model([street])[0]["labels"].unique()) == 3
    assert not len(model([grey])[0]["labels"])
    path = tmp_path / "model.onnx"
    parity = export_onnx(model, path, [street, grey, street[:, :200, 30:].contiguous()])
    assert parity.detections > 2
    assert max(parity.scores, parity.boxes) <= TOLERANCE
    assert class_names(path) == {1: "person", 2: "bus", 3: "coach"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("builder", "absorbed"),
    [(name, 0) for name in torchvision_builders()] + [("fasterrcnn_mobilenet_v3_large_320_fpn", 3)],
)
def test_every_torchvision_builder_agrees(tmp_path: Path, builder: str, absorbed: int) -> None:
    """As it is, and one of the R-CNN family with absorbed columns, too."""
    parity = export_onnx(detector(builder, absorbed), tmp_path / "model.onnx", images())
    assert parity.detections > 10
    assert max(parity.scores, parity.boxes) <= TOLERANCE


def test_a_detector_of_ones_own_agrees(tmp_path: Path) -> None:
    """EfficientDet of PyPI's `effdet`, whose family declares its limits."""
    torch.manual_seed(0)
    model = efficient.detector(len(COLUMNS))
    with torch.no_grad():
        model.class_net.predict.conv_pw.weight.mul_(20)
    path = str(Path(efficient.__file__).resolve())
    weights = Weights(model.state_dict(), COLUMNS, f"{path}:detector")
    loaded = load(weights)
    parity = export_onnx(loaded, tmp_path / "model.onnx", images())
    assert parity.detections > 10
    assert max(parity.scores, parity.boxes) <= TOLERANCE
    assert family_of(loaded).limits(loaded) == Limits(0.05, 100, 0.5)  # type: ignore[misc]


def found(
    scores: list[float], shift: float = 0.0, labels: list[int] | None = None
) -> dict[str, np.ndarray]:
    count = len(scores)
    boxes = np.array(
        [[10.0 * i, 0, 10.0 * i + 8, 20] for i in range(count)], dtype=np.float32
    ).reshape(count, 4) + np.float32(shift)
    return {
        "boxes": boxes,
        "scores": np.array(scores, dtype=np.float32),
        "labels": np.array(labels or [1] * count),
    }


def test_parity_by_hand() -> None:
    parity = parity_of(found([0.9, 0.8]), found([0.90005, 0.8], shift=0.015625), side=200)
    assert parity.boxes_px == 0.015625
    assert parity.boxes == 0.015625 / 200
    assert parity.scores == pytest.approx(0.00005, abs=1e-7)
    assert parity.at_the_edge == 0


def test_order_of_equals_does_not_matter() -> None:
    ours = found([0.5, 0.5, 0.5])
    theirs = {name: values[::-1] for name, values in ours.items()}
    assert parity_of(ours, theirs, 100).boxes == 0


@pytest.mark.parametrize(
    ("theirs", "counts"),
    [
        (found([0.9, 0.8, 0.71]), (1, 1)),
        (found([0.9, 0.8, 0.7], shift=0.05), (3, 3)),
        (found([0.9, 0.8, 0.7], labels=[1, 2, 1]), (1, 1)),
        (found([0.9, 0.7]), (2, 1)),
    ],
    ids=["score", "box", "label", "one missing in the middle"],
)
def test_disagreement_is_an_error_with_figures(
    theirs: dict[str, np.ndarray], counts: tuple[int, int]
) -> None:
    words = (
        rf"image 3: ONNX and PyTorch disagree: {counts[0]} of PyTorch's 3 detections and"
        rf" {counts[1]} of ONNX's .* label \d, score 0\.\d+"
    )
    with pytest.raises(ExportError, match=words):
        parity_of(found([0.9, 0.8, 0.7]), theirs, 100, "image 3")


def test_a_detection_at_the_cut_may_be_in_one_alone() -> None:
    # the last of as many as may be given
    # room for one, and two that are as good
    cases = [
        (found([0.9, 0.05001]), found([0.9]), Limits(0.05, 100, 0.5)),  # just over the threshold
        (
            found([0.9, 0.6]),
            found([0.9, 0.6], labels=[1, 2]),
            Limits(0.05, 2, 0.5),
        ),
        (
            found([0.9, 0.6, 0.2]),
            found([0.9, 0.6, 0.2], labels=[1, 1, 2]),
            Limits(0.05, 3, 0.5),
        ),
    ]
    assert [
        parity_of(ours, theirs, 100, limits=limits).at_the_edge for ours, theirs, limits in cases
    ] == [1, 2, 2]
    for ours, theirs, _ in cases:
        with pytest.raises(ExportError, match="disagree"):
            parity_of(ours, theirs, 100)


def one_of(*boxes: tuple[float, float, float], label: int = 1) -> dict[str, np.ndarray]:
    """Boxes 20 high that lie on one line: (score, left, right)."""
    places = np.array([[left, 0, right, 20] for _, left, right in boxes], dtype=np.float32).reshape(
        -1, 4
    )
    return {
        "boxes": places,
        "scores": np.array([s for s, *_ in boxes], dtype=np.float32),
        "labels": np.full(len(boxes), label),
    }


ROUNDING = {
    # two boxes that overlap by 0.6 with one score: either may suppress the other
    "order of equals": (
        one_of((0.9, 100, 108), (0.3, 0, 8)),
        one_of((0.9, 100, 108), (0.3, 2, 10)),
    ),
    # the same, and what the one that is gone had suppressed comes to light
    "in consequence": (
        one_of((0.9, 100, 108), (0.3, 0, 8), (0.1, 4, 12), (0.05, 50, 58)),
        one_of((0.9, 100, 108), (0.3, 2, 10), (0.05, 50, 58)),
    ),
    # an overlap of exactly 0.5 with a better one, which is there on both sides
    "overlap at the limit": (
        one_of((0.9, 0, 9), (0.3, 3, 12), (0.05, 50, 58)),
        one_of((0.9, 0, 9), (0.05, 50, 58)),
    ),
    # the last candidates of a class have one score: either may go on
    "lowest of its class": (
        one_of((0.9, 100, 108), (0.3, 0, 8)),
        one_of((0.9, 100, 108), (0.3, 50, 58)),
    ),
}
REAL = {
    "a better one is gone": (
        one_of((0.9, 100, 108), (0.31, 0, 8), (0.05, 50, 58)),
        one_of((0.9, 100, 108), (0.05, 50, 58)),
    ),
    "scores differ": (
        one_of((0.9, 100, 108), (0.31, 0, 8), (0.05, 50, 58)),
        one_of((0.9, 100, 108), (0.3, 2, 10), (0.05, 50, 58)),
    ),
    "they hardly overlap": (
        one_of((0.9, 100, 108), (0.3, 0, 8), (0.05, 50, 58)),
        one_of((0.9, 100, 108), (0.3, 5, 13), (0.05, 50, 58)),
    ),
    "its score is off": (
        one_of((0.9, 100, 108), (0.6, 50, 58), (0.3, 0, 8), (0.05, 20, 28)),
        one_of((0.9, 100, 108), (0.60008, 50, 58), (0.30015, 0, 8), (0.05, 20, 28)),
    ),
    "the lowest one's score is off": (
        one_of((0.6, 50, 58), (0.3, 0, 8)),
        one_of((0.60008, 50, 58), (0.30015, 0, 8)),
    ),
    "all are gone": (one_of((0.9, 100, 108), (0.3, 0, 8)), one_of()),
    "the lowest is gone": (one_of((0.9, 100, 108), (0.3, 0, 8)), one_of((0.9, 100, 108))),
}


@pytest.mark.parametrize(("ours", "theirs"), ROUNDING.values(), ids=ROUNDING.keys())
def test_what_rounding_decides_is_counted(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]
) -> None:
    limits = Limits(0.01, 100, 0.5)
    assert (
        parity_of(ours, theirs, 100, limits=limits).at_the_edge
        == parity_of(theirs, ours, 100, limits=limits).at_the_edge
        > 0
    )
    with pytest.raises(ExportError, match="disagree"):  # of a detector whose limits aren't known
        parity_of(ours, theirs, 100)


@pytest.mark.parametrize(("ours", "theirs"), REAL.values(), ids=REAL.keys())
def test_what_rounding_cannot_decide_is_an_error(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]
) -> None:
    for one, other in ((ours, theirs), (theirs, ours)):
        with pytest.raises(ExportError, match="disagree"):
            parity_of(one, other, 100, limits=Limits(0.01, 100, 0.5))


def with_masks(shift: float, few: float, count: int = 20) -> dict[str, np.ndarray]:
    """Detections whose masks and keypoints are shifted by this much, the first one's by `few`
    more.
    """
    move = np.full(count, shift, dtype=np.float32)
    move[0] += few
    masks = np.zeros((count, 1, 6, 6), dtype=np.float32)
    masks[:, :, 2:4, 2:4] = 0.5 + move[:, None, None, None]
    keypoints = np.ones((count, 3, 3), dtype=np.float32)
    keypoints[..., :2] = 50 + move[:, None, None]
    return found([0.9] * count) | {"masks": masks, "keypoints": keypoints}


def test_masks_and_keypoints_are_held_but_for_a_few() -> None:
    parity = parity_of(with_masks(0, 0), with_masks(0.0078125, few=0.25), side=100)
    assert parity.masks == 0.2578125
    assert parity.keypoints == 0.0078125
    only = {name: value for name, value in with_masks(0.03125, 0).items() if name != "masks"}
    with pytest.raises(
        ExportError,
        match=(
            r"masks of ONNX and PyTorch disagree: 20 of 20 differ by more than 0\.01 in"
            r" probability, 0\.0312"
        ),
    ):
        parity_of(with_masks(0, 0), with_masks(0.03125, 0), side=100)
    with pytest.raises(
        ExportError,
        match=r"keypoints of ONNX and PyTorch disagree: 60 of 60 differ by more than 0\.01 pixels",
    ):
        parity_of(
            {name: value for name, value in with_masks(0, 0).items() if name != "masks"},
            only,
            side=100,
        )


def test_refusals(tmp_path: Path) -> None:
    model = torch.nn.Conv2d(3, 1, 1)
    with pytest.raises(ExportError, match="no `columns`"):
        export_onnx(model, tmp_path / "x.onnx", images())
    model.columns = COLUMNS  # type: ignore[assignment]
    with pytest.raises(ExportError, match="no image to check on"):
        export_onnx(model, tmp_path / "x.onnx", [])
    (tmp_path / "no.onnx").write_bytes(b"no ONNX")
    with pytest.raises(ExportError, match=r"no\.onnx: not an ONNX file"):
        class_names(tmp_path / "no.onnx")


class Untraceable(torch.nn.Module):
    """Its output depends on the image in a way that tracing freezes: the check has to notice."""

    columns = COLUMNS

    def forward(self, pictures: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        count = 1 + int(pictures[0].shape[-1] > 200)
        boxes = torch.ones(count, 4) * pictures[0].mean()
        return [
            {
                "boxes": boxes,
                "scores": torch.full((count,), 0.5) + boxes[:, 0] * 0,
                "labels": torch.ones(count, dtype=torch.int64),
            }
        ]


def test_a_frozen_trace_is_caught_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"before")
    with pytest.raises(ExportError, match=r"disagree.*The detector's family declares no `limits`"):
        export_onnx(Untraceable(), tmp_path / "model.onnx", images())
    assert (tmp_path / "model.onnx").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_images_without_a_detection_compare_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from topwork.cli import main
    from topwork.weights.format import write_weights

    monkeypatch.chdir(tmp_path)
    weights = graft(demo_weights(), {"person": "keep"}, dropped="remove").weights
    state = dict(weights.state_dict)
    for name, tensor in state.items():
        if "classification_head" in name and name.endswith(".1.bias"):
            # anchors x (background, person): nothing but background
            state[name] = tensor.clone().view(-1, 2).add_(torch.tensor([50.0, 0.0])).ravel()
    write_weights(Path("w.safetensors"), replace(weights, state_dict=state))
    Image.new("RGB", (64, 48)).save("blank.png")
    command = ["export", "w.safetensors", "--out", "out", "--images", "blank.png"]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "nothing was compared with PyTorch: neither has a detection on the 1 images" in output
    assert "agrees" not in output
    assert "It wasn't compared with PyTorch" in Path("out/README.md").read_text()
