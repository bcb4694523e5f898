"""Weights on disk: safetensors whose metadata names the detector and each class column.

Tensors are mapped, not copied, and keep the dtype of the file. The bytes written depend on the
weights alone, which is why `write_weights` doesn't use safetensors' `save_file`: that one orders
the metadata by a hash map with random seeds, and wrote 10 different files of the same weights in
10 processes (safetensors 0.8.0). Time and memory don't decide: 300 MB take 0.31 s here and 0.25 s
there, with 2 MB and 0 MB on top of the tensors (one CPU core, best of three).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from topwork.classes import UNUSED
from topwork.errors import WeightsError
from topwork.files import atomic_path

FORMAT = "1"

# safetensors' names of dtypes, in the order in which it stores them: widest first, so that each
# tensor is aligned.
_DTYPES = {
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Scion:
    """A trained branch in a weights file; its tensors lie under `scions.NUMBER.`.

    Attributes:
        cut: path of the last module that it shares with the stock; None where it shares nothing.
        columns: of its own head, background first.
        absorbed: of its own head.
        learned: those of its columns whose detections are handed on.
    """

    cut: str | None
    columns: tuple[str, ...]
    absorbed: tuple[str, ...]
    learned: tuple[str, ...]


@dataclass(frozen=True)
class Branches:
    """A pretrained detector (the stock), whole and under its own names, and scions on it.

    Attributes:
        columns: of the stock's head, background first.
        absorbed: of the stock's head.
        kept: class that is handed on -> the stock's class.
        scions: in the order in which they were trained.
        mix: share of the first scion in the kept classes' scores and boxes; 0 keeps them exactly.
    """

    columns: tuple[str, ...]
    absorbed: tuple[str, ...]
    kept: Mapping[str, str]
    scions: tuple[Scion, ...]
    mix: float = 0.0


SHOWN_NAMES = 8
"""Class names that the short form of weights names one by one."""


@dataclass(frozen=True, repr=False)
class Weights:
    """A detector's tensors and what is needed to use them.

    Attributes:
        state_dict: tensor name -> tensor, in the dtype of the file.
        columns: names of the class columns that the detector's labels count, background first
            (`N/A` where a column is unused).
        builder: torchvision's builder name, `module:function` or `path/to/file.py:function`.
        builder_args: further keyword arguments of the builder.
        absorbed: names of the frozen columns after `columns` that count as background; empty in an
            ordinary detector.
        provenance: where the weights come from, as JSON values: source, hash, licence, recipe...
        branches: of a file that holds a stock and scions; None in a single detector.
    """

    state_dict: dict[str, Tensor]
    columns: tuple[str, ...]
    builder: str
    builder_args: dict[str, Any] = field(default_factory=dict)
    absorbed: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    branches: Branches | None = None

    def __repr__(self) -> str:
        """Builder, classes and size: a line or two, whatever the tensors."""
        names = list(self.columns[1:])
        listed = ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")
        real = [name for name in self.absorbed if name != UNUSED]
        absorbed = f" + {len(real)} absorbed" if real else ""
        numbers = sum(tensor.numel() for tensor in self.state_dict.values())
        return (
            f"Weights({self.builder or 'no builder'}: {len(names)} classes{absorbed}: {listed};"
            f" {len(self.state_dict)} tensors, {numbers / 1e6:.1f} M numbers)"
        )


def read_weights(path: Path, *, trust: bool | str = False) -> Weights:
    """Read weights that topwork wrote; the tensors are mapped from the file.

    A builder is code that will run on this machine, so a file may name one of torchvision's, or one
    that the caller trusts.

    Args:
        path: the file.
        trust: the builder beyond torchvision's that the file may name; True takes any.

    Raises:
        WeightsError: no such file, not safetensors, without topwork's metadata, or with a builder
            that isn't trusted.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such file. Run the stage that writes it (dvc repro), or give the path of"
            " weights that topwork wrote."
        )
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            state_dict = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (safe_open isn't a mapping)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: not readable as safetensors ({error}). A .pth file goes through `topwork"
            f" fetch {path}` first."
        ) from error
    weights = _weights_of(state_dict, metadata, path)
    if ":" in weights.builder and trust is not True and trust != weights.builder:
        raise WeightsError(
            f"{path}: its metadata asks for the builder {weights.builder!r} with"
            f" {weights.builder_args}, which would run code of this machine that the file chose;"
            " expected one of torchvision's. If you know it and trust it, name it yourself:"
            f" `--builder {weights.builder}`; in Python `topwork.load({str(path)!r},"
            f" builder={weights.builder!r})`."
        )
    return weights


def _weights_of(state_dict: dict[str, Tensor], metadata: Mapping[str, str], path: Path) -> Weights:
    version = metadata.get("topwork")
    if version != FORMAT:
        found = f"metadata of format {version}" if version else "no metadata of topwork"
        raise WeightsError(
            f"{path}: found {found}, expected format {FORMAT} (builder, columns, provenance). Turn"
            f" it into topwork's weights first: `topwork fetch {path} --builder NAME --classes"
            " SET`."
        )
    try:
        return Weights(
            state_dict=state_dict,
            columns=_names(metadata["columns"]),
            builder=metadata["builder"],
            builder_args=dict(json.loads(metadata.get("builder_args", "{}"))),
            absorbed=_names(metadata.get("absorbed", "[]")),
            provenance=dict(json.loads(metadata.get("provenance", "{}"))),
            branches=_branches(metadata["branches"]) if "branches" in metadata else None,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise WeightsError(
            f"{path}: the metadata is damaged ({type(error).__name__}: {error}). Write the file"
            " again with `topwork fetch`."
        ) from error


def _branches(text: str) -> Branches:
    stored = json.loads(text)
    return Branches(
        columns=tuple(stored["columns"]),
        absorbed=tuple(stored["absorbed"]),
        kept=dict(stored["kept"]),
        scions=tuple(
            Scion(
                scion["cut"],
                tuple(scion["columns"]),
                tuple(scion["absorbed"]),
                tuple(scion["learned"]),
            )
            for scion in stored["scions"]
        ),
        mix=float(stored["mix"]),
    )


def _names(text: str) -> tuple[str, ...]:
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"expected a list of names, found {text[:80]}")
    return tuple(names)


def write_weights(path: Path, weights: Weights) -> None:
    """Write weights as safetensors, whole or not at all, tensor by tensor; the same weights give
    the same bytes.

    Raises:
        WeightsError: a tensor that safetensors can't hold (sparse, quantized, without data).
        TopworkError: the disk is full or the folder can't be written.
    """
    metadata = {
        "topwork": FORMAT,
        "builder": weights.builder,
        "builder_args": _json(weights.builder_args),
        "columns": _json(list(weights.columns)),
        "absorbed": _json(list(weights.absorbed)),
        "provenance": _json(weights.provenance),
    }
    if weights.branches is not None:
        metadata["branches"] = _json(asdict(weights.branches))
    header: dict[str, Any] = {"__metadata__": metadata}
    rank = {dtype: number for number, dtype in enumerate(_DTYPES)}
    for name, tensor in weights.state_dict.items():
        _check_storable(name, tensor, path)
    names = sorted(
        weights.state_dict, key=lambda name: (rank[weights.state_dict[name].dtype], name)
    )
    offset = 0
    for name in names:
        tensor = weights.state_dict[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(Path(path)) as temporary, temporary.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            flat = weights.state_dict[name].detach().cpu().contiguous().reshape(-1)
            stream.write(flat.view(torch.uint8).numpy().data)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _check_storable(name: str, tensor: Tensor, path: Path) -> None:
    if (
        tensor.layout is not torch.strided
        or tensor.is_meta
        or tensor.is_quantized
        or tensor.dtype not in _DTYPES
    ):
        raise WeightsError(
            f"{path}: tensor {name} is {tensor.dtype}, {tensor.layout} on {tensor.device}; expected"
            " plain dense numbers. Turn it into a dense floating-point tensor where it was made."
        )
