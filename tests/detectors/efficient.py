"""EfficientDet from PyPI's `effdet`, as builders for topwork: what a detector that isn't
torchvision's has to declare.

`build` makes the bare network: enough for surgery. `detector` makes a whole detector, called as
torchvision's are, whose family also declares what distillation, the feature cache and the export
need.
"""

import warnings
from collections import OrderedDict
from dataclasses import replace

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import batched_nms, clip_boxes_to_image

from topwork.detectors.families import Family, Limits

with warnings.catch_warnings():
    # effdet scripts its functions when it is imported, which torch 2.14 deprecates
    warnings.simplefilter("ignore")
    from effdet import EfficientDet, get_efficientdet_config
    from effdet.anchors import AnchorLabeler, Anchors, decode_box_outputs
    from effdet.bench import _post_process
    from effdet.loss import DetectionLoss


def build(num_classes, image_size=128, drop_path=0.2):
    """EfficientDet counts real classes alone: background has no rows."""
    config = get_efficientdet_config("tf_efficientdet_lite0")
    config.num_classes = num_classes - 1
    config.image_size = (image_size, image_size)
    config.backbone_args = {"drop_path_rate": drop_path}
    config.jit_loss = False
    return EfficientDet(config, pretrained_backbone=False)


def candidates(model, scores, boxes):
    """Every candidate's score and label, by effdet's own post-processing."""
    count = sum(level[0].numel() for level in scores)
    logits, _, _, classes = _post_process(
        scores, boxes, model.config.num_levels, model.config.num_classes, max_detection_points=count
    )
    return [{"scores": logits[0, :, 0].sigmoid(), "labels": classes[0] + 1}]


def probe(model):
    pixels = torch.randn(1, 3, *model.config.image_size, dtype=torch.float64)
    return candidates(model, *model(pixels))


build.family = Family(
    "efficientdet", probe, layouts={"scores": "anchor-major"}, trunk=("backbone.", "fpn.")
)


class Trunk(nn.Module):
    """Backbone and BiFPN: feature maps by name."""

    def __init__(self, net):
        super().__init__()
        self.backbone, self.fpn = net.backbone, net.fpn

    def forward(self, pixels):
        maps = self.fpn(self.backbone(pixels))
        return OrderedDict((str(level), value) for level, value in enumerate(maps))


class AnchorBoxes(nn.Module):
    """The same anchors for every image."""

    def __init__(self, config):
        super().__init__()
        self.anchors = Anchors.from_config(config)

    def forward(self, images: ImageList) -> list[Tensor]:
        boxes = self.anchors.boxes[:, [1, 0, 3, 2]]  # effdet's are (y1, x1, y2, x2)
        return [boxes] * len(images.image_sizes)


class Detector(nn.Module):
    """EfficientDet as torchvision calls its detectors: losses in training, detections else."""

    def __init__(self, net):
        super().__init__()
        self.config = net.config
        height, width = net.config.image_size
        self.transform = GeneralizedRCNNTransform(
            height, width, [0.5] * 3, [0.5] * 3, size_divisible=1, fixed_size=(width, height)
        )
        self.trunk = Trunk(net)
        self.class_net, self.box_net = net.class_net, net.box_net
        self.anchors = AnchorBoxes(net.config)
        self.labeler = AnchorLabeler(self.anchors.anchors, net.config.num_classes)
        self.loss = DetectionLoss(net.config)
        self.score_thresh, self.nms_thresh, self.detections_per_img = 0.05, 0.5, 100

    def forward(self, images, targets=None):
        sizes = [image.shape[-2:] for image in images]
        resized, targets = self.transform(images, targets)
        maps = list(self.trunk(resized.tensors).values())
        logits, deltas = self.class_net(maps), self.box_net(maps)
        anchors = self.anchors(resized)
        if self.training:
            labelled = self.labeler.batch_label_anchors(
                [target["boxes"][:, [1, 0, 3, 2]] for target in targets],
                [target["labels"].to(torch.float32) for target in targets],
            )
            _, class_loss, box_loss = self.loss(logits, deltas, *labelled)
            return {"classification": class_loss, "boxes": box_loss * self.config.box_loss_weight}
        scores, deltas = logits_of(logits)[..., 1:].sigmoid(), deltas_of(deltas)
        found = [
            self._detections(*parts, size)
            for *parts, size in zip(scores, deltas, anchors, resized.image_sizes, strict=True)
        ]
        return self.transform.postprocess(found, resized.image_sizes, sizes)

    def _detections(self, scores, deltas, anchors, size):
        place, label = torch.where(scores > self.score_thresh)
        boxes = decode_box_outputs(deltas[place], anchors[place][:, [1, 0, 3, 2]], output_xyxy=True)
        boxes, scores = clip_boxes_to_image(boxes, size), scores[place, label]
        keep = batched_nms(boxes, scores, label, self.nms_thresh)[: self.detections_per_img]
        return {"boxes": boxes[keep], "scores": scores[keep], "labels": label[keep] + 1}


def _flat(levels: list[Tensor], numbers: int) -> Tensor:
    """[N, anchors * numbers, H, W] a level -> [N, places, numbers], in the anchors' order."""
    return torch.cat(
        [level.permute(0, 2, 3, 1).reshape(len(level), -1, numbers) for level in levels], 1
    )


def logits_of(levels: list[Tensor]) -> Tensor:
    """The class net's output as [N, places, columns]; background has no rows, column 0 is 0."""
    rows = levels[0].shape[1] // ANCHORS
    return nn.functional.pad(_flat(levels, rows), (1, 0))


def deltas_of(levels: list[Tensor]) -> Tensor:
    """The box net's output as [N, places, 4]."""
    return _flat(levels, 4)


ANCHORS = 9  # a place of a map: 3 scales, 3 aspect ratios


def detector(num_classes, image_size=128, drop_path=0.0):
    """The whole detector."""
    return Detector(build(num_classes, image_size, drop_path))


def _probe_detector(model):
    maps = list(model.trunk(torch.randn(1, 3, *model.config.image_size).double()).values())
    return candidates(model, model.class_net(maps), model.box_net(maps))


detector.family = Family(
    "efficientdet-whole",
    _probe_detector,
    layouts={"scores": "anchor-major"},
    trunk=("trunk.",),
    backbone="trunk",
    score_head="class_net",
    logits_of=logits_of,
    box_head="box_net",
    deltas_of=deltas_of,
    anchors="anchors",
    input_size=lambda model: tuple(model.config.image_size),
    limits=lambda model: Limits(model.score_thresh, model.detections_per_img, model.nms_thresh),
)


def without_boxes(num_classes):
    """The same detector, of whose boxes its family says nothing."""
    return detector(num_classes)


without_boxes.family = replace(detector.family, box_head=None, anchors=None)
