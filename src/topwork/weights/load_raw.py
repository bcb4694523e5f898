"""Reads foreign weights without running code from them: safetensors, or PyTorch's zip and legacy
files as plain tensors.

A pickle that wants more than tensors is refused; `argparse.Namespace` and numpy's numbers, which
training scripts put into checkpoints besides the tensors, are plain data and are let through.
Nothing is stripped or renamed by default: where a file holds a checkpoint or prefixed names, the
error names the `fetch.prefix` to write.
"""

import argparse
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from topwork.errors import NotWeightsError, WeightsError
from topwork.weights.fit import prefix_hint

MAX_BYTES = 16 << 30
_SCALAR: Any = np.float64(0).__reduce__()[0]  # what makes a number of numpy's from its bytes
PLAIN: list[Any] = [
    argparse.Namespace,
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),  # as numpy 1 names it
    np.dtype,
    *sorted(
        {
            type(np.dtype(code))
            for code in (*np.typecodes["AllInteger"], *np.typecodes["AllFloat"], "?")
        },
        key=repr,
    ),
]
"""What a checkpoint may hold besides tensors and Python's own plain types: attributes by name, and
numbers.
"""
NO_WEIGHTS = ("optimizer", "lr_scheduler", "scheduler", "scaler", "optimizer_state_dict")
"""Keys of a checkpoint below which tensors aren't a detector's."""


def read_state_dict(
    path: Path, prefix: str | None = None, *, max_bytes: int = MAX_BYTES, label: str | None = None
) -> dict[str, Tensor]:
    """Tensors of a weights file by name, mapped where the format allows, in the file's dtypes.

    Args:
        path: safetensors, or what `torch.save` writes; recognized by content, not by name.
        prefix: what to take: a key of a checkpoint (`state_dict`), a prefix of tensor names
            (`module.`, ends in a dot and is stripped), or both, joined by slashes
            (`state_dict/model.`). Tensors outside it are left out.
        max_bytes: refuse more tensor bytes than that.
        label: what messages call the file; its path by default.

    Raises:
        WeightsError: unreadable, not plain tensors, too big, NaN or infinite values, or `prefix`
            names nothing.
    """
    file = _File(Path(path), label or str(path))
    loaded = _load(file, max_bytes)
    state_dict = _select(loaded, prefix, file)
    _check_tensors(state_dict, file, max_bytes)
    return state_dict


@dataclass(frozen=True)
class _File:
    """A file, and what messages call it."""

    path: Path
    label: str

    def __str__(self) -> str:
        return self.label


def _load(file: _File, max_bytes: int) -> Any:
    if not file.path.is_file():
        raise WeightsError(f"{file}: no such file. Mend fetch.source in params.yaml.")
    with file.path.open("rb") as stream:
        start = stream.read(16)
    if start[:4] == b"PK\x03\x04":
        _check_archive(file, max_bytes)
        return _load_pickle(file, mmap=True)
    if start[:1] == b"\x80":
        return _load_pickle(file, mmap=False)
    if start[8:9] == b"{":
        return _load_safetensors(file)
    shown = start[:8].decode("ascii", "replace")
    hint = (
        " It looks like a web page: the address may lead to a login or an error page."
        if start.lstrip()[:1] == b"<"
        else ""
    )
    raise NotWeightsError(
        f"{file}: begins with {shown!r}; expected safetensors or a file of torch.save.{hint}"
    )


def _load_safetensors(file: _File) -> dict[str, Tensor]:
    try:
        with safe_open(file.path, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (safe_open isn't a mapping)
    except (SafetensorError, OSError) as error:
        raise NotWeightsError(f"{file}: damaged safetensors ({error}). Fetch it again.") from error


def _check_archive(file: _File, max_bytes: int) -> None:
    """torch.save stores its records uncompressed; a record that unpacks to more than it takes up is
    a bomb or not torch's.
    """
    try:
        with zipfile.ZipFile(file.path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, struct.error) as error:
        raise NotWeightsError(f"{file}: damaged or cut short ({error}). Fetch it again.") from error
    if any("/code/" in record.filename for record in records):
        raise NotWeightsError(
            f"{file}: is a TorchScript archive, which holds code; topwork reads plain tensors. Save"
            " its state_dict() instead."
        )
    unpacked = sum(record.file_size for record in records)
    if unpacked > max_bytes:
        raise WeightsError(
            f"{file}: unpacks to {unpacked:,} bytes, the limit is {max_bytes:,}. Raise"
            " fetch.max_gib if that is right."
        )
    packed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise WeightsError(
            f"{file}: record {packed[0]} is compressed; expected the plain records that torch.save"
            " writes. Save it again with torch.save."
        )


def _load_pickle(file: _File, *, mmap: bool) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(PLAIN):
            # torch warns of odd tensors; _check_tensors refuses them
            warnings.simplefilter("ignore")
            return torch.load(file.path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise NotWeightsError(_refusal(file, str(error))) from error
    except (
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        OSError,
        MemoryError,
        AssertionError,
    ) as error:
        lines = str(error).strip().splitlines()
        reason = lines[0][:200] if lines else type(error).__name__
        raise NotWeightsError(
            f"{file}: damaged, cut short or not a weights file ({reason}). Fetch it again."
        ) from error


def _refusal(file: _File, reason: str) -> str:
    wanted = re.search(
        r"GLOBAL ([\w.]+)|blocked module ([\w.]+)|[Tt]rying to"
        r" (?:load|call|instantiate).*?([\w.]+\.[\w.]+)",
        reason,
    )
    names = [group for group in wanted.groups() if group] if wanted else []
    what = f"it asks for `{names[0]}`" if names else "it asks for more than tensors"
    return (
        f"{file}: refused: {what}, and loading it would run code from the file. topwork reads"
        " tensors alone. Ask its maker for safetensors or a plain state_dict; or, if you trust the"
        " maker, load it in a sandbox and save `model.state_dict()` with torch.save."
    )


def _select(loaded: Any, prefix: str | None, file: _File) -> dict[str, Tensor]:
    keys, name_prefix = _parse_prefix(prefix)
    for number, key in enumerate(keys):
        if not isinstance(loaded, Mapping) or key not in loaded:
            found = (
                ", ".join(map(str, list(loaded)[:12]))
                if isinstance(loaded, Mapping)
                else type(loaded).__name__
            )
            raise WeightsError(
                f"{file}: fetch.prefix names {'/'.join(keys[: number + 1])!r}, found"
                f" {found}.{_hint(loaded)}"
            )
        loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        raise WeightsError(
            f"{file}: found {type(loaded).__name__}, expected tensors by name (a state_dict). Save"
            " `model.state_dict()` with torch.save."
        )
    others = [
        key
        for key, value in loaded.items()
        if not isinstance(value, Tensor) or not isinstance(key, str)
    ]
    if others or not loaded:
        hint = _hint(loaded) or " Save `model.state_dict()` with torch.save."
        shown = ", ".join(map(str, others[:8])) + (", ..." if len(others) > 8 else "")
        raise WeightsError(
            f"{file}: found {'a checkpoint with ' + shown if others else 'no tensor'}, expected"
            f" tensors by name (a state_dict).{hint}"
        )
    if name_prefix is None:
        return dict(loaded)
    selected = {
        name.removeprefix(name_prefix): tensor
        for name, tensor in loaded.items()
        if name.startswith(name_prefix)
    }
    if not selected:
        raise WeightsError(
            f"{file}: fetch.prefix names {name_prefix!r}, but none of {len(loaded)} tensors begins"
            f" so ({next(iter(loaded))}, ...).{_hint(loaded)}"
        )
    return selected


def _parse_prefix(prefix: str | None) -> tuple[list[str], str | None]:
    keys = [key for key in (prefix or "").split("/") if key]
    if keys and keys[-1].endswith("."):
        return keys[:-1], keys[-1]
    return keys, None


def _hint(loaded: Any) -> str:
    found = [choice for choice in _choices(loaded) if choice]
    if not found:
        return ""
    return (
        f" Tensors are under: {', '.join(f'`{choice}`' for choice in found[:6])}. Name the one you"
        f" want, such as `fetch.prefix: {found[0]}`."
    )


def _choices(loaded: Any, path: str = "", depth: int = 3) -> Iterator[str]:
    """The prefixes that would lead to a state_dict."""
    if not isinstance(loaded, Mapping) or not loaded:
        return
    if all(isinstance(value, Tensor) and isinstance(key, str) for key, value in loaded.items()):
        shared = prefix_hint(list(loaded))
        yield "/".join(filter(None, (path, shared)))
        return
    if depth:
        for key, value in loaded.items():
            if not path and key in NO_WEIGHTS:
                continue
            yield from _choices(value, f"{path}/{key}" if path else str(key), depth - 1)


def _check_tensors(state_dict: Mapping[str, Tensor], file: _File, max_bytes: int) -> None:
    odd = [
        f"{name} ({t.dtype}, {t.layout}, {t.device})"
        for name, t in state_dict.items()
        if t.layout is not torch.strided or t.is_meta or t.is_quantized
    ]
    if odd:
        raise WeightsError(
            f"{file}: {', '.join(odd[:8])}: expected plain dense tensors. Dequantize or densify"
            " where the file was made."
        )
    total = sum(tensor.numel() * tensor.element_size() for tensor in state_dict.values())
    if total > max_bytes:
        raise WeightsError(
            f"{file}: its tensors take {total:,} bytes, the limit is {max_bytes:,}. Raise"
            " fetch.max_gib if that is right."
        )
    faults = []
    for name, tensor in state_dict.items():
        if tensor.is_floating_point() or tensor.is_complex():
            bad = (
                int((~torch.isfinite(tensor)).sum())
                if tensor.element_size() > 1
                else int((~torch.isfinite(tensor.float())).sum())
            )
            if bad:
                faults.append(f"{name} ({bad} of {tensor.numel()})")
    if faults:
        raise WeightsError(
            f"{file}: NaN or infinite values in {', '.join(faults[:20])}; expected finite numbers."
            " These weights come from a training that diverged, or were cut in conversion; take an"
            " earlier checkpoint."
        )
