"""What is minimized: the detector's own losses, and the pull towards the pretrained detector."""

from typing import Any

import torch
from torch import Tensor, nn

from topwork.params.finetune import FinetuneParams
from topwork.training.distillation import Teacher
from topwork.training.features import FeatureBank


class Objective(nn.Module):
    """Images and targets in, loss terms out; one module, so that DDP can wrap it.

    Args:
        model: the detector in training.
        params: finetune.
        teacher: the pretrained detector, or None.
    """

    def __init__(
        self, model: nn.Module, params: FinetuneParams, teacher: Teacher | None = None
    ) -> None:
        super().__init__()
        self.model, self.params = model, params
        self._teacher = [teacher]  # in a list, so that its tensors aren't this module's
        self.bank: FeatureBank | None = None

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Loss terms, each a scalar with its weight in it; uint8 images are scaled to 0..1 here, on
        the device.
        """
        (teacher,) = self._teacher
        if self.bank is not None:
            with self.bank.mounted(targets):
                terms: dict[str, Tensor] = self.model(images, targets)
        else:
            images = [
                image.float().div_(255) if image.dtype == torch.uint8 else image for image in images
            ]
            terms = self.model(images, targets)
        if teacher is not None:
            teacher.banked_features = self.bank is not None
            found = teacher.losses([target.get("variant") for target in targets])
            terms = {**terms, "distill_classes": found["distill_classes"] * self.params.distill}
            if "distill_boxes" in found and self.params.distill_boxes:
                terms["distill_boxes"] = found["distill_boxes"] * (
                    self.params.distill * self.params.distill_boxes
                )
        return terms
