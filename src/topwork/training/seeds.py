"""Seeds by key: every random draw of a run is named, so that it doesn't matter who draws it, when,
or after which restart.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_of(*key: int | str) -> int:
    """A seed in 0..2**63-1 from a key such as (seed, "order", epoch).

    Example:
        >>> seed_of(0, "order", 1) == seed_of(0, "order", 1) != seed_of(0, "order", 2)
        True
    """
    digest = hashlib.sha256(
        "\0".join(f"{type(part).__name__}:{part}" for part in key).encode()
    ).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def permutation(length: int, *key: int | str) -> list[int]:
    """A random order of range(length) that the key alone decides."""
    generator = torch.Generator().manual_seed(seed_of(*key))
    order: list[int] = torch.randperm(length, generator=generator).tolist()
    return order


@contextmanager
def drawn_by(*key: int | str) -> Iterator[None]:
    """Within the block, torch's global CPU generator is seeded by the key; afterwards it's as it
    was before.
    """
    before = torch.random.get_rng_state()
    torch.default_generator.manual_seed(seed_of(*key))
    try:
        yield
    finally:
        torch.random.set_rng_state(before)
