"""Distillation: hold what the head says of pretrained classes to what the pretrained detector says
of the same image.

The teacher is the grafted detector before training: its kept and absorbed rows are the pretrained
head's own. In a softmax head the
distributions over background, kept and absorbed columns are compared, new columns left out, so that
learning a new class costs nothing here; in a sigmoid head each kept column is compared alone. Where
the teacher sees an object, box regression is held too. At places (anchors, proposals) that lie on
an annotated object the labels decide: of a new class the teacher can know nothing and is silent; on
a kept class it is heard as far as it sees that class itself, so that it never contradicts the
label.

Sources: Li and Hoiem, Learning without Forgetting (arXiv 1606.09282); Shmelkov et al., Incremental
Learning of Object Detectors without
Catastrophic Forgetting (arXiv 1708.06977).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

# from this overlap with an annotated box on, no torchvision detector's matcher is sure that a place
# is background
LABELLED_IOU = 0.4


@dataclass
class Seen:
    """What a head said in one forward pass: raw logits float[..., columns], box deltas float[..., 4
    or columns * 4].

    `places` are what the head judges (anchors or proposals, float[N, 4] an image), `annotated` the
    boxes of the targets, both in the resized image's pixels; `labels` are those of the targets,
    int64[M] an image.
    """

    logits: Tensor | None = None
    boxes: Tensor | None = None
    trunk_input: Tensor | None = None
    features: Any = None
    proposals: Any = None
    places: list[Tensor] = field(default_factory=list)
    annotated: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    objectness: list[Tensor] = field(default_factory=list)


class Listener:
    """Records a detector's head outputs through forward hooks; logits before absorbed columns are
    folded.

    Args:
        model: one of torchvision's detectors, or one built like them.
    """

    def __init__(self, model: Any) -> None:
        self.seen = Seen()
        self.two_stage = hasattr(model, "roi_heads")
        if self.two_stage:
            model.roi_heads.box_predictor.register_forward_hook(self._hear_predictor, prepend=True)
            model.roi_heads.box_roi_pool.register_forward_pre_hook(self._hear_proposals)
            model.rpn.head.register_forward_hook(self._hear_rpn)
        else:
            model.head.classification_head.register_forward_hook(self._hear_logits, prepend=True)
            model.head.regression_head.register_forward_hook(self._hear_boxes)
            model.anchor_generator.register_forward_hook(self._hear_anchors)
        model.transform.register_forward_hook(self._hear_targets)
        model.backbone.register_forward_hook(self._hear_trunk)

    def _hear_logits(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.seen.logits = output

    def _hear_boxes(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.seen.boxes = output[0] if isinstance(output, tuple) else output

    def _hear_predictor(
        self, module: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]
    ) -> None:
        self.seen.logits, self.seen.boxes = output

    def _hear_proposals(self, module: nn.Module, inputs: Any) -> None:
        self.seen.proposals, self.seen.places = inputs[1:], inputs[1]

    def _hear_anchors(self, module: nn.Module, inputs: Any, output: list[Tensor]) -> None:
        self.seen.places = output

    def _hear_targets(
        self, module: nn.Module, inputs: Any, output: tuple[Any, list[dict[str, Tensor]] | None]
    ) -> None:
        self.seen.annotated = [target["boxes"] for target in output[1] or ()]
        self.seen.labels = [target["labels"] for target in output[1] or ()]

    def _hear_rpn(
        self, module: nn.Module, inputs: Any, output: tuple[list[Tensor], list[Tensor]]
    ) -> None:
        self.seen.objectness = output[0]

    def _hear_trunk(self, module: nn.Module, inputs: tuple[Tensor], output: Any) -> None:
        self.seen.trunk_input, self.seen.features = inputs[0], output


def can_distill(model: nn.Module) -> bool:
    """Whether the detector is built like one of torchvision's, so that its head can be listened
    to.
    """
    if hasattr(model, "roi_heads"):
        return hasattr(model.roi_heads, "box_predictor") and hasattr(model, "rpn")
    return hasattr(getattr(model, "head", None), "classification_head") and hasattr(
        getattr(model, "head", None), "regression_head"
    )


class Teacher:
    """The pretrained detector, frozen, and the loss that pulls a student to it.

    What it says of a variant of an image is kept, where memory allows: it's computed once a run,
    one image at a time, so that its bits don't depend on which batch asks first.

    Args:
        teacher: the grafted detector before training; it's put into evaluation mode and never
            changed.
        student: the detector in training.
        columns: pretrained columns: background (softmax only), kept, absorbed.
        softmax: whether the head is a softmax.
        variants: how many different images a run shows; 0 where augmentation makes each one new.
        memory_mib: for what is kept.
    """

    def __init__(
        self,
        teacher: Any,
        student: Any,
        columns: Sequence[int],
        softmax: bool,
        *,
        variants: int = 0,
        memory_mib: int = 0,
    ) -> None:
        self.model = teacher.eval().requires_grad_(False)
        self.teacher, self.student = Listener(teacher), Listener(student)
        self.columns, self.softmax = list(columns), softmax
        self.variants, self.memory = variants, memory_mib << 20
        # set while the student's features come from a FeatureBank: they are the teacher's
        self.banked_features = False
        self._kept: dict[Any, tuple[Tensor, Tensor]] = {}

    def losses(self, variants: Sequence[Any]) -> dict[str, Tensor]:
        """The terms for the student's last forward pass: `distill_classes` and `distill_boxes`.

        Args:
            variants: of the batch's images, None where an image is new each time.
        """
        heard = self.student.seen
        assert heard.logits is not None
        logits = heard.logits[..., self.columns].float()
        with torch.no_grad():
            if self._keeps(logits, variants):
                targets, boxes = self._recall(variants)
                objectness: list[Tensor] = []
            else:
                targets, boxes = self._ask(heard.trunk_input, heard.features, heard.proposals)
                objectness = self.teacher.seen.objectness
        terms = self._terms(logits, targets, heard.boxes, boxes, self._heard_out(heard, targets))
        if self.teacher.two_stage:
            terms["distill_classes"] = terms["distill_classes"] + _objectness(
                heard.objectness, objectness
            )
        return terms

    def _keeps(self, logits: Tensor, variants: Sequence[Any]) -> bool:
        """Whether answers are kept: decided by sizes alone, so that a resumed run decides alike."""
        size = logits[0].numel() // len(self.columns) * (len(self.columns) + 4) * 4
        return (
            not self.teacher.two_stage
            and None not in variants
            and 0 < self.variants * size <= self.memory
        )

    def _recall(self, variants: Sequence[Any]) -> tuple[Tensor, Tensor]:
        heard = self.student.seen
        for place, variant in enumerate(variants):
            if variant not in self._kept:
                one = slice(place, place + 1)
                features = (
                    {name: value[one] for name, value in _maps(heard.features).items()}
                    if self.banked_features
                    else None
                )
                pixels = (
                    None
                    if self.banked_features or heard.trunk_input is None
                    else heard.trunk_input[one]
                )
                targets, boxes = self._ask(pixels, features, None)
                self._kept[variant] = targets[0].clone(), boxes[0].clone()
        kept = [self._kept[variant] for variant in variants]
        return torch.stack([item[0] for item in kept]), torch.stack([item[1] for item in kept])

    def _ask(self, pixels: Tensor | None, features: Any, proposals: Any) -> tuple[Tensor, Tensor]:
        """Logits of pretrained columns and box deltas for the same pixels and, in two-stage
        detectors, the same proposals.
        """
        maps = _maps(features if self.banked_features else self.model.backbone(pixels))
        if self.teacher.two_stage:
            self.model.rpn.head(list(maps.values()))
            pooled = self.model.roi_heads.box_roi_pool(maps, *proposals)
            self.model.roi_heads.box_predictor(self.model.roi_heads.box_head(pooled))
        else:
            self.model.head(list(maps.values()))
        told = self.teacher.seen
        assert told.logits is not None
        assert told.boxes is not None
        return told.logits[..., self.columns].float(), told.boxes.float()

    def _heard_out(self, heard: Seen, targets: Tensor) -> Tensor:
        """How far the teacher is heard at each place, 0..1: float[...], the shape of `targets`
        without its columns.

        Args:
            heard: the student's forward pass.
            targets: the teacher's logits of pretrained columns, float[..., columns].
        """
        assert heard.logits is not None
        sees = (targets.softmax(-1) if self.softmax else targets.sigmoid()).reshape(
            -1, targets.shape[-1]
        )
        taught = torch.full(
            (heard.logits.shape[-1],), -1, device=targets.device
        )  # label -> its place among the pretrained columns
        taught[self.columns] = torch.arange(len(self.columns), device=targets.device)
        parts = []
        for places, boxes, labels, seen in zip(
            heard.places,
            heard.annotated,
            heard.labels,
            torch.split(sees, [len(places) for places in heard.places]),
            strict=True,
        ):
            if not len(boxes):
                parts.append(seen.new_ones(len(places)))
                continue
            overlap, nearest = box_iou(places, boxes).max(1)
            column = taught[labels[nearest]]
            agreed = seen.gather(1, column.clamp(min=0)[:, None])[:, 0] * (column >= 0)
            parts.append(torch.where(overlap < LABELLED_IOU, torch.ones_like(agreed), agreed))
        return torch.cat(parts).reshape(targets.shape[:-1])

    def _terms(
        self,
        logits: Tensor,
        targets: Tensor,
        boxes: Tensor | None,
        target_boxes: Tensor,
        spoken: Tensor,
    ) -> dict[str, Tensor]:
        """Divergence per certain object that the teacher sees, and distance of the box deltas
        there; `spoken` weighs the places.
        """
        if self.softmax:
            log_p = F.log_softmax(targets, dim=-1)
            divergence = F.kl_div(
                F.log_softmax(logits, dim=-1), log_p, reduction="none", log_target=True
            )
            certainty = (1 - log_p[..., 0].exp()) * spoken
        else:
            p = targets.sigmoid()
            cross = F.binary_cross_entropy_with_logits(logits, p, reduction="none")
            divergence = cross - F.binary_cross_entropy_with_logits(targets, p, reduction="none")
            certainty = p.amax(-1) * spoken
        objects = certainty.sum().clamp(min=1.0)
        terms = {"distill_classes": (divergence.sum(-1) * spoken).sum() / objects}
        if boxes is not None:
            off = F.smooth_l1_loss(boxes.float(), target_boxes, reduction="none")
            if (
                off.shape[-1] != 4
            ):  # (N, columns * 4) -> (N, columns, 4), the columns of the target head alone
                off = off.reshape(*off.shape[:-1], -1, 4)
                off = off[
                    ..., [column for column in self.columns if 0 < column < off.shape[-2]], :
                ].sum(-2)
            terms["distill_boxes"] = (off.sum(-1) * certainty).sum() / objects
        return terms


def _maps(features: Any) -> dict[str, Tensor]:
    """A trunk's feature maps by name."""
    return features if isinstance(features, dict) else {"0": features}


def _objectness(heard: Sequence[Tensor], told: Sequence[Tensor]) -> Tensor:
    """The same for the region proposals' objectness, one logit an anchor."""
    total, objects = heard[0].new_zeros(()), heard[0].new_zeros(())
    for logits, targets in zip(heard, told, strict=True):
        p = targets.float().sigmoid()
        cross = F.binary_cross_entropy_with_logits(logits.float(), p, reduction="sum")
        total = (
            total + cross - F.binary_cross_entropy_with_logits(targets.float(), p, reduction="sum")
        )
        objects = objects + p.sum()
    return total / objects.clamp(min=1.0)
