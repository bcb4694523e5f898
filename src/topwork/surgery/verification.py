"""Verifying a graft's receipt: everything is computed again from the two weights files, and the
first thing that doesn't hold is named.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from topwork.detectors.axes import head_spec_of
from topwork.detectors.builders import Builder
from topwork.detectors.layouts import ClassAxis
from topwork.errors import ReceiptError
from topwork.files import read_json, sha256_file
from topwork.project.surgery import RECEIPT_VERSION, ReceiptRecord
from topwork.surgery.bits import differing, same_bits
from topwork.surgery.graft import Graft, graft
from topwork.surgery.keeping import is_keeping_receipt, verify_keeping
from topwork.surgery.receipt import plan_of, sealed, sha256_tensor
from topwork.surgery.rows import rows_of
from topwork.weights.branches import stock_of
from topwork.weights.format import Weights, read_weights

# What can't be computed again: the versions are those of the machine that did the graft; hashes of
# files are checked by themselves.
_NOT_RECOMPUTED = ("versions", "sha256")


def verify_graft(
    source: Path | str,
    result: Path | str,
    receipt: Path | str,
    *,
    builder: Builder | None = None,
    trust: bool | str = False,
) -> list[str]:
    """Check a receipt against the two weights files that it is about: a graft's, or a fine-tuned
    file's (`keeping.verify_keeping`).

    Args:
        source: the weights before the graft, or before the fine-tuning (the pretrained ones).
        result: the weights after it.
        receipt: the JSON that the surgery, or the fine-tuning, wrote.
        builder: in place of the one that the source names (a file that moved); it is trusted.
        trust: the builder beyond torchvision's that the files may name; True takes any.

    Returns:
        What was checked and holds, one sentence each.

    Raises:
        ReceiptError: the first thing that doesn't hold: which tensor, which class's rows, what was
            found and what expected.
        SurgeryError, WeightsError: the files can't be read or don't fit the builder.

    Example:
        topwork.verify_graft("out/fetch/pretrained.safetensors", "out/surgery/grafted.safetensors",
        "out/surgery/receipt.json")
    """
    source, result, receipt = Path(source), Path(result), Path(receipt)
    if is_keeping_receipt(receipt):
        return verify_keeping(source, result, receipt, trust=trust or builder is not None)
    record = _read(receipt)
    before, found = (
        read_weights(path, trust=trust or builder is not None) for path in (source, result)
    )
    before = stock_of(before)
    _check_source(source, before, record, builder)
    expected = graft(before, plan_of(record["plan"]), builder=builder)
    _check_result(result, before, found, expected)
    _check_record(receipt, record, expected)
    holds = [
        f"source: {len(before.state_dict)} tensors have the receipt's hashes",
        (
            f"result: {_count(expected, 'untouched')} untouched tensors are bit-identical to the"
            " source's"
        ),
        (
            f"result: {_count(expected, 'changed')} class-dependent tensors, computed again row by"
            " row, are bit-identical"
        ),
        (
            f"layouts: proved again by the gradients of single classes ({record['family']},"
            f" {record['activation']})"
        ),
        "receipt: says the same as the one computed again",
    ]
    for side, path in (("source", source), ("result", result)):
        stated, actual = record[side]["file_sha256"], sha256_file(path)
        if stated is None:
            holds.append(
                f"{side}: the receipt doesn't know the file's hash (the graft was done in Python)"
            )
        elif stated != actual:
            raise ReceiptError(
                f"{path}: SHA-256 of the file is {actual}, the receipt says {stated}; its tensors"
                f" are as they should be, so its header changed. {_NEXT}"
            )
        else:
            holds.append(f"{side}: the file's SHA-256 is the receipt's, {actual[:12]}")
    return holds


_NEXT = "Take the files that the surgery wrote, or run the stage again: dvc repro surgery."


def _read(path: Path) -> dict[str, Any]:
    record = read_json(path)
    version = record.get("topwork_receipt") if isinstance(record, dict) else None
    if version != RECEIPT_VERSION:
        raise ReceiptError(
            f"{path}: found receipt version {version!r}, expected {RECEIPT_VERSION}. Give the"
            " receipt.json that the surgery wrote."
        )
    try:
        ReceiptRecord.model_validate(record)
        seal = sealed(record)["sha256"]
    except ValidationError as error:
        first = error.errors()[0]
        # tags of a union, no keys
        place = ".".join(str(key) for key in first["loc"] if key not in ("untouched", "changed"))
        expected = first["msg"].partition(" or instance of")[0].lower()
        raise ReceiptError(
            f"{path}: damaged, {place} is {_short(first['input'])}: {expected}. {_NEXT}"
        ) from error
    except ValueError as error:
        raise ReceiptError(f"{path}: damaged, {error}. {_NEXT}") from error
    if seal != record["sha256"]:
        raise ReceiptError(
            f"{path}: its SHA-256 is {seal[:12]}, it says {record['sha256'][:12]}; the receipt"
            f" itself was changed. {_NEXT}"
        )
    for row in record["plan"]["classes"]:
        if (len(row["sources"]), row["origin"]) not in ((0, "new"), (1, "keep")) and not (
            row["sources"] and row["origin"] == "like"
        ):
            raise ReceiptError(
                f"{path}: damaged, {row['name']} is {row['origin']!r} from {len(row['sources'])}"
                f" classes. {_NEXT}"
            )
    return dict(record)


def _check_source(
    path: Path, weights: Weights, record: Mapping[str, Any], builder: Builder | None
) -> None:
    """The source's names, columns and hashes are the receipt's."""
    stated = {item["name"]: item for item in record["tensors"]}
    _same_names(path, set(weights.state_dict), set(stated))
    for key in ("columns", "absorbed"):
        if list(getattr(weights, key)) != record["source"][key]:
            raise ReceiptError(
                f"{path}: {key} are {list(getattr(weights, key))}, the receipt says"
                f" {record['source'][key]}. {_NEXT}"
            )
    axes = {axis.tensor: axis for axis in head_spec_of(weights, builder).axes}
    for name, tensor in weights.state_dict.items():
        item, actual = stated[name], sha256_tensor(tensor)
        if actual == item["sha256_before"]:
            continue
        known = {
            (source["class"], tuple(source["rows"])): source["sha256"]
            for row in item.get("rows", [])
            for source in row["from"]
        }
        place = _first_changed_row(
            tensor, axes.get(name), (*weights.columns, *weights.absorbed), known
        )
        raise ReceiptError(
            f"{path}: {name}{place}: SHA-256 is {actual[:12]}, the receipt says"
            f" {item['sha256_before'][:12]}. {_NEXT}"
        )


def _first_changed_row(
    tensor: Tensor, axis: ClassAxis | None, columns: tuple[str, ...], known: Mapping[Any, str]
) -> str:
    for column, name in enumerate(columns if axis else ()):
        assert axis is not None
        rows = tuple(axis.rows(column))
        stated = known.get((name, rows))
        if rows and stated is not None and sha256_tensor(rows_of(tensor, axis, column)) != stated:
            return f", rows {list(rows)} ({name})"
    return ""


def _same_names(path: Path, found: set[str], expected: set[str]) -> None:
    if found != expected:
        missing, extra = sorted(expected - found), sorted(found - expected)
        raise ReceiptError(
            f"{path}: tensors missing: {', '.join(missing) or 'none'}; not in the receipt:"
            f" {', '.join(extra) or 'none'}. {_NEXT}"
        )


def _check_result(path: Path, source: Weights, found: Weights, expected: Graft) -> None:
    """The result is, bit by bit, what the graft gives."""
    _same_names(path, set(found.state_dict), set(expected.state_dict))
    for key in ("columns", "absorbed", "builder", "builder_args", "provenance"):
        if getattr(found, key) != getattr(expected.weights, key):
            raise ReceiptError(
                f"{path}: {key} is {getattr(found, key)!r}, expected"
                f" {getattr(expected.weights, key)!r}. {_NEXT}"
            )
    after = head_spec_of(found, expected.builder)
    before = head_spec_of(source, expected.builder)
    for name, tensor in found.state_dict.items():
        wanted = expected.state_dict[name]
        if tensor.dtype != wanted.dtype or tensor.shape != wanted.shape:
            raise ReceiptError(
                f"{path}: {name} is {tensor.dtype} {list(tensor.shape)}, expected {wanted.dtype}"
                f" {list(wanted.shape)}. {_NEXT}"
            )
        if same_bits(tensor, wanted):
            continue
        axis, old = after.axis_of(name), before.axis_of(name)
        if axis is None or old is None:
            raise ReceiptError(
                f"{path}: {name}: doesn't depend on the classes and must be as in the source, but"
                f" {differing(tensor, wanted)}. {_NEXT}"
            )
        raise ReceiptError(
            f"{path}: {name}:"
            f" {_misplaced(tensor, wanted, axis, (*found.columns, *found.absorbed), source, old)}."
            f" {_NEXT}"
        )


def _misplaced(
    tensor: Tensor,
    wanted: Tensor,
    axis: ClassAxis,
    columns: tuple[str, ...],
    source: Weights,
    old: ClassAxis,
) -> str:
    """Name the first class whose rows differ, and the source class whose rows are there instead, if
    it's one.
    """
    for column, name in enumerate(columns):
        if not axis.rows(column) or same_bits(
            rows_of(tensor, axis, column), rows_of(wanted, axis, column)
        ):
            continue
        rows = rows_of(tensor, axis, column)
        other = next(
            (
                o
                for o, _ in _source_rows(source, old)
                if same_bits(rows, rows_of(source.state_dict[old.tensor], old, o))
            ),
            None,
        )
        everything = [*source.columns, *source.absorbed]
        hint = "" if other is None else f"; they are the source's rows of {everything[other]}"
        return (
            f"rows {axis.rows(column)} of {name} aren't what the plan gives it,"
            f" {differing(rows, rows_of(wanted, axis, column))}{hint}"
        )
    return differing(tensor, wanted)


def _source_rows(source: Weights, axis: ClassAxis) -> Iterator[tuple[int, str]]:
    return (
        (column, name)
        for column, name in enumerate([*source.columns, *source.absorbed])
        if axis.rows(column)
    )


def _check_record(path: Path, record: Mapping[str, Any], expected: Graft) -> None:
    """Every statement of the receipt is the recomputed one's."""
    fresh = sealed(
        expected.receipt, record["source"]["file_sha256"], record["result"]["file_sha256"]
    )
    for key in sorted({*record, *fresh} - set(_NOT_RECOMPUTED)):
        fault = _first_difference(record.get(key), fresh.get(key), key)
        if fault:
            raise ReceiptError(f"{path}: {fault}. {_NEXT}")


def _first_difference(found: Any, expected: Any, place: str) -> str | None:
    if isinstance(found, dict) and isinstance(expected, dict) and found.keys() == expected.keys():
        return next(
            (
                fault
                for key in sorted(found)
                if (fault := _first_difference(found[key], expected[key], f"{place}.{key}"))
            ),
            None,
        )
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        named = [
            item["name"] if isinstance(item, dict) and "name" in item else index
            for index, item in enumerate(expected)
        ]
        pairs = zip(found, expected, named, strict=True)
        return next(
            (
                fault
                for one, other, name in pairs
                if (fault := _first_difference(one, other, f"{place}[{name}]"))
            ),
            None,
        )
    return (
        None
        if found == expected
        else f"{place} is {_short(found)}, computed again it is {_short(expected)}"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _count(done: Graft, status: str) -> int:
    return sum(item["status"] == status for item in done.receipt["tensors"])
