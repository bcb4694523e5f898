"""Which rows belong to whom, as training reads it."""

import torch

from detectors import tiny
from topwork import graft
from topwork.detectors.protection import RowGroup, protection_of, rows_of

COLUMNS = ("__background__", "person", "car", "dog")
WEIGHT, BIAS = (
    "head.classification_head.module_list.0.weight",
    "head.classification_head.module_list.0.bias",
)


def _grafted():
    from pathlib import Path

    builder = f"{Path(tiny.__file__)}:ssd"
    return graft(
        tiny.ssd(4).state_dict(),
        {"dog": "keep", "van": {"like": "car"}, "hat": "new"},
        builder=builder,
        columns=COLUMNS,
        dropped="absorb",
    ).weights


def test_rows_by_hand():
    weights = _grafted()  # level 0: 4 anchors, columns: bg dog van hat | person car
    assert weights.absorbed == ("person", "car")
    rows = rows_of(weights, ["dog"])
    assert rows[BIAS] == RowGroup(0, (1, 7, 13, 19))
    found = protection_of(weights)
    assert found.kept == rows
    assert found.like[WEIGHT].rows == (2, 8, 14, 20)
    assert found.new[WEIGHT].rows == (3, 9, 15, 21)
    assert found.background[WEIGHT].rows == (0, 6, 12, 18)
    assert found.absorbed[WEIGHT].rows == (4, 5, 10, 11, 16, 17, 22, 23)
    assert protection_of(weights, {"dog": "new"}).new[WEIGHT].rows == (1, 7, 13, 19)


def test_every_row_and_every_tensor_has_one_owner():
    weights = _grafted()
    found = protection_of(weights)
    for tensor in found.background:
        owned = [
            row
            for group in (found.kept, found.like, found.new, found.background, found.absorbed)
            for row in group[tensor].rows
        ]
        assert sorted(owned) == list(range(weights.state_dict[tensor].shape[0]))
    assert sorted([*found.trunk, *found.head]) == sorted(weights.state_dict)
    assert {name.split(".")[0] for name in found.trunk} == {"backbone"}
    assert {name.split(".")[0] for name in found.head} == {"head"}


def test_rows_freeze_by_masking_the_gradient():
    """How its rows are used: those of the named class stay put, to the bit."""
    weights = _grafted()
    tensor = weights.state_dict[WEIGHT].clone().requires_grad_()
    frozen = torch.tensor(rows_of(weights, ["dog"])[WEIGHT].rows)
    tensor.register_hook(lambda gradient: gradient.index_fill(0, frozen, 0.0))
    before = tensor.detach().clone()
    optimizer = torch.optim.SGD([tensor], lr=0.1)
    (tensor**2).sum().backward()
    optimizer.step()
    moved = (tensor.detach() != before).flatten(1).any(1).nonzero().flatten().tolist()
    assert moved == [row for row in range(24) if row not in (1, 7, 13, 19)]
