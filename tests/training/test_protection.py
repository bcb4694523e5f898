"""Which rows of a grafted detector are new, which are absorbed, and what lies in the trunk."""

import torch

from detectors import tiny
from topwork import graft
from topwork.detectors.axes import head_spec_of
from topwork.params.finetune import FinetuneParams
from topwork.training.protection import Protection, RowMasks, row_masks
from topwork.weights.format import Weights

COLUMNS = ("__background__", "person", "car", "dog")
WEIGHT, BIAS = (
    "head.classification_head.module_list.0.weight",
    "head.classification_head.module_list.0.bias",
)


def _grafted() -> Weights:
    """Level 0 has 4 anchors; its columns: background, dog, van, hat, and person, car absorbed."""
    return graft(
        tiny.ssd(4).state_dict(),
        {"dog": "keep", "van": {"like": "car"}, "hat": "new"},
        builder=f"{tiny.__file__}:ssd",
        columns=COLUMNS,
        dropped="absorb",
    ).weights


def _rows(mask: torch.Tensor) -> list[int]:
    return mask.flatten().nonzero().flatten().tolist()


def test_rows_by_hand() -> None:
    weights = _grafted()
    assert weights.absorbed == ("person", "car")
    masks = row_masks(weights, ["dog", "van"])
    assert _rows(masks[WEIGHT].new) == _rows(masks[BIAS].new) == [3, 9, 15, 21]
    assert _rows(masks[WEIGHT].absorbed) == [4, 5, 10, 11, 16, 17, 22, 23]
    assert masks[WEIGHT].new.shape == (24, 1, 1, 1)
    assert _rows(row_masks(weights, ["van"])[BIAS].new) == [1, 3, 7, 9, 13, 15, 19, 21]


def test_every_row_is_background_kept_new_or_absorbed() -> None:
    weights = _grafted()
    spec = head_spec_of(weights)
    for name, mask in row_masks(weights, ["dog"], spec).items():
        axis = spec.axis_of(name)
        assert axis is not None
        assert not (mask.new & mask.absorbed).any()
        others = (~(mask.new | mask.absorbed)).flatten().nonzero().flatten().tolist()
        assert others == sorted(axis.rows(0) + axis.rows(weights.columns.index("dog")))


def test_a_head_that_absorbs_nothing_has_no_absorbed_rows() -> None:
    source = tiny.retinanet(4).state_dict()
    builder = f"{tiny.__file__}:retinanet"
    weights = graft(source, ["dog", "car"], builder=builder, columns=COLUMNS).weights
    masks = row_masks(weights, ["dog", "car"])
    assert len(masks) == 2
    assert not any(mask.new.any() or mask.absorbed.any() for mask in masks.values())


def test_every_tensor_is_in_the_trunk_or_in_the_head() -> None:
    weights = _grafted()
    masks: dict[str, RowMasks] = {}
    protection = Protection(FinetuneParams(), masks, head_spec_of(weights).family.trunk)
    trunk = {name for name in weights.state_dict if protection.in_trunk(name)}
    assert {name.split(".")[0] for name in trunk} == {"backbone"}
    assert {name.split(".")[0] for name in weights.state_dict if name not in trunk} == {"head"}
