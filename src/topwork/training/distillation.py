"""Distillation: hold the head's outputs for pretrained classes to those of the pretrained detector
on the same image.

The teacher is the grafted detector before training: its kept and absorbed rows are the pretrained
head's own. In a softmax head the distributions over background, kept and absorbed columns are
compared, new columns left out, so that learning a new class costs nothing here; in a sigmoid head
each kept column is compared alone. Where the teacher sees an object, box regression is held too. At
places (anchors, proposals) that lie on an annotated object the labels decide: the teacher knows no
new class and gets weight 0 there; on a kept class it is weighted by how far it sees that class
itself, so that it never contradicts the label.

Sources: Li and Hoiem, Learning without Forgetting (arXiv 1606.09282); Shmelkov et al., Incremental
Learning of Object Detectors without Catastrophic Forgetting (arXiv 1708.06977).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from topwork.detectors.families import Family, feature_maps

# from this overlap with an annotated box on, no torchvision detector's matcher is sure that a place
# is background
LABELLED_IOU = 0.4


@dataclass
class HeadOutputs:
    """A detector's head in one forward pass, as its hooks recorded it.

    Attributes:
        logits: raw, float[..., columns].
        deltas: box deltas, float[..., 4 or columns * 4].
        trunk_input: pixels float[N, 3, H, W].
        features: the trunk's feature maps.
        pool_inputs: of a two-stage detector's region pooling: proposals, image sizes.
        places: what the logits score, anchors or proposals: float[N, 4] an image, in the resized
            image's pixels.
        annotated: boxes of the targets, float[M, 4] an image, in the same pixels.
        labels: of the targets, int64[M] an image.
        objectness: of a two-stage detector's region proposals, one tensor a level.
    """

    logits: Tensor | None = None
    deltas: Tensor | None = None
    trunk_input: Tensor | None = None
    features: Any = None
    pool_inputs: Any = None
    places: list[Tensor] = field(default_factory=list)
    annotated: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    objectness: list[Tensor] = field(default_factory=list)


class HeadHooks:
    """Records a detector's head outputs through forward hooks; logits before absorbed columns are
    folded.

    Args:
        model: the detector.
        family: where its logits, boxes and places are; one that misses nothing for distillation.

    Raises:
        SurgeryError: the detector has no module at a declared path.
    """

    def __init__(self, model: nn.Module, family: Family) -> None:
        self.outputs, self.family = HeadOutputs(), family
        assert family.score_head is not None
        assert family.box_head is not None

        def module(path: str) -> nn.Module:
            return family.module(model, path)

        module(family.score_head).register_forward_hook(self._record_logits, prepend=True)
        module(family.box_head).register_forward_hook(self._record_deltas)
        if family.two_stage is not None:
            pool = module(family.two_stage.roi_pool)
            pool.register_forward_pre_hook(self._record_proposals)
            module(family.two_stage.rpn_head).register_forward_hook(self._record_objectness)
        else:
            assert family.anchors is not None
            module(family.anchors).register_forward_hook(self._record_anchors)
        module(family.transform).register_forward_hook(self._record_targets)
        module(family.backbone).register_forward_hook(self._record_trunk)

    def _record_logits(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.outputs.logits = self.family.logits_of(output)

    def _record_deltas(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.outputs.deltas = self.family.deltas_of(output)

    def _record_proposals(self, module: nn.Module, inputs: Any) -> None:
        self.outputs.pool_inputs, self.outputs.places = inputs[1:], inputs[1]

    def _record_anchors(self, module: nn.Module, inputs: Any, output: list[Tensor]) -> None:
        self.outputs.places = output

    def _record_targets(
        self, module: nn.Module, inputs: Any, output: tuple[Any, list[dict[str, Tensor]] | None]
    ) -> None:
        self.outputs.annotated = [target["boxes"] for target in output[1] or ()]
        self.outputs.labels = [target["labels"] for target in output[1] or ()]

    def _record_objectness(
        self, module: nn.Module, inputs: Any, output: tuple[list[Tensor], list[Tensor]]
    ) -> None:
        self.outputs.objectness = output[0]

    def _record_trunk(self, module: nn.Module, inputs: tuple[Tensor], output: Any) -> None:
        self.outputs.trunk_input, self.outputs.features = inputs[0], output


class Teacher:
    """The pretrained detector, frozen, and the loss that pulls a student to it.

    Its answers for a variant of an image are kept, where memory allows: they're computed once a
    run, one image at a time, so that their bits don't depend on which batch asks first.

    Args:
        teacher: the grafted detector before training; it's put into evaluation mode and never
            changed.
        student: the detector in training.
        family: of both.
        columns: pretrained columns: background (softmax only), kept, absorbed.
        softmax: whether the head is a softmax.
        variants: how many different images a run shows; 0 where augmentation makes each one new.
        memory_mib: for what is kept.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        family: Family,
        columns: Sequence[int],
        softmax: bool,
        *,
        variants: int = 0,
        memory_mib: int = 0,
    ) -> None:
        self.model = teacher.eval().requires_grad_(False)
        self.family = family
        self.teacher, self.student = HeadHooks(teacher, family), HeadHooks(student, family)
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
        student = self.student.outputs
        assert student.logits is not None
        logits = student.logits[..., self.columns].float()
        with torch.no_grad():
            if self._keeps(logits, variants):
                targets, deltas = self._recall(variants)
                objectness: list[Tensor] = []
            else:
                targets, deltas = self._answer(
                    student.trunk_input, student.features, student.pool_inputs
                )
                objectness = self.teacher.outputs.objectness
        terms = self._terms(
            logits, targets, student.deltas, deltas, self._place_weights(student, targets)
        )
        if self.family.two_stage:
            terms["distill_classes"] = terms["distill_classes"] + _objectness_term(
                student.objectness, objectness
            )
        return terms

    def _keeps(self, logits: Tensor, variants: Sequence[Any]) -> bool:
        """Whether answers are kept: decided by sizes alone, so that a resumed run decides alike."""
        size = logits[0].numel() // len(self.columns) * (len(self.columns) + 4) * 4
        return (
            not self.family.two_stage
            and None not in variants
            and 0 < self.variants * size <= self.memory
        )

    def _recall(self, variants: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """The answers for a batch of variants, computed where they aren't kept yet."""
        student = self.student.outputs
        for place, variant in enumerate(variants):
            if variant not in self._kept:
                one = slice(place, place + 1)
                features = (
                    {name: value[one] for name, value in self._maps(student.features).items()}
                    if self.banked_features
                    else None
                )
                pixels = (
                    None
                    if self.banked_features or student.trunk_input is None
                    else student.trunk_input[one]
                )
                targets, deltas = self._answer(pixels, features, None)
                self._kept[variant] = targets[0].clone(), deltas[0].clone()
        kept = [self._kept[variant] for variant in variants]
        return torch.stack([item[0] for item in kept]), torch.stack([item[1] for item in kept])

    def _answer(
        self, pixels: Tensor | None, features: Any, pool_inputs: Any
    ) -> tuple[Tensor, Tensor]:
        """Logits of pretrained columns and box deltas for the same pixels and, in two-stage
        detectors, the same proposals.
        """
        family = self.family
        assert family.score_head is not None
        assert family.box_head is not None

        def module(path: str) -> nn.Module:
            return family.module(self.model, path)

        maps = self._maps(features if self.banked_features else module(family.backbone)(pixels))
        head_input: Any = list(maps.values())
        if family.two_stage is not None:
            module(family.two_stage.rpn_head)(head_input)
            pooled = module(family.two_stage.roi_pool)(maps, *pool_inputs)
            head_input = module(family.two_stage.roi_features)(pooled)
        for path in dict.fromkeys((family.score_head, family.box_head)):
            module(path)(head_input)
        answer = self.teacher.outputs
        assert answer.logits is not None
        assert answer.deltas is not None
        return answer.logits[..., self.columns].float(), answer.deltas.float()

    def _maps(self, features: Any) -> dict[str, Tensor]:
        return feature_maps(self.family, features)

    def _place_weights(self, student: HeadOutputs, targets: Tensor) -> Tensor:
        """How much the teacher counts at each place, 0..1: float[...], the shape of `targets`
        without its columns.

        Args:
            student: the student's forward pass.
            targets: the teacher's logits of pretrained columns, float[..., columns].
        """
        assert student.logits is not None
        probabilities = (targets.softmax(-1) if self.softmax else targets.sigmoid()).reshape(
            -1, targets.shape[-1]
        )
        # label -> its place among the pretrained columns
        place_of_label = torch.full((student.logits.shape[-1],), -1, device=targets.device)
        place_of_label[self.columns] = torch.arange(len(self.columns), device=targets.device)
        weights = []
        for places, boxes, labels, seen in zip(
            student.places,
            student.annotated,
            student.labels,
            torch.split(probabilities, [len(places) for places in student.places]),
            strict=True,
        ):
            if not len(boxes):
                weights.append(seen.new_ones(len(places)))
                continue
            overlap, nearest = box_iou(places, boxes).max(1)
            column = place_of_label[labels[nearest]]
            agreed = seen.gather(1, column.clamp(min=0)[:, None])[:, 0] * (column >= 0)
            weights.append(torch.where(overlap < LABELLED_IOU, torch.ones_like(agreed), agreed))
        return torch.cat(weights).reshape(targets.shape[:-1])

    def _terms(
        self,
        logits: Tensor,
        targets: Tensor,
        deltas: Tensor | None,
        target_deltas: Tensor,
        weights: Tensor,
    ) -> dict[str, Tensor]:
        """Divergence per certain object that the teacher sees, and distance of the box deltas
        there; `weights` are the places'.
        """
        if self.softmax:
            log_p = F.log_softmax(targets, dim=-1)
            divergence = F.kl_div(
                F.log_softmax(logits, dim=-1), log_p, reduction="none", log_target=True
            )
            certainty = (1 - log_p[..., 0].exp()) * weights
        else:
            p = targets.sigmoid()
            cross = F.binary_cross_entropy_with_logits(logits, p, reduction="none")
            divergence = cross - F.binary_cross_entropy_with_logits(targets, p, reduction="none")
            certainty = p.amax(-1) * weights
        objects = certainty.sum().clamp(min=1.0)
        terms = {"distill_classes": (divergence.sum(-1) * weights).sum() / objects}
        if deltas is not None:
            off = F.smooth_l1_loss(deltas.float(), target_deltas, reduction="none")
            # (N, columns * 4) -> (N, columns, 4), the columns of the target head alone
            if off.shape[-1] != 4:
                off = off.reshape(*off.shape[:-1], -1, 4)
                off = off[
                    ..., [column for column in self.columns if 0 < column < off.shape[-2]], :
                ].sum(-2)
            terms["distill_boxes"] = (off.sum(-1) * certainty).sum() / objects
        return terms


def _objectness_term(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The same divergence for the region proposals' objectness, one logit an anchor."""
    total, objects = student[0].new_zeros(()), student[0].new_zeros(())
    for logits, targets in zip(student, teacher, strict=True):
        p = targets.float().sigmoid()
        cross = F.binary_cross_entropy_with_logits(logits.float(), p, reduction="sum")
        total = (
            total + cross - F.binary_cross_entropy_with_logits(targets.float(), p, reduction="sum")
        )
        objects = objects + p.sum()
    return total / objects.clamp(min=1.0)
