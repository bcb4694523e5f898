"""Device placement of a training step, on fake CUDA tensors: no GPU is needed, and mixed devices
fail as on a real one.

The detector's own matching of boxes depends on values, which fake tensors don't have; a dense loss
stands in for it. All the rest is ours: objective, teacher, frozen norms, protection, clipping,
fused optimizer, moving average, interpolation.
"""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.models.detection.image_list import ImageList

from topwork.detectors.families import family_of
from topwork.params.finetune import FinetuneParams
from topwork.training.device import Device
from topwork.training.distillation import Teacher
from topwork.training.frozen_norm import fold_frozen_norms
from topwork.training.interpolation import interpolate
from topwork.training.objective import Objective
from topwork.training.protection import Protection, RowMasks
from topwork.training.state import State
from training.tiny import SIDE, build

CUDA = torch.device("cuda", 0)


class Sized(nn.Module):
    """Images that have the right size already; torchvision's own transform asks tensors for
    numbers.
    """

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[ImageList, list[dict[str, Tensor]]]:
        return ImageList(torch.stack(images), [(SIDE, SIDE)] * len(images)), targets


class Dense(nn.Module):
    """The tiny detector's trunk and head, with a loss whose shapes don't depend on values."""

    def __init__(self) -> None:
        super().__init__()
        whole = build(4)
        self.transform = Sized()
        self.backbone, self.anchor_generator, self.head = (
            whole.backbone,
            whole.anchor_generator,
            whole.head,
        )
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval().requires_grad_(False)
        fold_frozen_norms(self)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        listed, targets = self.transform(images, targets)
        maps = list(self.backbone(listed.tensors).values())
        heads = self.head(maps)
        self.anchor_generator(listed, maps)
        wanted = torch.stack([target["boxes"].mean() for target in targets]).mean()
        return {
            "bbox_regression": (heads["bbox_regression"] - wanted).square().mean(),
            "classification": heads["cls_logits"].square().mean(),
        }


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_whole_step_stays_on_the_gpu(optimizer: str) -> None:
    params, family = FinetuneParams(optimizer=optimizer), family_of(build(4))
    device = Device(CUDA, torch.float32, False)  # autocast wants a real GPU
    with FakeTensorMode():
        with torch.device(CUDA):
            model, teacher = Dense().train(), Dense()
        objective = Objective(
            model, params, Teacher(teacher, model, family, [0, 1, 3], softmax=True)
        )
        rows = torch.zeros(24, dtype=torch.bool)
        masks = {"head.classification_head.module_list.0.bias": RowMasks(rows[:16], rows[:16])}
        protection = Protection(params, masks).to(CUDA)
        state = State(
            model,
            protection.optimizer(model, fused=optimizer == "adamw"),
            torch.amp.GradScaler("cuda", enabled=False),
        )
        images = [torch.zeros(3, SIDE, SIDE, dtype=torch.uint8) for _ in range(2)]
        targets = [
            {"boxes": torch.zeros(1, 4), "labels": torch.ones(1, dtype=torch.int64)}
            for _ in range(2)
        ]
        with device.autocast():
            terms = objective(device.to(images), device.to(targets))
        assert set(terms) == {
            "bbox_regression",
            "classification",
            "distill_classes",
            "distill_boxes",
        }
        total = torch.stack([term.float() for term in terms.values()]).sum()
        assert total.device == CUDA
        for (
            parameter
        ) in model.parameters():  # backward itself asks the driver for a context, which isn't there
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        protection.before_step(model)
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
        state.optimizer.step()
        state.follow(0.9)
        mixed = interpolate(model.state_dict(), state.result(), 0.5, protection.masks)
        learned = [p for p in model.parameters() if p.requires_grad]
        assert {p.grad.device for p in learned if p.grad is not None} == {CUDA}
        assert {tensor.device for tensor in mixed.values()} == {CUDA}
        assert {
            slot.device
            for held in state.optimizer.state.values()
            for slot in held.values()
            if isinstance(slot, Tensor)
        } == {CUDA}


def test_a_forgotten_copy_is_found() -> None:
    with FakeTensorMode():
        with torch.device(CUDA):
            model = Dense().train()
        with pytest.raises(RuntimeError, match=r"(?s)cuda:0.*cpu|cpu.*cuda:0|device"):
            Objective(model, FinetuneParams())(
                [torch.zeros(3, SIDE, SIDE)],
                [{"boxes": torch.zeros(1, 4), "labels": torch.ones(1)}],
            )
