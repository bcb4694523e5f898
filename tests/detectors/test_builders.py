"""Builders by name, by file and by function; loading."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from detectors import tiny
from topwork import build, load
from topwork.detectors.builders import UninitializedParameters, builder_name, resolve
from topwork.errors import SurgeryError, WeightsError
from topwork.files import sha256_file
from topwork.weights.format import Weights

COLUMNS = ("__background__", "person", "car")


def test_the_three_ways_to_name_a_builder():
    by_file = resolve(f"{Path(tiny.__file__)}:ssd")
    assert by_file is resolve(f"{Path(tiny.__file__)}:ssd")  # imported once
    assert resolve("torchvision.models.detection.ssd:ssd300_vgg16") is resolve("ssd300_vgg16")
    assert resolve(tiny.ssd) is tiny.ssd
    assert builder_name(resolve("ssd300_vgg16")) == "ssd300_vgg16"
    assert builder_name(tiny.ssd) == "detectors.tiny:ssd"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "ssd301",
            (
                r"'ssd301': not one of torchvision's detection builders"
                r" \(fasterrcnn_mobilenet_v3_large_320_fpn,"
            ),
        ),
        ("no_such_module:build", r"no_such_module can't be imported \(ModuleNotFoundError"),
        (
            "nowhere/file.py:build",
            (
                r"nowhere/file.py can't be imported \(FileNotFoundError: no such file:"
                r" nowhere/file.py\)"
            ),
        ),
        (f"{Path(tiny.__file__)}:sdd", r"tiny.py has no function 'sdd'; it has: .*ssd, "),
    ],
    ids=["name", "module", "file", "function"],
)
def test_builders_that_are_not_there(name, message):
    with pytest.raises(SurgeryError, match=message):
        build(name, 3)


def test_builders_that_fail():
    with pytest.raises(
        SurgeryError,
        match=r"fcos\(num_classes=3, \{'colour': 'red'\}\): failed with TypeError: .*colour",
    ):
        build(tiny.fcos, 3, {"colour": "red"})
    with pytest.raises(SurgeryError, match=r"returned dict, expected a torch\.nn\.Module"):
        build(lambda num_classes: {}, 3)


def test_load_gives_the_ready_detector():
    torch.manual_seed(0)
    model = tiny.ssd(3)
    weights = Weights(
        {name: tensor.half() for name, tensor in model.state_dict().items()},
        COLUMNS,
        f"{Path(tiny.__file__)}:ssd",
    )
    loaded = load(weights)
    assert not loaded.training
    assert loaded.columns == COLUMNS
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, weights.state_dict[name].float(), rtol=0, atol=0)
    assert next(load(weights, dtype=torch.float64).parameters()).dtype == torch.float64


def test_load_names_what_does_not_fit():
    state_dict = tiny.ssd(3).state_dict()
    del state_dict["backbone.convs.0.bias"]
    with pytest.raises(WeightsError, match=r"1 missing: backbone.convs.0.bias \[8\]"):
        load(Weights(state_dict, COLUMNS, f"{Path(tiny.__file__)}:ssd"))


def test_frozen_batch_norm_is_what_torchvision_builds_for_its_first_coco_weights():
    with UninitializedParameters():
        model = build("fasterrcnn_resnet50_fpn", 3, {"frozen_batch_norm": 0.0})
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d)
    ]
    assert len(norms) == 53
    assert all(isinstance(norm, FrozenBatchNorm2d) and norm.eps == 0 for norm in norms)
    assert not any("num_batches_tracked" in name for name in model.state_dict())


def test_uninitialized_parameters_leave_other_tensors_alone():
    with UninitializedParameters():
        linear = nn.Linear(3, 3)
        nn.init.orthogonal_(linear.weight)  # draws a temporary
        drawn = torch.empty(100).normal_()
    torch.testing.assert_close(linear.weight @ linear.weight.T, torch.eye(3))
    assert 0.5 < drawn.std() < 1.5


def test_a_builder_file_that_changed_since_the_fetch_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n\n\nclass Mine(nn.Module):\n    def __init__(self, k):\n       "
        " super().__init__()\n        self.head = nn.Linear(2, k)\n\n\ndef build(num_classes):\n   "
        " return Mine(num_classes)\n"
    )
    provenance = {"builder_sha256": sha256_file(file)}
    state_dict = {"head.weight": torch.zeros(2, 2), "head.bias": torch.zeros(2)}
    weights = Weights(
        state_dict, ("__background__", "person"), "mine.py:build", provenance=provenance
    )
    assert load(weights).columns == ("__background__", "person")
    file.write_text(file.read_text() + "# changed\n")
    with pytest.raises(
        SurgeryError,
        match=(
            r"builder 'mine\.py:build': its code \(mine\.py\) changed since the weights were"
            r" fetched.*Run `dvc repro`"
        ),
    ):
        load(weights)
