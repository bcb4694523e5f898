"""Detector families: what is declared about a kind of detector, once, for everything that has to
know it.

Surgery asks a family how to see one class's score in isolation: a *probe* runs a detector's own
head and post-processing on random features and returns every candidate box of every class, so that
gradients tell which rows of which tensor a class's score, boxes and masks depend on. Distillation,
the feature cache and the export ask where logits, boxes, anchors and limits are. Torchvision's four
families are here; a builder of one's own brings a `Family` as its attribute `family`:

    def build(num_classes: int) -> nn.Module: ...
    build.family = Family("mine", probe=my_probe)
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.ssd import SSD

from topwork.errors import SurgeryError

Detections = list[dict[str, Tensor]]
Role = Literal["scores", "boxes", "masks"]
ROLES: tuple[Role, ...] = ("scores", "boxes", "masks")
IMAGE_SIDE = 64
EVERYTHING = 1_000_000


@dataclass(frozen=True)
class Limits:
    """Where a detector cuts its detections off: below this score, beyond this many an image, and
    above this overlap with a better one.
    """

    score: float
    count: int
    overlap: float


def first_output(output: Any) -> Tensor:
    """A module's output, or the first of several."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def second_output(output: Any) -> Tensor:
    """The second of a module's outputs."""
    found: Tensor = output[1]
    return found


@dataclass(frozen=True)
class TwoStage:
    """Paths of the modules of a detector that scores proposals instead of anchors.

    Attributes:
        rpn_head: feature maps -> (objectness, box deltas), a list a level each.
        roi_pool: (feature maps, proposals, image sizes) -> float[proposals, channels, h, w].
        roi_features: pooled features -> the score head's input.
        pools: every module that pools regions; not each detector has all of them.
    """

    rpn_head: str
    roi_pool: str
    roi_features: str
    pools: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """What is declared about a kind of detector. Layouts are proved before they are used; a path
    that leads nowhere is an error.

    Surgery needs `name` and `probe`; `absorb` needs `score_head` and `fold` as well. Distillation
    needs `transform`, `backbone`, `score_head`, `box_head`, and `anchors` or `two_stage`; the
    feature cache `transform`, `backbone` and `input_size`; the export `limits`.

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
        score_head: path of the module that gives the logits; of a one-stage detector it takes the
            list of feature maps.
        logits_of: output of `score_head` -> float[images, anchors, columns] (one-stage) or
            float[proposals, columns]; a head without rows for background pads column 0.
        fold: forward hook that folds absorbed columns into background; None where the head isn't a
            softmax.
        cut: path of a class-dependent layer that absorbed classes don't need (boxes, masks) -> its
            rows a class.
        box_head: path of the module that gives the box deltas; takes what `score_head` takes.
        deltas_of: output of `box_head` -> float[..., 4], or float[..., columns * 4].
        transform: path of the module (images, targets) -> (ImageList, targets in the pixels of the
            resized images).
        backbone: path of the module that is the trunk: pixels float[N, 3, H, W] -> feature maps by
            name, or a single one.
        anchors: path of the module that gives the anchors, a list of float[anchors, 4] (xyxy,
            resized pixels), one tensor an image; None in two-stage detectors.
        two_stage: modules that only two-stage detectors have.
        mask_head: prefix of the tensors of a mask head; with it, training targets carry masks.
        input_size: detector -> (H, W) to which every image is resized, or None where sizes differ.
        limits: detector -> where it cuts its detections off.
    """

    name: str
    probe: Callable[[Any], Detections]
    isolate: Callable[[Any], None] | None = None
    layouts: Mapping[str, str] = field(default_factory=dict)
    trunk: tuple[str, ...] = ("backbone.",)
    score_head: str | None = None
    logits_of: Callable[[Any], Tensor] = first_output
    fold: Callable[..., Any] | None = None
    cut: Mapping[str, int] = field(default_factory=dict)
    box_head: str | None = None
    deltas_of: Callable[[Any], Tensor] = first_output
    transform: str = "transform"
    backbone: str = "backbone"
    anchors: str | None = None
    two_stage: TwoStage | None = None
    mask_head: str | None = None
    input_size: Callable[[Any], tuple[int, int] | None] | None = None
    limits: Callable[[Any], Limits] | None = None

    def module(self, model: nn.Module, path: str) -> nn.Module:
        """The detector's module at a declared path.

        Raises:
            SurgeryError: there is none.
        """
        try:
            return model.get_submodule(path)
        except AttributeError as error:
            raise SurgeryError(
                f"family {self.name!r}: {type(model).__name__} has no module {path!r} ({error});"
                " mend the paths in the builder's `family` (docs/surgery.md)."
            ) from error

    def missing_for_distillation(self) -> list[str]:
        """Names of the fields that distillation needs and this family doesn't declare."""
        needed = ["score_head", "box_head", *([] if self.two_stage else ["anchors"])]
        return [name for name in needed if getattr(self, name) is None]


def feature_maps(family: Family, features: Any) -> dict[str, Tensor]:
    """A trunk's feature maps by name; a single one is named "0".

    Raises:
        SurgeryError: the trunk gives something else.
    """
    if isinstance(features, Tensor):
        return {"0": features}
    if not isinstance(features, dict):
        raise SurgeryError(
            f"family {family.name!r}: its backbone {family.backbone!r} gives"
            f" {type(features).__name__}, expected a tensor, or a dict of tensors (as"
            " torchvision's backbones give)."
        )
    return features


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


class _StandIn(nn.Module):
    """Stand-in for a class-independent part: gives random features, whatever its input."""

    def __init__(self, shape: "OrderedDict[str, torch.Size] | tuple[int, ...]") -> None:
        super().__init__()
        self.shape = shape
        self.like: Tensor
        # follows the detector's dtype
        self.register_buffer("like", torch.zeros(1), persistent=False)

    def forward(self, *inputs: Any) -> Any:
        if isinstance(self.shape, dict):  # a backbone: one map a level
            return OrderedDict(
                (name, torch.randn(shape, dtype=self.like.dtype))
                for name, shape in self.shape.items()
            )
        # a RoI head: features a box
        return torch.randn(len(inputs[0]), *self.shape, dtype=self.like.dtype)


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
    # makes anchors for any size: four places a level prove as much as 1444
    if type(model.anchor_generator) is DefaultBoxGenerator:
        shapes = OrderedDict(
            (name, torch.Size((*shape[:2], min(shape[2], 2), min(shape[3], 2))))
            for name, shape in shapes.items()
        )
    model.backbone = _StandIn(shapes)
    for head in (model.head.classification_head, model.head.regression_head):
        # RetinaNet's and FCOS's towers, as wide at the end as at the start
        if hasattr(head, "conv"):
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
        _StandIn((heads.box_predictor.cls_score.in_features,)),
    )
    if heads.has_mask():
        heads.mask_roi_pool, heads.mask_head = (
            _Boxes(),
            _StandIn((heads.mask_predictor.conv5_mask.in_channels, 4, 4)),
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


def _probe_pictures(model: Any) -> Detections:
    """A detector of no declared family, called as torchvision's are."""
    detections: Detections = model([torch.rand(3, 320, 320, dtype=torch.float64)])
    return detections


def _fixed_size(model: Any) -> tuple[int, int] | None:
    """(H, W) to which torchvision's transform resizes every image, or None."""
    size = getattr(model.transform, "fixed_size", None)  # (W, H)
    return None if size is None else (size[1], size[0])


def _limits(model: Any) -> Limits:
    """Of torchvision's one-stage detectors, and of RoI heads."""
    return Limits(float(model.score_thresh), int(model.detections_per_img), float(model.nms_thresh))


def _roi_limits(model: Any) -> Limits:
    return _limits(model.roi_heads)


_ONE_STAGE = Family(
    "one-stage",
    _probe_one_stage,
    _isolate_one_stage,
    score_head="head.classification_head",
    box_head="head.regression_head",
    anchors="anchor_generator",
    input_size=_fixed_size,
    limits=_limits,
)
_SSD = replace(_ONE_STAGE, name="ssd", layouts={"scores": "anchor-major"}, fold=fold_levels)
_RETINANET = replace(_ONE_STAGE, name="retinanet", layouts={"scores": "anchor-major"})
_FCOS = replace(_ONE_STAGE, name="fcos", layouts={"scores": "plain"})
_RCNN = Family(
    "rcnn",
    _probe_two_stage,
    _isolate_two_stage,
    layouts={"scores": "plain", "boxes": "class-major", "masks": "plain"},
    score_head="roi_heads.box_predictor",
    fold=fold_pair,
    cut={"roi_heads.box_predictor.bbox_pred": 4, "roi_heads.mask_predictor.mask_fcn_logits": 1},
    box_head="roi_heads.box_predictor",
    deltas_of=second_output,
    two_stage=TwoStage(
        rpn_head="rpn.head",
        roi_pool="roi_heads.box_roi_pool",
        roi_features="roi_heads.box_head",
        pools=(
            "roi_heads.box_roi_pool",
            "roi_heads.mask_roi_pool",
            "roi_heads.keypoint_roi_pool",
        ),
    ),
    mask_head="roi_heads.mask_predictor.",
    input_size=_fixed_size,
    limits=_roi_limits,
)
UNDECLARED = Family("undeclared", _probe_pictures)


def family_of(model: nn.Module, builder: Callable[..., nn.Module] | None = None) -> Family:
    """The family that the builder (or the loaded detector) declares, else torchvision's that the
    detector is an instance of, else `UNDECLARED`.
    """
    for declared in (getattr(builder, "family", None), getattr(model, "family", None)):
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
    return UNDECLARED
