"""EfficientDet from PyPI's `effdet`, as a builder for topwork: what a detector that isn't
torchvision's has to say for itself.
"""

import warnings

import torch

from topwork.detectors.families import Family

with warnings.catch_warnings():
    warnings.simplefilter(
        "ignore"
    )  # effdet scripts its functions when it is imported, which torch 2.14 deprecates
    from effdet import EfficientDet, get_efficientdet_config
    from effdet.bench import _post_process


def build(num_classes, image_size=128):
    """EfficientDet counts real classes alone: background has no rows."""
    config = get_efficientdet_config("tf_efficientdet_lite0")
    config.num_classes = num_classes - 1
    config.image_size = (image_size, image_size)
    return EfficientDet(config, pretrained_backbone=False)


def probe(model):
    """Every candidate's score and label, by effdet's own post-processing."""
    scores, boxes = model(torch.randn(1, 3, *model.config.image_size, dtype=torch.float64))
    count = sum(level[0].numel() for level in scores)
    logits, _, _, classes = _post_process(
        scores, boxes, model.config.num_levels, model.config.num_classes, max_detection_points=count
    )
    return [{"scores": logits[0, :, 0].sigmoid(), "labels": classes[0] + 1}]


build.family = Family(
    "efficientdet", probe, layouts={"scores": "anchor-major"}, trunk=("backbone.", "fpn.")
)
