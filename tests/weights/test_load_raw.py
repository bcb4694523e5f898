"""Foreign files: read as plain tensors, or refused with what to do."""

import argparse
import os
import pickle
import random
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from topwork.errors import WeightsError
from topwork.weights.load_raw import prefix_hint, read_state_dict


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "head.weight": torch.randn(4, 3),
        "head.bias": torch.randn(4),
        "norm.num_batches_tracked": torch.tensor(7),
    }


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        for name, tensor in expected.items()
    )


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_every_format(tmp_path: Path, tensors: dict[str, Tensor], form: str) -> None:
    path = tmp_path / "named_wrongly.bin"
    if form == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(OrderedDict(tensors), path, _use_new_zipfile_serialization=form == "zip")
    assert equal(read_state_dict(path), tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_stay(tmp_path: Path, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    halves = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    torch.save(halves, tmp_path / "w.pth")
    assert equal(read_state_dict(tmp_path / "w.pth"), halves)


def test_a_checkpoint_of_torchvision_s_reference_script(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    """`{"model", "optimizer", "lr_scheduler", "args", "epoch"}`, as references/detection/train.py
    saves it, with numpy's numbers that others add.
    """
    parameters = [nn.Parameter(tensor) for tensor in list(tensors.values())[:2]]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    sum((parameter.sum() for parameter in parameters), torch.zeros(())).backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [16, 22])
    torch.save(
        {
            "model": tensors,
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": scheduler.state_dict(),
            "args": argparse.Namespace(data_path="/data", lr=0.02, aspect_ratios=[0.5, 1]),
            "epoch": 25,
            "best": np.float64(0.5),
            "counts": [np.int64(3), np.float32(0.25), np.bool_(True)],
        },
        tmp_path / "model_25.pth",
    )
    assert equal(read_state_dict(tmp_path / "model_25.pth", "model"), tensors)
    with pytest.raises(WeightsError, match=r"Tensors are under: `model`\. .*fetch\.prefix: model`"):
        read_state_dict(tmp_path / "model_25.pth")


def test_a_namespace_lets_nothing_else_through(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    target = tmp_path / "made"
    torch.save(
        {"model": tensors, "args": argparse.Namespace(hook=Evil(target))}, tmp_path / "w.pth"
    )
    with pytest.raises(WeightsError, match=r"refused: it asks for `(posix|os)\.system`"):
        read_state_dict(tmp_path / "w.pth", "model")
    assert not target.exists()


class Evil:
    """Pickled, it asks for a file to be made when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle", "inside a checkpoint"])
def test_malicious_pickle(tmp_path: Path, tensors: dict[str, Tensor], form: str) -> None:
    target, path = tmp_path / "made", tmp_path / "w.pth"
    evil = Evil(target)
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save(
            {"state_dict": tensors, "hook": evil} if form == "inside a checkpoint" else evil,
            path,
            _use_new_zipfile_serialization=form != "legacy",
        )
    what = "more than tensors" if form == "bare pickle" else "`(posix|os).system`"
    with pytest.raises(
        WeightsError,
        match=(
            rf"w\.pth: refused: it asks for {what}, and loading it would run code from the file\."
            r" topwork reads tensors alone"
        ),
    ):
        read_state_dict(path, prefix="state_dict" if form == "inside a checkpoint" else None)
    assert not target.exists()
    with path.open("rb") as stream:  # the trap is real
        if form == "bare pickle":
            pickle.load(stream)  # noqa: S301
        else:
            torch.load(stream, weights_only=False)
    assert target.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(
        WeightsError,
        match=(
            r"refused: it asks for `torch\.nn\.modules\.linear\.Linear`.*save"
            r" `model\.state_dict\(\)`"
        ),
    ):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"w\.pt: is a TorchScript archive.*Save its state_dict"):
        read_state_dict(tmp_path / "w.pt")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_cut_short(tmp_path: Path, tensors: dict[str, Tensor], form: str, share: float) -> None:
    path = tmp_path / "w"
    if form == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "zip")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(WeightsError, match=r"w: (damaged|begins with)"):
        read_state_dict(path)


def damage(tmp_path: Path, tensors: dict[str, Tensor], rounds: int) -> None:
    """Change, cut out and put in bytes at random: a file is read, or refused with a word; nothing
    else ends the program.
    """
    draw, path = random.Random(3), tmp_path / "w"
    torch.save(tensors, tmp_path / "zip")
    torch.save(tensors, tmp_path / "legacy", _use_new_zipfile_serialization=False)
    save_file(tensors, tmp_path / "safetensors")
    contents = [(tmp_path / name).read_bytes() for name in ("zip", "legacy", "safetensors")]
    refused: list[str] = []
    for number in range(rounds):
        content = bytearray(contents[number % 3])
        for _ in range(draw.choice([1, 2, 5, 30])):
            place, kind = draw.randrange(len(content)), draw.random()
            content[place : place + (draw.randrange(1, 20) if kind < 0.4 else 1)] = draw.randbytes(
                1 if kind < 0.8 else draw.randrange(9)
            )
        path.write_bytes(content)
        try:
            read_state_dict(path)
        except WeightsError as error:
            refused.append(str(error))
    assert all(message.startswith(str(path)) for message in refused)
    assert 0.3 * rounds < len(refused) < rounds


def test_damaged_at_random(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    damage(tmp_path, tensors, 600)


@pytest.mark.long
def test_damaged_at_random_many_times(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    damage(tmp_path, tensors, 20_000)


def test_an_archive_of_another_age(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    """A zip version that Python doesn't know is NotImplementedError to zipfile."""
    torch.save(tensors, tmp_path / "w")
    content = bytearray((tmp_path / "w").read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 99
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(WeightsError, match=r"w: damaged or cut short \(zip file version 9\.9\)"):
        read_state_dict(tmp_path / "w")


def test_a_web_page(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_text("<!DOCTYPE html><html>Sign in")
    with pytest.raises(
        WeightsError, match=r"begins with '<!DOCTYP'; expected safetensors.*looks like a web page"
    ):
        read_state_dict(tmp_path / "w.pth")


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere\.pth: no such file"):
        read_state_dict(tmp_path / "nowhere.pth")


@pytest.mark.parametrize(
    ("nest", "prefix"),
    [
        (lambda t: {f"module.{k}": v for k, v in t.items()}, "module."),
        (lambda t: {f"_orig_mod.{k}": v for k, v in t.items()}, "_orig_mod."),
        (lambda t: {f"module._orig_mod.{k}": v for k, v in t.items()}, "module._orig_mod."),
        (
            lambda t: {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in t.items()}},
            "module.",
        ),
        (lambda t: {"model": t, "epoch": 3, "optimizer": {"state": {}}}, "model"),
        (
            lambda t: {"model_ema": {f"module.{k}": v for k, v in t.items()}, "epoch": 3},
            "model_ema/module.",
        ),
        (
            lambda t: {
                "pytorch-lightning_version": "2",
                "state_dict": {f"model.{k}": v for k, v in t.items()},
            },
            "state_dict/model.",
        ),
        (lambda t: {"checkpoint": {"model": t, "step": 1}}, "checkpoint/model"),
    ],
    ids=["DDP", "compile", "both", "averaged", "checkpoint", "EMA", "Lightning", "nested"],
)
def test_prefixes_are_named_and_never_guessed(
    tmp_path: Path, tensors: dict[str, Tensor], nest: Any, prefix: str
) -> None:
    path = tmp_path / "w.pth"
    nested = nest(tensors)
    torch.save(nested, path)
    if all(isinstance(value, Tensor) for value in nested.values()):
        assert equal(read_state_dict(path), nested), "tensors by name are left as they are"
        assert prefix_hint(list(nested)) == prefix, "the fit check passes the hint on"
    else:
        with pytest.raises(
            WeightsError,
            match=(
                r"w\.pth: found a checkpoint with .*expected tensors by name.*fetch\.prefix:"
                rf" {re.escape(prefix)}`\."
            ),
        ):
            read_state_dict(path)
    assert equal(read_state_dict(path, prefix), tensors)


def test_several_state_dicts_are_all_named(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save(
        {"model": tensors, "ema": {f"module.{k}": v for k, v in tensors.items()}},
        tmp_path / "w.pth",
    )
    with pytest.raises(
        WeightsError, match=r"Tensors are under: `model`, `ema/module\.`\. Name the one you want"
    ):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (
            "weights",
            r"fetch\.prefix names 'weights', found model, epoch\. Tensors are under: `model`\.",
        ),
        ("model/teacher.", r"fetch\.prefix names 'teacher\.', but none of 3 tensors begins so"),
    ],
)
def test_prefix_that_names_nothing(
    tmp_path: Path, tensors: dict[str, Tensor], prefix: str, message: str
) -> None:
    torch.save({"model": tensors, "epoch": 1}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=message):
        read_state_dict(tmp_path / "w.pth", prefix)


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"lr": 0.1}, torch.zeros(2)], ids=["list", "empty", "numbers", "tensor"]
)
def test_no_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=r"w\.pth: found .*expected tensors by name \(a state_dict\)"
    ):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_numbers(
    tmp_path: Path, tensors: dict[str, Tensor], value: float, dtype: torch.dtype
) -> None:
    tensors["head.bias"] = tensors["head.bias"].to(dtype)
    tensors["head.bias"][1] = value
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=r"w\.pth: NaN or infinite values in head\.bias \(1 of 4\)"
    ):
        read_state_dict(tmp_path / "w.pth")


def test_bomb_by_strides(tmp_path: Path) -> None:
    """A few bytes of storage that claim to be a huge tensor."""
    torch.save({"w": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").stat().st_size < 10_000
    with pytest.raises(
        WeightsError, match=r"its tensors take 4,398,046,511,104 bytes, the limit is 17,179,869,184"
    ):
        read_state_dict(tmp_path / "w.pth")


def test_bomb_by_compression(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({"w": torch.zeros(1 << 20)}, tmp_path / "w.pth")
    with (
        zipfile.ZipFile(tmp_path / "w.pth") as plain,
        zipfile.ZipFile(tmp_path / "pressed.pth", "w", zipfile.ZIP_DEFLATED) as pressed,
    ):
        for record in plain.infolist():
            pressed.writestr(record.filename, plain.read(record))
    assert (tmp_path / "pressed.pth").stat().st_size < 20_000
    with pytest.raises(
        WeightsError, match=r"pressed\.pth: record .* is compressed; expected the plain records"
    ):
        read_state_dict(tmp_path / "pressed.pth")
    with pytest.raises(
        WeightsError, match=r"w\.pth: unpacks to 4,\d+,\d+ bytes, the limit is 1,000"
    ):
        read_state_dict(tmp_path / "w.pth", max_bytes=1000)


@pytest.mark.parametrize(
    "odd", [torch.eye(3).to_sparse(), torch.empty(3, device="meta")], ids=["sparse", "meta"]
)
def test_odd_tensors(tmp_path: Path, odd: Tensor) -> None:
    torch.save({"w": odd}, tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=r"w\.pth: (w \(torch\.float32.*expected plain dense tensors|refused)"
    ):
        read_state_dict(tmp_path / "w.pth")


def test_mapped_not_copied(tmp_path: Path) -> None:
    """Changing the file's bytes changes the tensor: it is the file."""
    torch.save({"w": torch.zeros(1000)}, tmp_path / "w.pth")
    found = read_state_dict(tmp_path / "w.pth")["w"]
    with zipfile.ZipFile(tmp_path / "w.pth") as archive:
        record = next(r for r in archive.infolist() if r.filename.endswith("data/0"))
    with (tmp_path / "w.pth").open("rb+") as stream:
        stream.seek(record.header_offset + 26)
        lengths = stream.read(4)
        stream.seek(
            record.header_offset
            + 30
            + int.from_bytes(lengths[:2], "little")
            + int.from_bytes(lengths[2:], "little")
            + 4
        )
        stream.write(b"\x00\x00\x80\x3f")
    assert found[1].item() == 1.0
