"""Tensors compared to the bit."""

import torch
from torch import Tensor


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same to the bit (so that NaN equals itself, and 0.0 isn't
    -0.0).
    """
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def differing(one: Tensor, other: Tensor) -> str:
    """Where two tensors of one shape differ, and by what."""
    size = one.element_size()
    differs = (_bytes(one) != _bytes(other)).reshape(-1, size).any(1)
    index = int(differs.nonzero()[0])
    place = (
        [int(part) for part in torch.unravel_index(torch.tensor(index), one.shape)]
        if one.dim()
        else []
    )
    values = (
        f"found {one.reshape(-1)[index].item()!r}, expected {other.reshape(-1)[index].item()!r}"
    )
    return f"{int(differs.sum())} of {one.numel()} numbers differ, the first at {place} ({values})"
