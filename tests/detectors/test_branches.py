"""Two branches on one stock: the kept class is the source detector's, bit for bit, whatever the
scion learns; for each of torchvision's families.
"""

import copy
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision.models.detection.ssdlite import ssdlite320_mobilenet_v3_large
from torchvision.ops import MultiScaleRoIAlign

import topwork
from topwork.detectors.branches import choose_cut, trunk_blocks
from topwork.detectors.families import family_of
from topwork.errors import SurgeryError
from topwork.surgery.branch import branch
from topwork.weights.format import Weights, write_weights

NAMES = ("__background__", "person", "car", "tree", "dog")
PLAN = {"person": "keep", "box": "new", "lorry": {"like": "car"}}
SIDE = 96


class InPlace(nn.Module):
    """As SSD's VGG: single layers in a row, every second one in place."""

    def __init__(self) -> None:
        super().__init__()
        layers = []
        for before, after in ((3, 8), (8, 8), (8, 12), (12, 12), (12, 16), (16, 16)):
            stride = 2 if before != after else 1
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.extra = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(inplace=True))]
        )

    def forward(self, x):
        low = self.features(x)
        return {"0": 2 * nn.functional.normalize(low), "1": self.extra[0](low)}


def _fpn(levels, extra=None):
    return _resnet_fpn_extractor(
        resnet18(weights=None), 5, returned_layers=levels, extra_blocks=extra
    )


def _anchors(count, ratios=(0.5, 1.0, 2.0)):
    return AnchorGenerator(tuple((16 * 2**k,) for k in range(count)), (ratios,) * count)


def ssd(num_classes):
    anchors = DefaultBoxGenerator([[2], [2]], scales=[0.2, 0.4, 0.6])
    head = SSDHead([16, 16], anchors.num_anchors_per_location(), num_classes)
    return SSD(InPlace(), anchors, (SIDE, SIDE), num_classes, head=head, score_thresh=0.001)


def ssdlite(num_classes):
    return ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=num_classes
    )


def retinanet(num_classes):
    return RetinaNet(
        _fpn([2, 3, 4]),
        num_classes,
        anchor_generator=_anchors(4),
        min_size=SIDE,
        max_size=SIDE,
        score_thresh=0.0,
        detections_per_img=200,
    )


def fcos(num_classes):
    return FCOS(
        _fpn([2, 3, 4]),
        num_classes,
        anchor_generator=_anchors(4, (1.0,)),
        min_size=SIDE,
        max_size=SIDE,
        score_thresh=0.0,
        detections_per_img=200,
    )


def _rcnn(kind, num_classes, **more):
    return kind(
        _fpn([1, 2, 3, 4]),
        num_classes,
        rpn_anchor_generator=_anchors(5),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 5, 2),
        min_size=SIDE,
        max_size=SIDE,
        rpn_post_nms_top_n_test=30,
        box_score_thresh=0.0,
        **more,
    )


def faster_rcnn(num_classes):
    return _rcnn(FasterRCNN, num_classes)


def mask_rcnn(num_classes):
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 6, 2)
    return _rcnn(MaskRCNN, num_classes, mask_roi_pool=pool)


BUILDERS = (ssd, ssdlite, retinanet, fcos, faster_rcnn, mask_rcnn)


def weights_of(builder, seed=0):
    """Random weights with batch norms that do something, and heads that differ by class."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = builder(len(NAMES))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.8, 1.2)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.normal_(module.bias, std=0.5)
    name = f"{Path(__file__).resolve()}:{builder.__name__}"
    return Weights(model.state_dict(), NAMES, name)


def pictures(count=3):
    made = torch.Generator().manual_seed(5)
    return [torch.rand(3, 80 + 8 * k, 96 - 8 * k, generator=made) for k in range(count)]


def targets(images, masks):
    made = []
    for image in images:
        boxes = torch.tensor([[5.0, 8.0, 50.0, 60.0], [20.0, 10.0, 60.0, 44.0]])
        made.append({"boxes": boxes, "labels": torch.tensor([2, 3])})
        if masks:
            grids = torch.zeros(2, *image.shape[-2:], dtype=torch.uint8)
            for grid, (x1, y1, x2, y2) in zip(grids, boxes.int().tolist(), strict=True):
                grid[y1:y2, x1:x2] = 1
            made[-1]["masks"] = grids
    return made


@torch.no_grad()
def detected(model, images, label):
    """Every image's detections of one label, as the model orders them."""
    return [
        {key: value[item["labels"] == label] for key, value in item.items() if key != "labels"}
        for item in model(images)
    ]


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert torch.equal(one[key], other[key]), key


def learn(model, images, steps=2):
    model.train()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.001, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        losses = model(images, targets(images, hasattr(model.stock, "roi_heads") and masked(model)))
        sum(losses.values()).backward()
        optimizer.step()
    return model.eval()


def masked(model):
    return model.stock.roi_heads.has_mask()


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


@pytest.mark.parametrize("builder", BUILDERS, ids=lambda builder: builder.__name__)
def test_the_scion_sees_what_a_whole_detector_sees(builder):
    """Cut or whole: the same new-class detections, the same losses."""
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
    source, images = weights_of(ssdlite), pictures(2)
    first = branch(source, PLAN)
    model = learn(topwork.load(first), images)
    first.state_dict.update({f"scions.0.{n}": v for n, v in model.scion.state_dict().items()})
    plan = {"person": "keep", "box": "keep", "lorry": "keep", "crate": "new", "dog": "keep"}
    second = topwork.load(branch(first, plan, cut="backbone.features.0.6"))
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


@pytest.mark.parametrize("builder", [ssd, retinanet, fcos], ids=lambda builder: builder.__name__)
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
