"""Protection of what was pretrained: which tensors learn and how fast, which rows stay, which get
no weight decay.

A class-dependent tensor holds rows of kept, new and absorbed classes side by side; an optimizer
knows tensors only. So the gradients of rows that stay are zeroed just before each step; and no
class-dependent tensor gets weight decay, which knows no rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from topwork.detectors.axes import HeadSpec, head_spec_of
from topwork.detectors.layouts import ClassAxis
from topwork.errors import TrainingError
from topwork.params.finetune import FinetuneParams
from topwork.weights.format import Weights


@dataclass(frozen=True)
class RowMasks:
    """Of one class-dependent tensor: True at the rows of new and of absorbed classes, shaped to
    broadcast over the tensor.
    """

    new: Tensor
    absorbed: Tensor

    def to(self, device: torch.device) -> "RowMasks":
        """The same on another device."""
        return RowMasks(self.new.to(device), self.absorbed.to(device))


def row_masks(
    weights: Weights, kept: Iterable[str], spec: HeadSpec | None = None
) -> dict[str, RowMasks]:
    """Masks of every class-dependent tensor, by its name.

    Args:
        weights: the grafted ones; columns that are neither background nor `kept` are new.
        kept: target classes whose rows came from the pretrained head.
        spec: the detector's head spec, where it's already known.
    """
    spec = spec or head_spec_of(weights)
    kept = set(kept)
    new = [column for column, name in enumerate(weights.columns) if column and name not in kept]
    absorbed = range(len(weights.columns), len(weights.columns) + len(weights.absorbed))
    return {
        axis.tensor: RowMasks(
            *(_mask(axis, spec.shapes[axis.tensor], columns) for columns in (new, absorbed))
        )
        for axis in spec.axes
    }


def _mask(axis: ClassAxis, shape: Sequence[int], columns: Iterable[int]) -> Tensor:
    """True at the rows of some columns: bool, 1 in every dimension but the class axis."""
    mask = torch.zeros(
        [size if place == axis.axis else 1 for place, size in enumerate(shape)], dtype=torch.bool
    )
    rows = [row for column in columns for row in axis.rows(column)]
    return mask.index_fill_(axis.axis, torch.tensor(rows, dtype=torch.int64), True)


@dataclass
class Protection:
    """The rules of a run, applied to its model.

    Attributes:
        params: finetune.
        masks: rows of class-dependent tensors.
        trunk: prefixes of trunk tensors.
    """

    params: FinetuneParams
    masks: Mapping[str, RowMasks]
    trunk: tuple[str, ...] = ("backbone.",)

    def in_trunk(self, name: str) -> bool:
        """Whether a tensor belongs to the trunk."""
        return name.startswith(self.trunk)

    def freeze(self, model: nn.Module, *, trunk: bool) -> None:
        """Set which parameters learn: batch norm's don't, the trunk's where `trunk` is False; and
        put batch norm to rest.
        """
        resting: set[str] = set()
        if self.params.freeze_batch_norm:
            for name, module in model.named_modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
                    resting.update(
                        f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)
                    )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in resting and (trunk or not self.in_trunk(name)))
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise TrainingError(
                "finetune: nothing is left to learn; every tensor of the detector is frozen by"
                " these params."
            )

    def optimizer(self, model: nn.Module, fused: bool) -> torch.optim.Optimizer:
        """The optimizer: groups by place (trunk, head) and by weight decay."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            decayed = parameter.dim() > 1 and name not in self.masks
            groups.setdefault((self.in_trunk(name), decayed), []).append(parameter)
        listed: list[dict[str, Any]] = [
            {
                "params": parameters,
                "weight_decay": self.params.weight_decay if decayed else 0.0,
                "scale": self.params.trunk_lr if in_trunk else 1.0,
                "trunk": in_trunk,
            }
            for (in_trunk, decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
        ]
        if self.params.optimizer == "adamw":
            return torch.optim.AdamW(listed, lr=self.params.lr, fused=fused)
        return torch.optim.SGD(
            listed, lr=self.params.lr, momentum=self.params.momentum, fused=fused
        )

    @torch.no_grad()
    def before_step(self, model: nn.Module) -> None:
        """Absorbed rows lose their gradient, so that the optimizer leaves them to the bit."""
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and name in self.masks:
                parameter.grad.masked_fill_(self.masks[name].absorbed, 0.0)

    def to(self, device: torch.device) -> "Protection":
        """The same with its tensors on another device."""
        return Protection(
            self.params, {name: masks.to(device) for name, masks in self.masks.items()}, self.trunk
        )
