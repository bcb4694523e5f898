"""verify-graft: holds on what the surgery wrote, and names the place of each of ten planted
faults.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from jsonschema import Draft202012Validator

from detectors import tiny
from topwork import graft, read_weights, verify_graft, write_weights
from topwork.cli import main
from topwork.detectors.axes import randomize
from topwork.detectors.builders import build
from topwork.errors import ReceiptError, TopworkError
from topwork.files import read_json, sha256_file, write_json
from topwork.project.surgery import ReceiptRecord
from topwork.surgery.receipt import sealed
from topwork.weights.format import Weights

COLUMNS = ("__background__", "person", "car", "truck", "dog", "N/A", "tree")
PLAN = {"dog": "keep", "helmet": "new", "person": "keep", "lorry": {"like": ["truck", "car"]}}
LEVEL0, LEVEL1 = (f"head.classification_head.module_list.{level}" for level in (0, 1))
BUILDER = f"{Path(tiny.__file__)}:ssd"


def _files(folder, dropped="absorb", builder=BUILDER):
    torch.manual_seed(3)
    model = build(builder, len(COLUMNS))
    randomize(model)
    write_weights(folder / "source.safetensors", Weights(model.state_dict(), COLUMNS, builder))
    done = graft(read_weights(folder / "source.safetensors", trust=True), PLAN, dropped=dropped)
    write_weights(folder / "result.safetensors", done.weights)
    receipt = sealed(
        done.receipt,
        *(sha256_file(folder / f"{side}.safetensors") for side in ("source", "result")),
    )
    write_json(folder / "receipt.json", receipt)
    return [folder / name for name in ("source.safetensors", "result.safetensors", "receipt.json")]


@pytest.mark.parametrize(
    "builder", ["ssd", "faster_rcnn", "mask_rcnn", "retinanet", "fcos", "unusual", "points"]
)
@pytest.mark.parametrize("dropped", ["remove", "absorb"])
def test_holds_on_an_untouched_graft(tmp_path, builder, dropped):
    builder = f"{Path(tiny.__file__)}:{builder}"
    files = _files(tmp_path, dropped, builder)
    holds = verify_graft(*files, builder=builder)
    assert len(holds) == 7
    assert any("untouched tensors are bit-identical" in sentence for sentence in holds)
    schema = read_json(Path(__file__).parents[2] / "docs" / "receipt.schema.json")
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(read_json(files[2]))
    assert ReceiptRecord.read(files[2]).document() == read_json(files[2])


def _swap(state, tensor, one, other):
    value = state[tensor].clone()
    value[[one, other]] = value[[other, one]]
    state[tensor] = value


def _flip_bit(tensor, index, bit):
    flipped = tensor.clone()
    flipped.view(torch.int32).reshape(-1)[index] ^= 1 << bit
    return flipped


# ssd, level 0: 4 anchors, level 1: 6; the absorbed head has 9 columns: bg dog helmet person lorry |
# car truck N/A tree
def _swapped_rows(state):
    _swap(state, f"{LEVEL0}.weight", 1, 3)  # anchor 0: dog and person


def _shifted_anchor_group(state):
    state[f"{LEVEL1}.bias"] = state[f"{LEVEL1}.bias"].roll(9)


def _another_class_bias(state):
    bias = state[f"{LEVEL1}.bias"].clone()
    bias[3::9] = bias[1::9]  # person's bias is dog's
    state[f"{LEVEL1}.bias"] = bias


def _by_position(state):
    weight = state[f"{LEVEL0}.weight"].clone()
    weight[1::9] = weight[3::9]  # dog's rows are person's, who stood first in the source
    state[f"{LEVEL0}.weight"] = weight


def _flipped_bit_in_a_kept_row(state):
    state[f"{LEVEL0}.weight"] = _flip_bit(
        state[f"{LEVEL0}.weight"], state[f"{LEVEL0}.weight"][0].numel() * 3 + 5, 0
    )


def _flipped_sign_of_zero_outside(state):
    state["backbone.convs.0.bias"] = torch.cat(
        [torch.tensor([-0.0]), state["backbone.convs.0.bias"][1:]]
    )


def _flipped_bit_outside(state):
    state["backbone.convs.1.weight"] = _flip_bit(state["backbone.convs.1.weight"], 17, 0)


def _new_row_moved(state):
    bias = state[f"{LEVEL0}.bias"].clone()
    bias[2] += 1e-3
    state[f"{LEVEL0}.bias"] = bias


def _absorbed_row_zeroed(state):
    weight = state[f"{LEVEL1}.weight"].clone()
    weight[8] = 0
    state[f"{LEVEL1}.weight"] = weight


def _like_with_other_weights(state):
    weight = state[f"{LEVEL0}.weight"].clone()
    weight[4::9] = 0.4 * weight[5::9] + 0.6 * weight[6::9]
    state[f"{LEVEL0}.weight"] = weight


def _background_row_lost(state):
    bias = state[f"{LEVEL0}.bias"].clone()
    bias[9] = 0
    state[f"{LEVEL0}.bias"] = bias


def _half_precision(state):
    state["backbone.convs.0.weight"] = state["backbone.convs.0.weight"].half()


def _tensor_lost(state):
    del state["backbone.convs.0.bias"]


FAULTS = {
    _swapped_rows: rf"{LEVEL0}.weight: rows \[1, 10, 19, 28\] of dog aren't what the plan gives it",
    _shifted_anchor_group: rf"{LEVEL1}.bias: rows \[0, 9, .*\] of __background__ aren't",
    _another_class_bias: (
        rf"{LEVEL1}.bias: rows \[3, 12, .*\] of person aren't .* they are the source's rows of dog"
    ),
    _by_position: (
        rf"{LEVEL0}.weight: rows \[1, 10, .*\] of dog aren't .* they are the source's rows of"
        r" person"
    ),
    _flipped_bit_in_a_kept_row: (
        rf"{LEVEL0}.weight: rows \[3, .*\] of person aren't .* 1 of \d+ numbers differ, the first"
        r" at \[0, 0, 1, 2\]"
    ),
    _flipped_sign_of_zero_outside: (
        r"backbone.convs.0.bias: doesn't depend on the classes and must be as in the source.*found"
        r" -0.0, expected 0.0"
    ),
    _flipped_bit_outside: (
        r"backbone.convs.1.weight: doesn't depend on the classes.* 1 of \d+ numbers differ"
    ),
    _new_row_moved: rf"{LEVEL0}.bias: rows \[2, 11, 20, 29\] of helmet aren't",
    _absorbed_row_zeroed: rf"{LEVEL1}.weight: rows \[8, .*\] of tree aren't",
    _like_with_other_weights: rf"{LEVEL0}.weight: rows \[4, .*\] of lorry aren't",
    _background_row_lost: rf"{LEVEL0}.bias: rows \[0, 9, 18, 27\] of __background__ aren't",
    _half_precision: (
        r"backbone.convs.0.weight is torch.float16 \[8, 3, 3, 3\], expected torch.float32 \[8, 3,"
        r" 3, 3\]"
    ),
    _tensor_lost: r"tensors missing: backbone.convs.0.bias; not in the receipt: none",
}


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__.strip("_"))
def test_planted_faults_are_named(tmp_path, plant):
    source, result, receipt = _files(tmp_path)
    weights = read_weights(result, trust=True)
    state = {name: tensor.clone() for name, tensor in weights.state_dict.items()}
    if plant is _flipped_sign_of_zero_outside:
        before = read_weights(source, trust=True)
        zeroed = {
            **{name: tensor.clone() for name, tensor in before.state_dict.items()},
            "backbone.convs.0.bias": torch.zeros(8),
        }
        write_weights(source, Weights(zeroed, COLUMNS, BUILDER))
        state["backbone.convs.0.bias"] = torch.zeros(8)
        done = graft(read_weights(source, trust=True), PLAN, dropped="absorb")
        write_json(receipt, sealed(done.receipt, sha256_file(source)))
    plant(state)
    write_weights(
        result,
        Weights(state, weights.columns, weights.builder, {}, weights.absorbed, weights.provenance),
    )
    with pytest.raises(ReceiptError, match=FAULTS[plant]) as caught:
        verify_graft(source, result, receipt, builder=BUILDER)
    assert str(result) in str(caught.value)


@pytest.mark.parametrize("which", ["source", "result", "receipt"])
def test_every_bit_of_the_three_files_counts(tmp_path, which):
    files = _files(tmp_path)
    path = files[["source", "result", "receipt"].index(which)]
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(8 * len(whole), (40,), generator=generator).tolist():
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(TopworkError, match=rf"{which}\.|builder|layout"):
            verify_graft(*files, builder=BUILDER)
    path.write_bytes(whole)
    assert verify_graft(*files, builder=BUILDER)


def test_a_changed_source_is_named_by_row(tmp_path):
    source, result, receipt = _files(tmp_path)
    weights = read_weights(source, trust=True)
    state = {name: tensor.clone() for name, tensor in weights.state_dict.items()}
    state[f"{LEVEL0}.bias"][8] += 1  # anchor 1 of 7 columns: person
    write_weights(source, Weights(state, COLUMNS, BUILDER))
    with pytest.raises(
        ReceiptError,
        match=rf"source.safetensors: {LEVEL0}.bias, rows \[1, 8, 15, 22\] \(person\): SHA-256 is",
    ):
        verify_graft(source, result, receipt, builder=BUILDER)


def test_a_changed_receipt_is_found(tmp_path):
    source, result, receipt = _files(tmp_path)
    text = receipt.read_text()
    receipt.write_text(text.replace('"prior": 0.01', '"prior": 0.02'))
    with pytest.raises(
        ReceiptError, match=r"receipt.json: its SHA-256 is .* the receipt itself was changed"
    ):
        verify_graft(source, result, receipt, builder=BUILDER)
    forged = sealed({**json.loads(text), "activation": "sigmoid"})
    write_json(receipt, forged)
    with pytest.raises(
        ReceiptError, match=r"activation is 'sigmoid', computed again it is 'softmax'"
    ):
        verify_graft(source, result, receipt, builder=BUILDER)
    forged = json.loads(text)
    next(item for item in forged["tensors"] if item["status"] == "changed")["rows"][0]["origin"] = (
        "new"
    )
    write_json(receipt, sealed(forged))
    with pytest.raises(
        ReceiptError,
        match=r"tensors\[.*\].rows\[0\].origin is 'new', computed again it is 'background'",
    ):
        verify_graft(source, result, receipt, builder=BUILDER)
    write_json(receipt, {"topwork_receipt": 99})
    with pytest.raises(ReceiptError, match="found receipt version 99, expected 1"):
        verify_graft(source, result, receipt, builder=BUILDER)


DAMAGE = {
    "plan": None,
    "plan.classes": "x",
    "plan.classes.0.sources": {},
    "plan.classes.0.origin": "kept",
    "plan.prior": -1,
    "plan.seed": "0",
    "source": [],
    "source.columns": 3,
    "result": {},
    "tensors": None,
    "tensors.0": "x",
    "tensors.0.name": {},
    "versions": 3,
}


@pytest.mark.parametrize("place", DAMAGE)
def test_a_receipt_of_another_shape_is_refused_with_the_place(tmp_path, place):
    source, result, receipt = _files(tmp_path)
    record = read_json(receipt)
    *above, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    part = record
    for key in above:
        part = part[key]
    part[last] = DAMAGE[place]
    write_json(receipt, sealed(record))
    with pytest.raises(
        ReceiptError, match=rf"receipt.json: damaged, ({place}|dog is 'keep' from 0 classes)"
    ):
        verify_graft(source, result, receipt, builder=BUILDER)


def test_forged_origins_are_found_even_with_a_forged_receipt(tmp_path):
    """Training reads from the result's provenance whom to protect."""
    source, result, receipt = _files(tmp_path)
    weights = read_weights(result, trust=True)
    forged = {
        "graft": {
            "rows": {**weights.provenance["graft"]["rows"], "dog": "new"},
            "dropped": "absorb",
        }
    }
    write_weights(
        result,
        Weights(weights.state_dict, weights.columns, weights.builder, {}, weights.absorbed, forged),
    )
    write_json(receipt, sealed(read_json(receipt), result_file=sha256_file(result)))
    with pytest.raises(
        ReceiptError,
        match=r"result.safetensors: provenance is .*'dog': 'new'.*expected .*'dog': 'keep'",
    ):
        verify_graft(source, result, receipt, builder=BUILDER)


def test_command(tmp_path, capsys):
    files = [str(path) for path in _files(tmp_path)]
    assert main(["verify-graft", *files, "--builder", BUILDER]) == 0
    assert capsys.readouterr().out.count("holds  ") == 7
    Path(files[1]).write_bytes(Path(files[0]).read_bytes())
    assert main(["verify-graft", *files, "--builder", BUILDER]) == 1
    assert re.search(r"error: .*result.safetensors: columns is", capsys.readouterr().err)
