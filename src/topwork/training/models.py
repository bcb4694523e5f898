"""The detectors of a run: the one that is trained, and the teacher that it's held to."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from topwork.detectors.axes import HeadSpec
from topwork.detectors.branches import Branched
from topwork.detectors.builders import load
from topwork.detectors.families import Family
from topwork.params.finetune import FinetuneParams
from topwork.training.dataset import DetectionDataset
from topwork.training.device import Device
from topwork.training.distillation import Teacher
from topwork.training.frozen_norm import fold_frozen_norms
from topwork.training.roi_pool import replace_pool_gradient
from topwork.weights.format import Weights


def training_detector(
    weights: Weights, family: Family, params: FinetuneParams, device: Device
) -> nn.Module:
    """The grafted detector on the device, in the memory layout that its convolutions like best."""
    model = load(weights, device.device)
    model.to(memory_format=torch.channels_last)
    if params.freeze_batch_norm:
        fold_frozen_norms(model)
    if params.deterministic or not device.on_gpu:
        replace_pool_gradient(model, family)
    trunk = dict(learning_part(model).named_modules()).get(family.backbone)
    if trunk is not None:
        trunk.register_forward_pre_hook(_channels_last)
        if params.compile:
            trunk.compile()
    if isinstance(model, Branched):
        model.first_module().register_forward_pre_hook(_channels_last)
    return model


def learning_part(detector: nn.Module) -> nn.Module:
    """The part of a detector that learns."""
    return detector.scion if isinstance(detector, Branched) else detector


def teacher_of(
    model: nn.Module,
    weights: Weights,
    kept: Collection[str],
    spec: HeadSpec,
    dataset: DetectionDataset,
    params: FinetuneParams,
    device: Device,
) -> tuple[Teacher | None, str | None]:
    """The pretrained detector that a student is held to; None where nothing is to be distilled.
    And a note for the record, where it should be and can't.

    Args:
        model: the student.
        weights: the grafted ones, which both start from.
        kept: target classes whose rows came from the pretrained head.
        spec: the detector's head spec.
        dataset: whose images are looked at.
        params: finetune.
        device: where it answers.
    """
    if not params.distill or weights.branches is not None:
        return None, None
    if missing := spec.family.missing_for_distillation():
        return None, (
            f"distillation left out: the detector's family {spec.family.name!r} doesn't declare"
            f" {', '.join(missing)} (docs/surgery.md)"
        )
    columns = len(weights.columns)
    pretrained = [column for column, name in enumerate(weights.columns) if name in kept]
    pretrained += range(columns, columns + len(weights.absorbed))
    if not pretrained:
        return None, "distillation left out: no class is kept and none is absorbed"
    teacher = Teacher(
        training_detector(weights, spec.family, params, device),
        model,
        spec.family,
        [0, *pretrained] if spec.softmax else pretrained,
        spec.softmax,
        variants=len(dataset) * dataset.variants if dataset.steady else 0,
        memory_mib=params.feature_cache_mib,
    )
    return teacher, None


def _channels_last(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:])
