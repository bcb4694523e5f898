"""Our own weights files: what goes in comes out, mapped, in its dtype, and the bytes repeat."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from topwork.classes import BACKGROUND
from topwork.cli import main
from topwork.commands.reading import read
from topwork.download import shipped
from topwork.download.shipped import WEIGHTS, demo_weights
from topwork.errors import ChecksumError, TopworkError, WeightsError
from topwork.weights.format import Weights, read_weights, write_weights

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


@pytest.fixture
def weights() -> Weights:
    torch.manual_seed(0)
    tensors = {
        "head.weight": torch.randn(3, 5),
        "half": torch.randn(7).half(),
        "brain": torch.randn(2, 2).bfloat16(),
        "count": torch.tensor(3),
        "flag": torch.tensor([True, False, True]),
        "none": torch.zeros(0, 4),
        "turned": torch.randn(4, 6).t(),
        "häkchen": torch.ones(1),
    }
    return Weights(
        tensors,
        (BACKGROUND, "person", "Gabelstapler ä"),
        "ssd300_vgg16",
        {"size": 3},
        ("dog",),
        {"source": "test", "nested": {"a": [1, None]}},
    )


def same(found: Weights, expected: Weights) -> bool:
    tensors = found.state_dict.keys() == expected.state_dict.keys() and all(
        found.state_dict[name].dtype == tensor.dtype and torch.equal(found.state_dict[name], tensor)
        for name, tensor in expected.state_dict.items()
    )
    return tensors and replace(found, state_dict={}) == replace(expected, state_dict={})


def test_round_trip(tmp_path: Path, weights: Weights) -> None:
    write_weights(tmp_path / "w.safetensors", weights)
    assert same(read_weights(tmp_path / "w.safetensors"), weights)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda n: n != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)),
        max_size=6,
    )
)
def test_any_tensors(tmp_path: Path, shapes: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    try:
        [name.encode() for name in shapes]
    except UnicodeEncodeError:
        return
    tensors = {name: torch.randn(shape).to(dtype) for name, (dtype, shape) in shapes.items()}
    write_weights(tmp_path / "w.safetensors", Weights(tensors, (BACKGROUND,), "b"))
    assert same(read_weights(tmp_path / "w.safetensors"), Weights(tensors, (BACKGROUND,), "b"))


def test_the_library_agrees(tmp_path: Path, weights: Weights) -> None:
    """safetensors itself reads our file, and finds every tensor aligned; its own file of the same
    tensors has the same data bytes.
    """
    write_weights(tmp_path / "ours.safetensors", weights)
    found = load_file(tmp_path / "ours.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.state_dict.items())
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.state_dict.items()},
        tmp_path / "theirs.safetensors",
        metadata={"a": "b"},
    )
    data = []
    for name in ("ours", "theirs"):
        content = (tmp_path / f"{name}.safetensors").read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        start = 8 + length
        assert start % 8 == 0
        del header["__metadata__"]
        data.append(
            {
                key: content[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
                for key, entry in header.items()
            }
        )
    assert data[0] == data[1]
    with safe_open(tmp_path / "ours.safetensors", framework="pt") as stored:
        assert all(isinstance(value, str) for value in stored.metadata().values())
        assert stored.metadata()["topwork"] == "1"


def test_bytes_repeat(tmp_path: Path, weights: Weights) -> None:
    """Neither the order of the tensors nor Python's hash seed changes the file."""
    write_weights(tmp_path / "a", weights)
    write_weights(
        tmp_path / "b", replace(weights, state_dict=dict(reversed(weights.state_dict.items())))
    )
    script = (
        "import sys; from pathlib import Path; from topwork.weights.format import *; "
        "write_weights(Path(sys.argv[2]), read_weights(Path(sys.argv[1])))"
    )
    source = str(Path(__file__).parents[2] / "src")
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a"), str(tmp_path / "c")],
        check=True,
        env={**os.environ, "PYTHONPATH": source, "PYTHONHASHSEED": "99"},
    )
    assert (
        (tmp_path / "a").read_bytes()
        == (tmp_path / "b").read_bytes()
        == (tmp_path / "c").read_bytes()
    )


def test_writing_over_the_file_it_was_read_from(tmp_path: Path, weights: Weights) -> None:
    """The old file stays mapped until its readers let go of it."""
    write_weights(tmp_path / "w", weights)
    mapped = read_weights(tmp_path / "w")
    write_weights(tmp_path / "w", replace(weights, columns=(BACKGROUND, "x")))
    assert same(mapped, weights)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "found no metadata of topwork, expected format 1"),
        ({"topwork": "2"}, "found metadata of format 2, expected format 1"),
        ({"topwork": "1"}, r"the metadata is damaged \(KeyError"),
        (
            {
                "topwork": "1",
                "columns": "[",
                "builder": "",
                "builder_args": "{}",
                "absorbed": "[]",
                "provenance": "{}",
            },
            r"the metadata is damaged \(JSONDecodeError",
        ),
        (
            {"topwork": "1", "columns": "[1, null]", "builder": ""},
            r"the metadata is damaged \(TypeError: expected a list of names",
        ),
    ],
    ids=["foreign", "newer", "incomplete", "broken", "names that are none"],
)
def test_metadata_that_doesnt_do(
    tmp_path: Path, metadata: dict[str, str] | None, message: str
) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "w.safetensors", metadata=metadata)
    with pytest.raises(WeightsError, match=rf"w\.safetensors: {message}"):
        read_weights(tmp_path / "w.safetensors")


def test_missing_and_damaged(tmp_path: Path, weights: Weights) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(WeightsError, match=r"w\.safetensors: no such file"):
        read_weights(path)
    write_weights(path, weights)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"w\.safetensors: not readable as safetensors"):
        read_weights(path)


@pytest.mark.parametrize(
    "params",
    [None, "fetch: {builder: 'other:build'}", "fetch: [1"],
    ids=["no project", "another builder", "broken params"],
)
def test_a_file_doesnt_choose_the_code_that_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: Weights,
    params: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("trap.py").write_text(
        "from pathlib import Path\nPath('sprung').touch()\ndef build(num_classes): ...\n"
    )
    write_weights(Path("w.safetensors"), replace(weights, builder="trap.py:build"))
    if params:
        Path("params.yaml").write_text(params)
    with pytest.raises(
        WeightsError,
        match=r"w\.safetensors: .* builder 'trap\.py:build' .*--builder trap\.py:build",
    ):
        read_weights(Path("w.safetensors"))
    Path("image.png").touch()
    for command in (
        ["predict", "image.png", "--weights", "w.safetensors", "--out", "out"],
        ["export", "w.safetensors", "--out", "out", "--images", "image.png"],
        ["inspect", "w.safetensors"],
        ["diff", "w.safetensors", "w.safetensors"],
    ):
        assert main(command) == 1
        assert "trap.py:build" in capsys.readouterr().err or params
    assert not Path("sprung").exists()


def test_the_projects_builder_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Weights
) -> None:
    monkeypatch.chdir(tmp_path)
    foreign = replace(weights, builder="mine.py:build")
    write_weights(Path("w.safetensors"), foreign)
    Path("params.yaml").write_text(
        "dataset: {root: d, train: {annotations: a.json, images: i}}\nsurgery: {classes: {a:"
        " keep}}\nfetch: {source: w.pth, builder: 'mine.py:build'}\n"
    )
    assert same(read(Path("w.safetensors"), None), foreign)
    with pytest.raises(WeightsError, match="expected one of torchvision's"):
        read_weights(Path("w.safetensors"))  # the current folder decides nothing
    Path("params.yaml").unlink()
    with pytest.raises(WeightsError, match="expected one of torchvision's"):
        read(Path("w.safetensors"), None)
    for trust in (True, "mine.py:build"):
        assert same(read_weights(Path("w.safetensors"), trust=trust), foreign)


def test_what_cant_be_written_leaves_the_old_file(tmp_path: Path, weights: Weights) -> None:
    path = tmp_path / "w"
    write_weights(path, weights)
    with pytest.raises(
        WeightsError,
        match=(
            r"w: tensor sparse is torch\.float32, torch\.sparse_coo.*expected plain dense numbers"
        ),
    ):
        write_weights(path, replace(weights, state_dict={"sparse": torch.eye(2).to_sparse()}))
    with pytest.raises(ValueError, match="JSON"):
        write_weights(path, replace(weights, provenance={"map": float("nan")}))
    with pytest.raises(TopworkError, match="can't be written"):
        write_weights(path / "below a file", weights)
    assert same(read_weights(path), weights)
    assert {entry.name for entry in tmp_path.iterdir()} == {"w", "project"}


def test_demo_weights() -> None:
    weights = demo_weights()
    assert weights.builder == "ssdlite320_mobilenet_v3_large"
    assert weights.columns[0] == BACKGROUND
    assert "person" in weights.columns
    assert WEIGHTS.stat().st_size <= 8_000_000
    assert {tensor.dtype for tensor in weights.state_dict.values()} <= {torch.float16, torch.int64}
    assert all(torch.isfinite(tensor.float()).all() for tensor in weights.state_dict.values())


def test_demo_weights_that_were_changed(
    tmp_path: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "demo.safetensors"
    monkeypatch.setattr(shipped, "WEIGHTS", path)
    monkeypatch.setattr(shipped, "RECORD", path.with_suffix(".json"))
    with pytest.raises(WeightsError, match=r"demo\.safetensors: not in the installed package"):
        demo_weights()
    write_weights(path, weights)
    path.with_suffix(".json").write_text('{"sha256": "0123"}')
    with pytest.raises(
        ChecksumError,
        match=(
            r"demo\.safetensors: SHA-256 found [0-9a-f]{64}, expected 0123.*Install topwork again"
        ),
    ):
        demo_weights()
