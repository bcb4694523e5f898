"""Two branches on one stock: the kept class is the source detector's, bit for bit, whatever the
scion learns; for each of torchvision's families.
"""

import copy
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch

import topwork
from detectors.branching import (
    BUILDERS,
    NAMES,
    PLAN,
    assert_same,
    detected,
    faster_rcnn,
    fcos,
    learn,
    pictures,
    ssd,
    ssdlite,
    weights_of,
)
from topwork.detectors.branches import choose_cut, trunk_blocks
from topwork.detectors.families import family_of
from topwork.errors import ClassPlanError, SurgeryError
from topwork.surgery.branch import branch
from topwork.weights.format import Weights, write_weights


@pytest.mark.parametrize("builder", BUILDERS, ids=lambda builder: builder.__name__)
def test_kept_detections_are_the_sources_before_and_after_training(builder, tmp_path):
    source = weights_of(builder)
    images = pictures(3 if builder is not ssdlite else 2)
    alone = detected(topwork.load(source), images, 1)
    assert all(len(item["scores"]) for item in alone)
    both = branch(source, PLAN)
    assert both.branches.scions[0].cut
    model = topwork.load(both)
    before = copy.deepcopy(model.scion.state_dict())
    assert_same(detected(model, images, 1), alone)
    learn(model, images)
    assert not model.stock.training
    assert any(
        not torch.equal(value, model.scion.state_dict()[name]) for name, value in before.items()
    )
    assert_same(detected(model, images, 1), alone)
    found = model(images)
    for item in found:
        assert set(item["labels"].tolist()) <= {1, 2, 3}
        assert torch.equal(item["scores"], item["scores"].sort(descending=True)[0])
    assert any((item["labels"] > 1).any() for item in found)
    # the stock's tensors are the source's, and none is in the file twice
    stock = model.stock.state_dict()
    assert all(torch.equal(stock[name], tensor) for name, tensor in source.state_dict.items())
    assert_same(detected(copy.deepcopy(model), images, 1), alone)
    names = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    assert len(names) == len(model.state_dict())


@pytest.mark.parametrize("builder", [ssd, fcos, faster_rcnn], ids=lambda one: one.__name__)
def test_the_scion_sees_what_a_whole_detector_sees(builder):
    """Cut or whole: the same detections of every class."""
    source, images = weights_of(builder), pictures(2)
    cut, whole = (topwork.load(branch(source, PLAN, cut=cut)) for cut in ("auto", "none"))
    shared, full = (sum(p.numel() for p in model.scion.parameters()) for model in (cut, whole))
    assert shared < full
    for label in (1, 2, 3):
        assert_same(detected(cut, images, label), detected(whole, images, label))


def test_a_file_holds_each_tensor_once_and_gives_everything_back(tmp_path):
    source, images = weights_of(ssd), pictures()
    model = learn(topwork.load(both := branch(source, PLAN)), images)
    learned = {f"scions.0.{name}": value for name, value in model.scion.state_dict().items()}
    both.state_dict.update(learned)
    path = tmp_path / "both.safetensors"
    write_weights(path, both)
    again = topwork.load(path, builder=ssd)
    for label in (1, 2, 3):
        assert_same(detected(again, images, label), detected(model, images, label))
    alone = topwork.stock(path, builder=ssd)
    assert alone.columns == NAMES
    for label in (1, 2, 3, 4):
        assert_same(detected(alone, images, label), detected(topwork.load(source), images, label))
    kept = set(topwork.read_weights(path, trust=True).state_dict) - set(learned)
    assert kept == set(source.state_dict)


def test_a_second_scion_leaves_stock_and_first_scion_as_they_are():
    source, images = weights_of(ssd), pictures(2)
    first = branch(source, PLAN)
    model = learn(topwork.load(first), images)
    first.state_dict.update({f"scions.0.{n}": v for n, v in model.scion.state_dict().items()})
    plan = {"person": "keep", "box": "keep", "lorry": "keep", "crate": "new", "dog": "keep"}
    second = topwork.load(branch(first, plan, cut="backbone.features.2"))
    old = [detected(model, images, label) for label in (1, 2, 3)]
    for _ in range(2):
        for label, expected in zip((1, 2, 3), old, strict=True):
            assert_same(detected(second, images, label), expected)
        second.train()
        assert second.scions[1].training
        assert not second.scions[0].training
        optimizer = torch.optim.SGD([p for p in second.parameters() if p.requires_grad], lr=0.01)
        truth = [{"boxes": torch.tensor([[9.0, 9.0, 40.0, 50.0]]), "labels": torch.tensor([2])}] * 2
        sum(second(images, truth).values()).backward()
        optimizer.step()
        second.eval()
    dogs = detected(topwork.load(source), images, 4)
    assert_same(detected(second, images, 5), dogs)


def test_cuts_are_proved():
    model, source = ssd(5).eval(), weights_of(ssd)
    family = family_of(model)
    blocks = trunk_blocks(model, family)
    assert blocks[:2] == ["backbone.features.0", "backbone.features.1"]
    # three convolutions below the map that the head takes are the scion's own
    assert choose_cut(model, family, "auto") == "backbone.features.5"
    assert choose_cut(model, family, "none") is None
    # directly before a module that works in place
    images = pictures()
    alone = detected(topwork.load(source), images, 1)
    for cut in ("backbone.features.2", "backbone.features.10", "backbone.features"):
        assert_same(detected(topwork.load(branch(source, PLAN, cut=cut)), images, 1), alone)
    with pytest.raises(SurgeryError, match=r"other features when it's taken apart"):
        choose_cut(model, family, "backbone.extra.0")
    with pytest.raises(SurgeryError, match=r"'backbone.fpn': no block of the trunk; it has"):
        choose_cut(model, family, "backbone.fpn")


@pytest.mark.parametrize("builder", [ssd, fcos], ids=lambda builder: builder.__name__)
def test_mix_of_nothing_is_the_stock_and_mix_moves_kept_scores(builder):
    source, images = weights_of(builder), pictures()
    both = branch(source, PLAN, mix=0.3)
    # untrained, the scion's person is the stock's but for new rows: the mean hardly moves
    stock = detected(topwork.load(source), images, 1)
    mixed = topwork.load(both)
    start = detected(mixed, images, 1)
    for one, other in zip(start, stock, strict=True):
        assert abs(float(one["scores"].max() - other["scores"].max())) < 0.02
    learn(mixed, images, steps=4)
    moved = detected(mixed, images, 1)
    assert not all(torch.equal(a["scores"], b["scores"]) for a, b in zip(moved, start, strict=True))


def test_what_cannot_be_branched_is_refused_with_the_reason():
    source = weights_of(faster_rcnn)
    with pytest.raises(SurgeryError, match=r"mix: family 'rcnn' scores no anchors"):
        branch(source, PLAN, mix=0.1)
    with pytest.raises(SurgeryError, match=r"keeps every class"):
        branch(source, {"person": "keep"})
    from torchvision.models.detection import keypointrcnn_resnet50_fpn

    make = partial(keypointrcnn_resnet50_fpn, weights=None, weights_backbone=None)
    with torch.device("meta"):
        tensors = make(num_classes=2).state_dict()
    names = ("__background__", "person")
    pointed = Weights(
        {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors.items()},
        names,
        "keypointrcnn_resnet50_fpn",
    )
    with pytest.raises(SurgeryError, match=r"Keypoint R-CNN gives every detection keypoints"):
        branch(pointed, {"person": "keep", "box": "new"})
    model = topwork.load(branch(weights_of(ssd), PLAN))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated
        with pytest.raises(SurgeryError, match=r"torch.jit.script: two branches"):
            torch.jit.script(model)


def test_a_branched_file_hands_on_another_class_without_training():
    source, images = weights_of(ssd), pictures()
    first = branch(source, PLAN)
    more = branch(first, {"dog": "keep", "person": "keep", "box": "keep"})
    assert len(more.branches.scions) == 1
    assert more.columns == ("__background__", "dog", "person", "box")
    model, alone = topwork.load(more), topwork.load(source)
    assert_same(detected(model, images, 1), detected(alone, images, 4))
    assert_same(detected(model, images, 2), detected(alone, images, 1))
    assert_same(detected(model, images, 3), detected(topwork.load(first), images, 2))
    with pytest.raises(SurgeryError, match=r"these weights hold a stock and branches on it"):
        topwork.graft(first, {"person": "keep"})
    with pytest.raises(SurgeryError, match=r"onto: box would be renamed"):
        branch(first, {"person": "keep", "crate": {"keep": "box"}, "van": "new"})
    with pytest.raises(ClassPlanError, match=r"crate wants 'crate', which isn't among"):
        branch(first, {"person": "keep", "crate": "keep"})


def test_a_branched_file_can_be_looked_into():
    source = weights_of(ssd)
    both = branch(source, PLAN)
    table = topwork.inspect(both).frame()
    heads = table[table["role"] == "scores"]
    assert sorted(heads["tensor"].str.startswith("scions.0.")) == [False] * 4 + [True] * 4
    moved = topwork.diff(source, both).frame()
    own = moved[~moved["tensor"].str.startswith("scions.")]
    assert set(own["status"]) == {"same"}
    from topwork.surgery.inspection import inspect_classes

    assert list(inspect_classes(both).frame()["class"][:4]) == ["__background__", *PLAN]


def test_a_stock_whose_builder_changed_is_refused(tmp_path):
    builder = tmp_path / "own.py"
    builder.write_text("from detectors.branching import ssd as build\n")
    name = f"{builder}:build"
    from topwork.weights.builder_files import builder_hash

    source = replace(
        weights_of(ssd), builder=name, provenance={"builder_sha256": builder_hash(name)}
    )
    both = branch(source, PLAN)
    assert topwork.load(both).columns[1] == "person"
    builder.write_text("from detectors.branching import ssd as build  # changed\n")
    for way in (topwork.load, topwork.stock):
        with pytest.raises(SurgeryError, match=r"changed since the weights were fetched"):
            way(both)
