"""Kept exactly: what the receipt proves, and whether the detections agree with it."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from topwork.project.finetune import KeepingReceipt
from topwork.project.predictions import PredictionRecord

_NUMBERS = ["image_id", "score", "x", "y", "width", "height"]


@dataclass(frozen=True)
class Proof:
    """Whether a class is kept exactly, in one sentence."""

    holds: bool
    sentence: str


def prove(
    name: str,
    receipt: KeepingReceipt,
    records: Mapping[str, PredictionRecord],
    detections: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]],
) -> Proof:
    """Hold one class against the receipt and against the pretrained detector's detections.

    The receipt decides. Detections can be compared bit by bit only where both detectors ran on the
    same kind of machine with the same batch size; elsewhere the last digits differ for that reason.

    Args:
        name: the class.
        receipt: of the fine-tuned file.
        records: how `pretrained` and `finetuned` predictions were computed.
        detections: set -> predictions of the pretrained and of the fine-tuned detector.
    """
    if name not in receipt.exact:
        return Proof(
            False,
            f"asked for exact, and the receipt of the fine-tuned weights doesn't prove it (it"
            f" proves {', '.join(receipt.exact) or 'no class'})",
        )
    tensors = sum(tensor.part == "stock" for tensor in receipt.tensors)
    proved = f"exact: proved, all {tensors} tensors that give it are the pretrained detector's"
    before, after = records["pretrained"], records["finetuned"]
    if (before.machine, before.batch_size) != (after.machine, after.batch_size):
        return Proof(
            True,
            f"{proved}; detections not compared, since they were computed on different machines or"
            " at different batch sizes",
        )
    images = 0
    for split, (one, other) in detections.items():
        ours, theirs = (
            table.loc[table["name"] == name, _NUMBERS].reset_index(drop=True)
            for table in (one, other)
        )
        if not ours.equals(theirs):
            return Proof(
                False,
                f"{proved}, but {_difference(ours, theirs)} on {split} differ from the pretrained"
                " detector's; run `dvc repro --force predict`, and tell topwork's authors if they"
                " still differ",
            )
        images += ours["image_id"].nunique()
    return Proof(
        True, f"{proved}; detections equal on all held-out images ({images} with the class)"
    )


def _difference(ours: pd.DataFrame, theirs: pd.DataFrame) -> str:
    both = pd.concat([ours.assign(side=0), theirs.assign(side=1)])
    odd = both.drop_duplicates(_NUMBERS, keep=False)
    return f"detections of {odd['image_id'].nunique() or 'some'} images"
