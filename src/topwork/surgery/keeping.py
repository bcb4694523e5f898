"""The receipt of a fine-tuned file: which tensors are the source's, bit for bit, and so which
classes are kept exactly. Written and checked from the two files, without running a model.

A class is kept exactly where its detections come from the stock alone (no mix), where every tensor
of the source is in the file unchanged, and where the same builder with the same arguments makes the
detector.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from topwork.classes import label_of
from topwork.errors import ReceiptError
from topwork.files import read_json, sha256_file
from topwork.project.finetune import KEEPING_VERSION, KeepingReceipt, KeptTensor
from topwork.surgery.bits import differing
from topwork.surgery.receipt import digest, seal_of, sha256_tensor
from topwork.weights.branches import SCIONS, stock_of
from topwork.weights.builder_files import BUILDER_HASH
from topwork.weights.format import Branches, Weights, read_weights

_NEXT = "Take the files that the fine-tuning wrote, or run the stage again: dvc repro finetune."


def is_keeping_receipt(path: Path) -> bool:
    """Whether a receipt is of a fine-tuned file, not of a graft."""
    record = read_json(path)
    return isinstance(record, dict) and "topwork_keeping_receipt" in record


def keeping_receipt(source: Path, result: Path, *, trust: bool | str = True) -> KeepingReceipt:
    """Write down what of the source is in the fine-tuned file.

    Args:
        source: the pretrained weights' file, or that of an earlier branched detector.
        result: the fine-tuned file.
        trust: the builder that the files may name.

    Raises:
        ReceiptError: a branched file lacks a tensor of the source, or has another in its place.
    """
    before, after = (read_weights(path, trust=trust) for path in (source, result))
    return _receipt(
        before, after, (sha256_file(source), sha256_file(result)), str(source), str(result)
    )


def verify_keeping(
    source: Path | str,
    result: Path | str,
    receipt: Path | str,
    *,
    trust: bool | str = False,
) -> list[str]:
    """Check a fine-tuned file's receipt against the two files; returns what holds.

    Raises:
        ReceiptError: the first thing that doesn't hold is named: which tensor, what was found and
            what expected.
        WeightsError: a file can't be read.
    """
    source, result, receipt = Path(source), Path(result), Path(receipt)
    stated = _read(receipt)
    before, after = (read_weights(path, trust=trust) for path in (source, result))
    fresh = _receipt(
        before, after, (sha256_file(source), sha256_file(result)), str(source), str(result)
    )
    _check_stated(result, fresh, stated)
    ours, theirs = (_statements(one.document()) for one in (fresh, stated))
    for key, value in ours.items():
        if value != theirs[key]:
            raise ReceiptError(
                f"{receipt}: {key} is {_short(theirs[key])}, by the two files it is"
                f" {_short(value)}. {_NEXT}"
            )
    parts = [tensor.part for tensor in fresh.tensors]
    if fresh.protect == "weights":
        return [
            f"result: {len(parts)} tensors have the receipt's hashes",
            "result: one detector that was trained as a whole; no class is kept exactly",
        ]
    return [
        f"result: all {parts.count('stock')} tensors of the source are in it, bit-identical",
        (
            f"result: {parts.count('scion')} tensors of {len(fresh.scions)} branch(es) have the"
            f" receipt's hashes; {fresh.shared} tensors serve both and are in the file once"
        ),
        "builder and arguments: the same in both files",
        (
            f"kept exactly: {', '.join(_origin(name, fresh.kept) for name in fresh.exact)}"
            if fresh.exact
            else f"kept exactly: no class (the branch has a share of {fresh.mix:g} in them)"
        ),
        "receipt: says the same as the one computed again",
    ]


def _origin(name: str, kept: Mapping[str, str]) -> str:
    """A class that is kept, and the source's name of it where that's another."""
    return name if kept.get(name, name) == name else f"{name} (the source's {kept[name]})"


def _receipt(
    before: Weights,
    after: Weights,
    files: tuple[str, str],
    source: str,
    result: str,
) -> KeepingReceipt:
    known = {name: sha256_tensor(tensor) for name, tensor in before.state_dict.items()}
    found = {name: sha256_tensor(tensor) for name, tensor in after.state_dict.items()}
    branches = after.branches
    if branches is not None:
        _check_stock(source, result, before, after, known, found)
    scions = () if branches is None else branches.scions
    document: dict[str, Any] = {
        "topwork_keeping_receipt": KEEPING_VERSION,
        "protect": "weights" if branches is None else "branch",
        "builder": after.builder,
        "builder_args": dict(after.builder_args),
        "source": {"sha256": digest(known), "file_sha256": files[0]},
        "result": {"sha256": digest(found), "file_sha256": files[1]},
        "columns": list(after.columns),
        "kept": {} if branches is None else dict(branches.kept),
        "exact": _exact(before, after),
        "mix": 0.0 if branches is None else branches.mix,
        "shared": 0 if branches is None else _shared(after, branches),
        "scions": [
            {
                "cut": scion.cut,
                "columns": list(scion.columns),
                "absorbed": list(scion.absorbed),
                "learned": list(scion.learned),
            }
            for scion in scions
        ],
        "tensors": [
            {
                "name": name,
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": list(tensor.shape),
                "sha256": found[name],
                "part": "detector" if branches is None else "stock" if name in known else "scion",
            }
            for name, tensor in sorted(after.state_dict.items())
        ],
    }
    return KeepingReceipt.model_validate({**document, "sha256": seal_of(document)})


def _exact(before: Weights, after: Weights) -> list[str]:
    """Classes whose detections come from unchanged branches alone: kept ones where nothing is mixed
    in, and what earlier branches learned.
    """
    if after.branches is None or after.branches.mix:
        return []
    earlier = () if before.branches is None else before.branches.scions
    learned = [name for scion in after.branches.scions[: len(earlier)] for name in scion.learned]
    return [name for name in after.columns if name in after.branches.kept or name in learned]


def _shared(weights: Weights, branches: Branches) -> int:
    """Tensors of the stock that some scion uses as well: those that it has no copy of."""
    stock = [name for name in weights.state_dict if not name.startswith(SCIONS)]
    return sum(
        any(f"{SCIONS}{number}.{name}" not in weights.state_dict for number in range(count))
        for name in stock
        if (count := len(branches.scions))
    )


def _check_stock(
    source: str,
    result: str,
    before: Weights,
    after: Weights,
    known: Mapping[str, str],
    found: Mapping[str, str],
) -> None:
    """Every tensor of the source is in the result, and what reads them is the same.

    Raises:
        ReceiptError: the first that isn't.
    """
    for key in ("builder", "builder_args"):
        ours, theirs = getattr(after, key), getattr(before, key)
        if ours != theirs:
            raise ReceiptError(
                f"{result}: {key} is {ours!r}, in {source} it is {theirs!r}: the stock would be"
                f" another detector. {_NEXT}"
            )
    code = [weights.provenance.get(BUILDER_HASH) for weights in (after, before)]
    if code[0] != code[1]:
        raise ReceiptError(
            f"{result}: the builder's code has SHA-256 {str(code[0])[:12]}, in {source} it is"
            f" {str(code[1])[:12]}. {_NEXT}"
        )
    missing = sorted(set(known) - set(found))
    if missing:
        raise ReceiptError(
            f"{result}: {len(missing)} tensors of {source} are missing, the first {missing[0]}."
            f" {_NEXT}"
        )
    foreign = sorted(name for name in set(found) - set(known) if not name.startswith(SCIONS))
    if foreign:
        raise ReceiptError(
            f"{result}: {foreign[0]} is neither a tensor of {source} nor of a branch. {_NEXT}"
        )
    for name in sorted(known):
        ours, theirs = after.state_dict[name], before.state_dict[name]
        if (ours.dtype, ours.shape, found[name]) != (theirs.dtype, theirs.shape, known[name]):
            raise ReceiptError(
                f"{result}: {name} isn't the source's: {_differing(ours, theirs)}. {_NEXT}"
            )
    assert after.branches is not None
    stock = stock_of(before)
    columns = (after.branches.columns, after.branches.absorbed)
    if columns != (stock.columns, stock.absorbed):
        raise ReceiptError(
            f"{result}: the stock's columns are {_short(list(columns[0]))}, in {source} they are"
            f" {_short(list(stock.columns))}. {_NEXT}"
        )
    earlier = () if before.branches is None else before.branches.scions
    for number, (now, was) in enumerate(zip(after.branches.scions, earlier, strict=False)):
        if (now.cut, now.columns, now.absorbed) != (was.cut, was.columns, was.absorbed):
            raise ReceiptError(
                f"{result}: branch {number} has cut {now.cut} and columns"
                f" {_short(list(now.columns))}, in {source} {was.cut} and"
                f" {_short(list(was.columns))}. {_NEXT}"
            )
    for name, known_as in after.branches.kept.items():
        classes = label_of((*stock.columns, *stock.absorbed))
        if name not in after.columns or known_as not in classes:
            raise ReceiptError(
                f"{result}: {name} would be the stock's {known_as!r}, which isn't a class of"
                f" {source}. {_NEXT}"
            )


def _differing(ours: Tensor, theirs: Tensor) -> str:
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        return f"{ours.dtype} {list(ours.shape)}, expected {theirs.dtype} {list(theirs.shape)}"
    return differing(ours, theirs)


def _check_stated(result: Path, fresh: KeepingReceipt, stated: KeepingReceipt) -> None:
    """The file's tensors are those that the receipt lists.

    Raises:
        ReceiptError: the first that isn't.
    """
    found, listed = ({tensor.name: tensor for tensor in one.tensors} for one in (fresh, stated))
    if odd := sorted(set(listed) ^ set(found)):
        raise ReceiptError(
            f"{result}: {odd[0]} is in {'the receipt' if odd[0] in listed else 'the file'} alone"
            f" ({len(odd)} such tensors). {_NEXT}"
        )
    for name, tensor in found.items():
        if tensor != listed[name]:
            raise ReceiptError(
                f"{result}: {name} is {_described(tensor)}, the receipt says"
                f" {_described(listed[name])}. {_NEXT}"
            )


def _described(tensor: KeptTensor) -> str:
    return f"{tensor.part}, {tensor.dtype} {list(tensor.shape)}, SHA-256 {tensor.sha256[:12]}"


def _read(path: Path) -> KeepingReceipt:
    stated = KeepingReceipt.read(path)
    document = {key: value for key, value in stated.document().items() if key != "sha256"}
    if (seal := seal_of(document)) != stated.sha256:
        raise ReceiptError(
            f"{path}: its SHA-256 is {seal[:12]}, it says {stated.sha256[:12]}; the receipt itself"
            f" was changed. {_NEXT}"
        )
    return stated


def _statements(document: Mapping[str, Any]) -> dict[str, Any]:
    """A receipt's statements by name, those about the files as wholes last."""
    plain = {
        key: value
        for key, value in document.items()
        if key not in ("sha256", "source", "result", "tensors")
    }
    whole = {
        f"{side}.{key}": value
        for side in ("source", "result")
        for key, value in document[side].items()
    }
    return {**plain, **whole}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
