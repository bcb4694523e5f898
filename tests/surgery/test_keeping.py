"""The receipt of a fine-tuned file: from the two files alone, and every fault by its name."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detectors.branching import PLAN, ssd, weights_of
from topwork.errors import ReceiptError, TopworkError
from topwork.project.finetune import KeepingReceipt
from topwork.surgery.branch import branch
from topwork.surgery.keeping import keeping_receipt
from topwork.surgery.receipt import seal_of
from topwork.surgery.verification import verify_graft
from topwork.weights.format import Weights, read_weights, write_weights

STOCK = "backbone.features.0.weight"
SCION = "scions.0.backbone.features.10.weight"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Source, fine-tuned file and receipt; the scion moved, as training moves it."""
    source, result, receipt = (
        tmp_path / name for name in ("source.safetensors", "result.safetensors", "receipt.json")
    )
    pretrained = weights_of(ssd)
    both = branch(pretrained, PLAN)
    moved = {
        name: tensor + 0.01 if name.startswith("scions.") and tensor.is_floating_point() else tensor
        for name, tensor in both.state_dict.items()
    }
    write_weights(source, pretrained)
    write_weights(result, replace(both, state_dict=moved))
    keeping_receipt(source, result).write(receipt)
    return source, result, receipt


def test_a_receipt_is_checked_from_the_two_files(files: tuple[Path, Path, Path]) -> None:
    held = verify_graft(*files, trust=True)
    assert held[0].startswith("result: all 22 tensors of the source are in it, bit-identical")
    assert "kept exactly: person" in held
    stated = KeepingReceipt.read(files[2])
    assert stated.scions[0].cut == "backbone.features.5"
    assert stated.shared == 6  # three convolutions with their biases
    parts = [tensor.part for tensor in stated.tensors]
    assert parts.count("stock") == len(weights_of(ssd).state_dict)
    assert parts.count("scion") == parts.count("stock") - stated.shared


def test_with_a_share_of_the_scion_nothing_is_exact(files: tuple[Path, Path, Path]) -> None:
    source, result, receipt = files
    both = read_weights(result, trust=True)
    assert both.branches is not None
    write_weights(result, replace(both, branches=replace(both.branches, mix=0.05)))
    keeping_receipt(source, result).write(receipt)
    held = verify_graft(*files, trust=True)
    assert "kept exactly: no class (the branch has a share of 0.05 in them)" in held


def test_a_kept_class_is_reported_with_the_name_that_it_has_in_the_source(
    files: tuple[Path, Path, Path],
) -> None:
    source, result, receipt = files
    both = branch(weights_of(ssd), {"guest": {"keep": "person"}, "helmet": "new"})
    write_weights(result, both)
    keeping_receipt(source, result).write(receipt)
    assert "kept exactly: guest (the source's person)" in verify_graft(*files, trust=True)


def test_a_single_detector_keeps_no_class_exactly(files: tuple[Path, Path, Path]) -> None:
    source, result, receipt = files
    pretrained = weights_of(ssd)
    write_weights(result, pretrained)
    keeping_receipt(source, result).write(receipt)
    assert verify_graft(*files, trust=True)[1].endswith("no class is kept exactly")


def flipped(name: str) -> Callable[[Weights], Weights]:
    """One bit of one number of a tensor."""

    def change(weights: Weights) -> Weights:
        tensor = weights.state_dict[name].clone()
        tensor.view(torch.uint8).reshape(-1)[5] ^= 1
        return replace(weights, state_dict={**weights.state_dict, name: tensor})

    return change


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: replace(
        weights, state_dict={key: t for key, t in weights.state_dict.items() if key != name}
    )


def with_also(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: replace(weights, state_dict={**weights.state_dict, name: torch.zeros(2)})


def exchanged(one: str, other: str) -> Callable[[Weights], Weights]:
    return lambda weights: replace(
        weights,
        state_dict={
            **weights.state_dict,
            one: weights.state_dict[other],
            other: weights.state_dict[one],
        },
    )


def branches(**changes: Any) -> Callable[[Weights], Weights]:
    def change(weights: Weights) -> Weights:
        assert weights.branches is not None
        return replace(weights, branches=replace(weights.branches, **changes))

    return change


RESULT_FAULTS: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "a bit of the shared trunk": (
        flipped(STOCK),
        rf"{STOCK} isn't the source's: 1 of 216 numbers differ, the first at \[0, 0, 0, 1\]",
    ),
    "a bit of the stock's head": (
        flipped("head.classification_head.module_list.1.bias"),
        r"head\.classification_head\.module_list\.1\.bias isn't the source's: 1 of",
    ),
    "a bit of the scion": (flipped(SCION), rf"{SCION} is scion, .* the receipt says scion"),
    "a tensor of the stock is gone": (
        without(STOCK),
        rf"1 tensors of .* missing, the first {STOCK}",
    ),
    "a tensor too many": (
        with_also("backbone.extra.9.weight"),
        r"backbone\.extra\.9\.weight is nei",
    ),
    "two tensors exchanged": (
        exchanged("backbone.features.4.bias", "backbone.features.6.bias"),
        r"backbone\.features\.4\.bias isn't the source's: 12 of 12 numbers differ",
    ),
    "another dtype": (
        lambda weights: replace(
            weights,
            state_dict={**weights.state_dict, STOCK: weights.state_dict[STOCK].double()},
        ),
        rf"{STOCK} isn't the source's: torch\.float64 .*, expected torch\.float32",
    ),
    "person would be a car": (
        branches(kept={"person": "car"}),
        r"kept is \{'person': 'person'\}, by the two files it is \{'person': 'car'\}",
    ),
    "person would be nothing": (
        branches(kept={"person": "unicorn"}),
        r"person would be the stock's 'unicorn', which isn't a class",
    ),
    "a share mixed in": (branches(mix=0.1), r"exact is \['person'\], by the two files it is \[\]"),
    "the stock's classes moved": (
        branches(columns=("__background__", "car", "person", "tree", "dog")),
        r"the stock's columns are \['__background__', 'car', .*in .*source\.safetensors they are",
    ),
    "other arguments of the builder": (
        lambda weights: replace(weights, builder_args={"score_thresh": 0.5}),
        r"builder_args is \{'score_thresh': 0\.5\}.*the stock would be another detector",
    ),
}


@pytest.mark.parametrize("fault", RESULT_FAULTS)
def test_a_fault_planted_in_the_fine_tuned_file_is_named(
    files: tuple[Path, Path, Path], fault: str
) -> None:
    change, message = RESULT_FAULTS[fault]
    write_weights(files[1], change(read_weights(files[1], trust=True)))
    with pytest.raises(ReceiptError, match=message):
        verify_graft(*files, trust=True)


def test_a_fault_planted_in_the_source_is_named(files: tuple[Path, Path, Path]) -> None:
    write_weights(files[0], flipped(STOCK)(read_weights(files[0], trust=True)))
    with pytest.raises(ReceiptError, match=rf"{STOCK} isn't the source's"):
        verify_graft(*files, trust=True)
    with pytest.raises(ReceiptError, match=rf"{STOCK} isn't the source's"):
        keeping_receipt(files[0], files[1])


def changed(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.__setitem__(key, value)


RECEIPT_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], None], bool, str]] = {
    "edited": (changed("exact", ["person", "box"]), False, r"the receipt itself was changed"),
    "edited and sealed again": (
        changed("exact", ["person", "box"]),
        True,
        r"exact is \['person', 'box'\], by the two files it is \['person'\]",
    ),
    "a hash of the stock": (
        lambda document: document["tensors"][0].update(sha256="0" * 64),
        True,
        r"backbone\.extra\.0\.0\.bias is stock, .*the receipt says stock.* 000000000000",
    ),
    "a tensor that would be a scion's": (
        lambda document: document["tensors"][0].update(part="scion"),
        True,
        r"is stock, .*the receipt says scion",
    ),
    "another cut": (
        lambda document: document["scions"][0].update(cut=None),
        True,
        r"scions is .*'cut': None",
    ),
    "another file": (
        lambda document: document["result"].update(file_sha256="1" * 64),
        True,
        r"result\.file_sha256 is '1111",
    ),
    "of no known version": (
        changed("topwork_keeping_receipt", 7),
        True,
        r"topwork_keeping_receipt is 7",
    ),
}


@pytest.mark.parametrize("fault", RECEIPT_FAULTS)
def test_a_fault_planted_in_the_receipt_is_named(
    files: tuple[Path, Path, Path], fault: str
) -> None:
    change, sealed, message = RECEIPT_FAULTS[fault]
    document = json.loads(files[2].read_text())
    change(document)
    if sealed:
        rest = {key: value for key, value in document.items() if key != "sha256"}
        document["sha256"] = seal_of(rest)
    files[2].write_text(json.dumps(document))
    with pytest.raises(TopworkError, match=message):
        verify_graft(*files, trust=True)
