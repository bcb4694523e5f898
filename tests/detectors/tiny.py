"""Small detectors of each torchvision family, and some that aren't torchvision's; quick enough for
property-based tests.
"""

from collections import OrderedDict

import torch
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops import MultiScaleRoIAlign

from topwork.detectors.families import Family, fold_any


class Backbone(nn.Module):
    def __init__(self, channels=(8, 8)):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, 4, 1) for a, b in zip((3, *channels), channels, strict=False)
        )
        self.out_channels = list(channels) if len(set(channels)) > 1 else channels[0]

    def forward(self, x):
        maps = OrderedDict()
        for index, conv in enumerate(self.convs):
            x = conv(x)
            maps[str(index)] = x
        return maps


def ssd(num_classes, **kwargs):
    return SSD(
        Backbone((8, 12)), DefaultBoxGenerator([[2], [2, 3]]), (32, 32), num_classes, **kwargs
    )


def _anchors():
    return AnchorGenerator(((16,), (32,)), ((0.5, 1.0, 2.0),) * 2)


def faster_rcnn(num_classes):
    pool = MultiScaleRoIAlign(["0", "1"], 3, 2)
    return FasterRCNN(
        Backbone(),
        num_classes,
        rpn_anchor_generator=_anchors(),
        box_roi_pool=pool,
        min_size=32,
        max_size=32,
        rpn_post_nms_top_n_test=20,
    )


def mask_rcnn(num_classes):
    pool, masks = MultiScaleRoIAlign(["0", "1"], 3, 2), MultiScaleRoIAlign(["0", "1"], 4, 2)
    return MaskRCNN(
        Backbone(),
        num_classes,
        rpn_anchor_generator=_anchors(),
        box_roi_pool=pool,
        mask_roi_pool=masks,
        min_size=32,
        max_size=32,
        rpn_post_nms_top_n_test=20,
    )


def retinanet(num_classes):
    return RetinaNet(
        Backbone((32, 32)), num_classes, anchor_generator=_anchors(), min_size=32, max_size=32
    )


def fcos(num_classes):
    return FCOS(
        Backbone((32, 32)),
        num_classes,
        anchor_generator=AnchorGenerator(((16,), (32,)), ((1.0,),) * 2),
        min_size=32,
        max_size=32,
    )


class Unusual(nn.Module):
    """A head like no other: rows lie as [2 branches, classes, 3 anchors], background isn't among
    them, scores are sigmoids.
    """

    def __init__(self, num_classes, groups=1):
        super().__init__()
        self.classes, self.groups = num_classes - 1, groups
        self.trunk = nn.Conv2d(3, 8, 4, 4)
        self.logits = nn.Conv2d(8, 2 * self.classes * 3, 1)
        self.boxes = nn.Conv2d(8, 4 * 6, 1)

    def forward(self, images):
        detections = []
        for image in images:
            features = self.trunk(image[None])
            # [branch, class, anchor, place]
            logits = self.logits(features).reshape(2, self.classes, 3, -1)
            scores = logits.sigmoid()
            labels = torch.arange(1, self.classes + 1).reshape(1, -1, 1, 1).expand_as(scores)
            boxes = (
                self.boxes(features).reshape(2, 1, 3, 4, -1).movedim(3, -1).expand(*scores.shape, 4)
            )
            detections.append(
                {
                    "scores": scores.flatten(),
                    "labels": labels.flatten(),
                    "boxes": boxes.reshape(-1, 4),
                }
            )
        return detections


def unusual(num_classes):
    return Unusual(num_classes)


class Scrambled(Unusual):
    """No layout fits: the classes lie in reverse order."""

    def forward(self, images):
        detections = super().forward(images)
        for item in detections:
            item["labels"] = self.classes + 1 - item["labels"]
        return detections


def scrambled(num_classes):
    return Scrambled(num_classes)


class Silent(Unusual):
    """Shows only what scores above one half, as a detector in use does; so not every class can be
    seen.
    """

    def forward(self, images):
        return [
            {key: value[item["scores"] > 0.9999] for key, value in item.items()}
            for item in super().forward(images)
        ]


def silent(num_classes):
    return Silent(num_classes)


def deaf(num_classes):
    """Ignores num_classes."""
    return Unusual(7)


class Crossed(Unusual):
    """Has a tensor that runs over classes twice."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.confusion = nn.Parameter(torch.zeros(num_classes, num_classes))


def crossed(num_classes):
    return Crossed(num_classes)


class SoftmaxLinear(nn.Module):
    """A detector of points with a softmax head of its own, to absorb into."""

    def __init__(self, num_classes):
        super().__init__()
        self.backbone = nn.Linear(5, 6)
        self.head = nn.Linear(6, num_classes)

    def forward(self, x):
        return self.head(self.backbone(x).relu())


class Tied(Unusual):
    """Two names for one layer, as heads have that share their weights."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.again = self.logits


def tied(num_classes):
    return Tied(num_classes)


def _probe_points(model):
    scores = model(torch.randn(9, 5, dtype=torch.float64)).softmax(-1)
    labels = torch.arange(scores.shape[1]).expand_as(scores)
    return [{"scores": scores.flatten(), "labels": labels.flatten()}]


def points(num_classes):
    return SoftmaxLinear(num_classes)


points.family = Family("points", _probe_points, score_head="head", fold=fold_any)
