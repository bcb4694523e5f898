"""Detector families: what the makers of a detector know about its head, and how to see one class's
score in isolation.

A *probe* runs a detector's own head and post-processing on random features and returns every
candidate box of every class, so that gradients tell which rows of which tensor a class's score,
boxes and masks depend on. Torchvision's four families are here; a builder of one's own brings a
`Family` as its attribute `family`:

    def build(num_classes: int) -> nn.Module: ...
    build.family = Family("mine", probe=my_probe)
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.ssd import SSD

Detections = list[dict[str, Tensor]]
Role = Literal["scores", "boxes", "masks"]
ROLES: tuple[Role, ...] = ("scores", "boxes", "masks")
IMAGE_SIDE = 64
EVERYTHING = 1_000_000


@dataclass(frozen=True)
class Family:
    """What is declared about a kind of detector; all of it is proved before it is used.

    Attributes:
        name: for receipts and messages.
        probe: detector (float64, random rows) -> one dict of differentiable `scores` float[N],
            `labels` int64[N] (columns) and, where they are class-dependent, `boxes` and `masks`;
            every candidate of every class, nothing suppressed.
        isolate: called first, on the freshly built detector: may put random features in the place
            of large parts that don't depend on the classes, so that the proof costs little time and
            memory.
        layouts: role -> declared layout of a multiplied class axis (`class-major`, `anchor-major`);
            a role that isn't named takes whichever layout the probe proves.
        trunk: prefixes of the tensors below the head.
        score_head: path of the module that gives the logits (`[..., columns]`, alone or first in a
            tuple); needed for `absorb`.
        fold: forward hook that folds absorbed columns into background; None where the head isn't a
            softmax.
        cut: path of a class-dependent layer that absorbed classes don't need (boxes, masks) -> its
            rows a class.
    """

    name: str
    probe: Callable[[Any], Detections]
    isolate: Callable[[Any], None] | None = None
    layouts: Mapping[str, str] = field(default_factory=dict)
    trunk: tuple[str, ...] = ("backbone.",)
    score_head: str | None = None
    fold: Callable[..., Any] | None = None
    cut: Mapping[str, int] = field(default_factory=dict)


def fold_background(logits: Tensor, columns: int) -> Tensor:
    """Fold absorbed columns into background: float[..., columns + absorbed] -> float[..., columns].

    background' = logsumexp(background, absorbed); the other logits pass unchanged, so that every
    softmax probability of a target class is what the wide softmax gives it.
    """
    background = torch.logsumexp(
        torch.cat([logits[..., :1], logits[..., columns:]], dim=-1), dim=-1, keepdim=True
    )
    return torch.cat([background, logits[..., 1:columns]], dim=-1)


def fold_levels(self, inputs: tuple[list[Tensor]], output: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    """Forward hook of torchvision's SSD classification heads; typed so that TorchScript compiles
    it.
    """
    return fold_background(output, self.num_target_columns)


def fold_pair(self, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    """Forward hook of torchvision's box predictors (scores, box deltas); typed so that TorchScript
    compiles it.
    """
    return fold_background(output[0], self.num_target_columns), output[1]


def fold_any(self, inputs: Any, output: Any) -> Any:  # type: ignore[no-untyped-def]
    """Forward hook for any head whose output is the logits, or a tuple that begins with them."""
    if isinstance(output, tuple):
        return (fold_background(output[0], self.num_target_columns), *output[1:])
    return fold_background(output, self.num_target_columns)


class _Stand(nn.Module):
    """In the place of a class-independent part: gives random features, whatever it is shown."""

    def __init__(self, shape: "OrderedDict[str, torch.Size] | tuple[int, ...]") -> None:
        super().__init__()
        self.shape = shape
        self.like: Tensor
        self.register_buffer(
            "like", torch.zeros(1), persistent=False
        )  # follows the detector's dtype

    def forward(self, *inputs: Any) -> Any:
        if isinstance(self.shape, dict):  # a backbone: one map a level
            return OrderedDict(
                (name, torch.randn(shape, dtype=self.like.dtype))
                for name, shape in self.shape.items()
            )
        return torch.randn(
            len(inputs[0]), *self.shape, dtype=self.like.dtype
        )  # a RoI head: features a box


class _Boxes(nn.Module):
    """In a RoI pool's place: one row a box."""

    def forward(self, features: Any, boxes: list[Tensor], sizes: Any) -> Tensor:
        return torch.cat(boxes)


def _isolate_one_stage(model: Any) -> None:
    """Put random features of the right shapes in the backbone's place."""
    if model.transform.fixed_size is None:
        model.transform.min_size, model.transform.max_size = (IMAGE_SIDE,), IMAGE_SIDE
        model.transform.fixed_size = (IMAGE_SIDE, IMAGE_SIDE)
    width, height = model.transform.fixed_size
    maps = model.backbone.to("meta").eval()(torch.empty(1, 3, height, width, device="meta"))
    maps = maps if isinstance(maps, dict) else {"0": maps}
    shapes = OrderedDict((name, value.shape) for name, value in maps.items())
    if (
        type(model.anchor_generator) is DefaultBoxGenerator
    ):  # makes anchors for any size: four places a level prove as much as 1444
        shapes = OrderedDict(
            (name, torch.Size((*shape[:2], min(shape[2], 2), min(shape[3], 2))))
            for name, shape in shapes.items()
        )
    model.backbone = _Stand(shapes)
    for head in (model.head.classification_head, model.head.regression_head):
        if hasattr(
            head, "conv"
        ):  # RetinaNet's and FCOS's towers, as wide at the end as at the start
            head.conv = nn.Identity()


def _probe_one_stage(model: Any) -> Detections:
    """SSD, RetinaNet, FCOS: the whole forward but the backbone, with every threshold open."""
    model.score_thresh, model.nms_thresh = -1.0, 2.0
    model.topk_candidates = model.detections_per_img = EVERYTHING
    width, height = model.transform.fixed_size
    detections: Detections = model(
        [torch.rand(3, height, width, dtype=next(model.parameters()).dtype)]
    )
    return detections


def _isolate_two_stage(model: Any) -> None:
    """Leave the RoI predictors alone, with random features of the right width before them."""
    heads = model.roi_heads
    model.backbone = model.rpn = nn.Identity()
    heads.box_roi_pool, heads.box_head = (
        _Boxes(),
        _Stand((heads.box_predictor.cls_score.in_features,)),
    )
    if heads.has_mask():
        heads.mask_roi_pool, heads.mask_head = (
            _Boxes(),
            _Stand((heads.mask_predictor.conv5_mask.in_channels, 4, 4)),
        )
    heads.keypoint_roi_pool = heads.keypoint_head = heads.keypoint_predictor = None


def _probe_two_stage(model: Any) -> Detections:
    """R-CNNs: the RoI heads on proposals well inside the image, with every threshold open."""
    heads = model.roi_heads
    dtype = heads.box_predictor.cls_score.weight.dtype
    corners = (torch.rand(8, 2, dtype=dtype) + 1) * IMAGE_SIDE / 8
    sizes = (torch.rand(8, 2, dtype=dtype) + 1) * IMAGE_SIDE / 4
    heads.score_thresh, heads.nms_thresh, heads.detections_per_img = -1.0, 2.0, EVERYTHING
    with torch.no_grad():
        for parameter in heads.box_predictor.bbox_pred.parameters():
            parameter.mul_(
                0.01
                # so that boxes stay close to their proposals: none is clipped or dropped as too
                # small
            )
    detections, _ = heads(
        OrderedDict(), [torch.cat([corners, corners + sizes], dim=1)], [(IMAGE_SIDE, IMAGE_SIDE)]
    )
    return list(detections)


_SSD = Family(
    "ssd",
    _probe_one_stage,
    _isolate_one_stage,
    layouts={"scores": "anchor-major"},
    score_head="head.classification_head",
    fold=fold_levels,
)
_RETINANET = Family(
    "retinanet", _probe_one_stage, _isolate_one_stage, layouts={"scores": "anchor-major"}
)
_FCOS = Family("fcos", _probe_one_stage, _isolate_one_stage, layouts={"scores": "plain"})
_RCNN = Family(
    "rcnn",
    _probe_two_stage,
    _isolate_two_stage,
    layouts={"scores": "plain", "boxes": "class-major", "masks": "plain"},
    score_head="roi_heads.box_predictor",
    fold=fold_pair,
    cut={"roi_heads.box_predictor.bbox_pred": 4, "roi_heads.mask_predictor.mask_fcn_logits": 1},
)


def family_of(model: nn.Module, builder: Callable[..., nn.Module]) -> Family | None:
    """The family that the builder declares, or torchvision's that the detector is an instance of;
    None where neither is known.
    """
    declared = getattr(builder, "family", None)
    if isinstance(declared, Family):
        return declared
    for kind, family in (
        (SSD, _SSD),
        (RetinaNet, _RETINANET),
        (FCOS, _FCOS),
        (GeneralizedRCNN, _RCNN),
    ):
        if isinstance(model, kind):
            return family
    return None
