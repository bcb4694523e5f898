"""Device placement of a training step, on fake CUDA tensors: no GPU is needed, and mixed devices fail as on a real one.

The detector's own matching of boxes depends on values, which fake tensors don't have; a dense loss stands in for it. All the rest is ours:
objective, teacher, frozen norms, protection, clipping, fused optimizer, moving average, interpolation.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from topwork.params import FinetuneParams
from topwork.training.device import Device
from topwork.training.distillation import Teacher
from topwork.training.frozen_norm import fold_frozen_norms
from topwork.training.interpolation import interpolate
from topwork.training.objective import Objective
from topwork.training.protection import Protection, RowMasks
from topwork.training.state import State
from training.tiny import SIDE, build

CUDA = torch.device("cuda", 0)


def _dense_loss(targets: Any, heads: dict[str, Tensor], anchors: Any, matched: Any) -> dict[str, Tensor]:
    return {"bbox_regression": heads["bbox_regression"].square().mean(), "classification": heads["cls_logits"].square().mean()}


def _detector() -> nn.Module:
    model: Any = build(4)
    model.compute_loss = _dense_loss
    model.proposal_matcher = lambda quality: quality[0].long()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    fold_frozen_norms(model)
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_whole_step_stays_on_the_gpu(optimizer: str) -> None:
    params = FinetuneParams(optimizer=optimizer, l2_pull=0.1, decay_kept=True, freeze_kept=1)
    device = Device(CUDA, torch.bfloat16, False)
    with FakeTensorMode():
        with torch.device(CUDA):
            model, teacher = _detector().train(), _detector()
        objective = Objective(model, params, Teacher(teacher, model, [0, 1, 3], softmax=True))
        rows = torch.zeros(24)
        masks = {"head.classification_head.module_list.0.bias": RowMasks(rows[:16], rows[:16], rows[:16])}
        anchor = {name: torch.zeros(tensor.shape) for name, tensor in model.named_parameters()}
        protection = Protection(params, masks, anchor=anchor).to(CUDA)
        state = State(model, protection.optimizer(model, fused=True), torch.amp.GradScaler("cuda", enabled=False))
        images = [torch.zeros(3, SIDE, SIDE, dtype=torch.uint8) for _ in range(2)]
        targets = [{"boxes": torch.zeros(1, 4), "labels": torch.ones(1, dtype=torch.int64)} for _ in range(2)]
        model.transform.forward = _as_given(model.transform)
        with device.autocast():
            terms = objective(device.to(images), device.to(targets))
        assert set(terms) == {"bbox_regression", "classification", "distill_classes", "distill_boxes"}
        torch.stack([term.float() for term in terms.values()]).sum().backward()
        protection.before_step(model, 0, 0.1)
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
        state.optimizer.step()
        state.follow(0.9)
        mixed = interpolate(model.state_dict(), state.result(), 0.5, protection.masks)
        learned = [p for p in model.parameters() if p.requires_grad]
        assert {p.grad.device for p in learned if p.grad is not None} == {CUDA}
        assert {tensor.device for tensor in mixed.values()} == {CUDA}
        assert {slot.device for held in state.optimizer.state.values() for slot in held.values() if isinstance(slot, Tensor)} == {CUDA}


def test_a_forgotten_copy_is_found() -> None:
    with FakeTensorMode():
        with torch.device(CUDA):
            model = _detector().train()
        model.transform.forward = _as_given(model.transform)
        with pytest.raises(RuntimeError, match="cuda:0"):
            Objective(model, FinetuneParams())([torch.zeros(3, SIDE, SIDE)], [{"boxes": torch.zeros(1, 4), "labels": torch.ones(1)}])


def _as_given(transform: Any) -> Any:
    """The detector's transform without its check of boxes, which reads values."""

    def forward(images: list[Tensor], targets: Any) -> Any:
        from torchvision.models.detection.image_list import ImageList

        batch = torch.stack([transform.normalize(image) for image in images])
        return ImageList(batch, [(SIDE, SIDE)] * len(images)), [{**target, "boxes": target["boxes"][:0]} for target in targets]

    return forward
