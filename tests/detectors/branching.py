"""Small detectors of torchvision's families with trunks worth cutting, and what tests of two
branches ask of them.
"""

from pathlib import Path

import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision.models.detection.ssdlite import ssdlite320_mobilenet_v3_large
from torchvision.ops import MultiScaleRoIAlign

from topwork.weights.format import Weights

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
