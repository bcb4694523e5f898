"""Looking into weights: tensors, class rows, neighbours, and what moved between two files."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from topwork.classes import UNUSED
from topwork.detectors.axes import HeadSpec, head_spec_of
from topwork.detectors.builders import Builder, builder_name
from topwork.detectors.layouts import ClassAxis
from topwork.errors import SurgeryError
from topwork.surgery.rows import rows_of
from topwork.surgery.table import Table
from topwork.weights.branches import (
    columns_of_tensor,
    learning_weights,
    prefix_of,
    scion_weights,
    stock_of,
)
from topwork.weights.fit import check_fit
from topwork.weights.format import Weights, read_weights

TENSOR_COLUMNS = (
    "tensor",
    "shape",
    "dtype",
    "numbers",
    "bytes",
    "norm",
    "finite",
    "role",
    "axis",
    "layout",
    "rows",
)
TENSOR_BRIEF = ("tensor", "shape", "norm", "role", "layout")
CLASS_COLUMNS = ("column", "class", "origin", "rows", "weight_norm", "bias_mean", "nearest")
DIFF_COLUMNS = ("tensor", "class", "status", "moved", "relative", "largest", "cosine")
BY_CLASS_COLUMNS = ("class", "tensors", "same", "moved", "relative")
ABSORBED, ELSE = "absorbed", "everything else"


Inspected = Weights | Path | str | nn.Module | Mapping[str, Tensor]
"""What can be looked into: weights, a file of them, a module, a plain state_dict."""


def inspect(
    weights: Inspected, *, builder: Builder | None = None, columns: Sequence[str] | None = None
) -> Table:
    """A table of tensors, one row each, class-dependent ones with their layout.

    Columns: tensor, shape, dtype, numbers, bytes, norm (Euclidean), finite, role, axis, layout,
    rows (a class); the last four are empty where a tensor doesn't depend on the classes. `.attrs`
    has builder, columns, absorbed, activation.

    Args:
        weights: weights, a file of them, a module, or a state_dict. Of the last two the last four
            columns are empty unless `builder` is given.
        builder: what makes the detector, of a module or state_dict; in place of the one that
            weights name.
        columns: names of the class columns, background first, of a state_dict; a module that
            `topwork.load` made knows them.

    Raises:
        WeightsError, SurgeryError: the file can't be read or the tensors don't fit the builder.

    Example:
        table = topwork.inspect("out/fetch/pretrained.safetensors")
        [row["tensor"] for row in table if row["role"] == "scores"]
    """
    weights, found = _known(weights, builder, columns)
    records = []
    for name, tensor in weights.state_dict.items():
        axis = found.axis_of(name) if found else None
        records.append(
            {
                "tensor": name,
                "shape": tuple(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "numbers": tensor.numel(),
                "bytes": tensor.numel() * tensor.element_size(),
                "norm": _norm(tensor),
                "finite": (
                    bool(torch.isfinite(tensor).all()) if tensor.is_floating_point() else True
                ),
                "role": axis.role if axis else "",
                "axis": str(axis.axis) if axis else "",
                "layout": axis.layout if axis else "",
                "rows": str(axis.multiplicity) if axis else "",
            }
        )
    attrs = {
        "builder": weights.builder,
        "columns": list(weights.columns),
        "absorbed": list(weights.absorbed),
        "activation": ("softmax" if found.softmax else "sigmoid") if found else None,
    }
    return Table(TENSOR_COLUMNS, records, attrs, brief=TENSOR_BRIEF)


def inspect_classes(
    weights: Weights | Path | str, *, neighbours: int = 3, builder: Builder | None = None
) -> Table:
    """A table of class columns: norms of their score rows, and the classes whose score rows point
    the same way.

    Columns: column, class, origin (as the graft wrote it; empty in pretrained weights), rows (of
    all tensors), weight_norm, bias_mean,
    nearest (list of (class, cosine), nearest first). The cosine is over the centred score weights:
    the mean of all classes is taken off first, since what all rows have in common says nothing
    about a class.
    """
    weights, found = _spec_of(weights, builder)
    if weights.branches is not None:
        weights = learning_weights(weights)
        found = head_spec_of(weights, builder)
    names = [*weights.columns, *weights.absorbed]
    origins = weights.provenance.get("graft", {}).get("rows", {})
    vectors = _score_vectors(weights, found, names)
    centred = torch.nn.functional.normalize(vectors - vectors.mean(0), dim=1)
    cosines = centred @ centred.T
    records = []
    for column, name in enumerate(names):
        order = [
            other
            for other in cosines[column].argsort(descending=True).tolist()
            if other not in (0, column) and names[other] != UNUSED
        ]
        absorbed = column >= len(weights.columns)
        records.append(
            {
                "column": column,
                "class": name,
                "origin": "absorbed" if absorbed else origins.get(name, ""),
                "rows": sum(len(axis.rows(column)) for axis in found.axes),
                "weight_norm": float(vectors[column].norm()),
                "bias_mean": _bias_mean(weights, found, column),
                "nearest": (
                    [
                        (names[other], round(float(cosines[column, other]), 3))
                        for other in order[:neighbours]
                    ]
                    if column and name != UNUSED
                    else []
                ),
            }
        )
    return Table(CLASS_COLUMNS, records, brief=("class", "origin", "weight_norm", "nearest"))


def diff(
    before: Weights | Path | str, after: Weights | Path | str, *, builder: Builder | None = None
) -> Table:
    """What moved between two weights of the same builder, tensor by tensor, and row by row by class
    name.

    Columns: tensor, class (empty for a whole tensor), status (`same`, `moved`, `only before`, `only
    after`), moved (Euclidean norm of the
    difference), relative (over the norm before), largest (single difference), cosine.
    Class-dependent tensors are compared class by class, so that files with other classes, or in
    another order, can be held side by side.

    Raises:
        SurgeryError: the two have different builders.
    """
    one, other = (
        (
            weights
            if isinstance(weights, Weights)
            else read_weights(Path(weights), trust=builder is not None)
        )
        for weights in (before, after)
    )
    if builder is None and (one.builder, one.builder_args) != (other.builder, other.builder_args):
        raise SurgeryError(
            f"diff: the first is of {one.builder} {one.builder_args}, the second of {other.builder}"
            f" {other.builder_args}; expected the same builder."
        )
    (one, found_one), (other, found_other) = _spec_of(one, builder), _spec_of(other, builder)
    records = []
    for name in dict.fromkeys([*one.state_dict, *other.state_dict]):
        axis, axis_other = found_one.axis_of(name), found_other.axis_of(name)
        if axis is None or axis_other is None:
            records.append(
                {
                    "tensor": name,
                    "class": "",
                    **_moved(one.state_dict.get(name), other.state_dict.get(name)),
                }
            )
        else:
            records += _moved_rows(name, one, other, axis, axis_other)
    attrs = {"absorbed": list(dict.fromkeys([*one.absorbed, *other.absorbed]))}
    return Table(DIFF_COLUMNS, records, attrs, brief=DIFF_COLUMNS[:5])


def by_class(moved: Table) -> Table:
    """A `diff`, summed up: a row a class, one for all absorbed classes, and `everything else`.

    Columns: class, tensors, same (how many are bit-identical), moved (Euclidean norm of the
    difference), relative (over the norm before).
    """
    absorbed = set(moved.attrs.get("absorbed", ()))
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in moved:
        name = row["class"] or ELSE
        groups.setdefault(ABSORBED if name in absorbed else name, []).append(row)
    last = (ABSORBED, ELSE)
    names = [name for name in groups if name not in last] + [n for n in last if n in groups]
    records = []
    for name in names:
        rows = groups[name]
        if name == ABSORBED:
            name = f"{len({row['class'] for row in rows})} absorbed classes"
        numbers = [row for row in rows if not math.isnan(row["moved"])]
        distance = math.sqrt(sum(row["moved"] ** 2 for row in numbers))
        norm = math.sqrt(
            sum((row["moved"] / row["relative"]) ** 2 for row in numbers if row["relative"] > 0)
        )
        records.append(
            {
                "class": name,
                "tensors": len(rows),
                "same": sum(row["status"] == "same" for row in rows),
                "moved": distance if numbers else math.nan,
                "relative": (distance / norm if norm else 0.0) if numbers else math.nan,
            }
        )
    return Table(BY_CLASS_COLUMNS, records)


def _moved_rows(
    name: str, one: Weights, other: Weights, axis: ClassAxis, axis_other: ClassAxis
) -> Iterator[dict[str, Any]]:
    """One record a class of a class-dependent tensor; classes that both have come in the first's
    order.
    """
    columns = dict(_named_columns(one, axis))
    columns_other = dict(_named_columns(other, axis_other))
    for label in dict.fromkeys([*columns, *columns_other]):
        rows = rows_of(one.state_dict[name], axis, columns[label]) if label in columns else None
        rows_other = (
            rows_of(other.state_dict[name], axis_other, columns_other[label])
            if label in columns_other
            else None
        )
        yield {"tensor": name, "class": label, **_moved(rows, rows_other)}


def _named_columns(weights: Weights, axis: ClassAxis) -> Iterator[tuple[str, int]]:
    for column, name in enumerate(columns_of_tensor(weights, axis.tensor)):
        if axis.rows(column) and name != UNUSED:
            yield name, column


def _moved(one: Tensor | None, other: Tensor | None) -> dict[str, Any]:
    nothing = {
        "moved": float("nan"),
        "relative": float("nan"),
        "largest": float("nan"),
        "cosine": float("nan"),
    }
    if one is None or other is None or one.shape != other.shape:
        status = (
            "only after"
            if one is None
            else (
                "only before"
                if other is None
                else f"reshaped {list(one.shape)} -> {list(other.shape)}"
            )
        )
        return {"status": status, **nothing}
    if one.dtype == other.dtype and torch.equal(one, other):
        return {"status": "same", "moved": 0.0, "relative": 0.0, "largest": 0.0, "cosine": 1.0}
    a, b = one.detach().double().flatten(), other.detach().double().flatten()
    difference, norm = b - a, float(a.norm())
    largest = float(difference.abs().max())
    moved = float(difference.norm())
    return {
        "status": "moved" if largest else "same",
        "moved": moved,
        "relative": moved / norm if norm else float("nan"),
        "largest": largest,
        "cosine": float(torch.nn.functional.cosine_similarity(a, b, dim=0)),
    }


def _known(
    weights: Inspected, builder: Builder | None, columns: Sequence[str] | None
) -> tuple[Weights, HeadSpec | None]:
    """The weights, and their head where the builder is known."""
    if isinstance(weights, Weights | Path | str):
        if columns is not None:
            raise SurgeryError("inspect: these weights bring their own columns; leave them out.")
        return _spec_of(weights, builder)
    names = columns if columns is not None else getattr(weights, "columns", None)
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    if not isinstance(tensors, Mapping):
        raise SurgeryError(
            f"inspect: found {type(tensors).__name__}, expected weights, a file, a module or a"
            " state_dict."
        )
    if builder is None:
        return Weights(dict(tensors), tuple(names or ()), ""), None
    if names is None:
        raise SurgeryError(
            "inspect: a builder without columns; give the names of the class columns, background"
            " first: `columns=[...]`."
        )
    plain = Weights(dict(tensors), tuple(names), builder_name(builder))
    return _spec_of(plain, builder)


def _spec_of(weights: Weights | Path | str, builder: Builder | None) -> tuple[Weights, HeadSpec]:
    if not isinstance(weights, Weights):
        weights = read_weights(Path(weights), trust=builder is not None)
    stock = stock_of(weights)
    found = head_spec_of(stock, builder)
    check_fit(stock, found.shapes)
    scions = () if weights.branches is None else weights.branches.scions
    axes = [
        replace(axis, tensor=f"{prefix_of(number)}{axis.tensor}")
        for number in range(len(scions))
        for axis in head_spec_of(scion_weights(weights, number), builder).axes
    ]
    return weights, replace(found, axes=(*found.axes, *axes))


def _score_vectors(weights: Weights, found: HeadSpec, names: list[str]) -> Tensor:
    """float64[columns, values]: each column's score weights, all tensors and rows behind one
    another; zeros where it has no rows.
    """
    parts = []
    for axis in found.axes:
        tensor = weights.state_dict[axis.tensor]
        if axis.role != "scores" or tensor.dim() == 1:
            continue
        empty = torch.zeros(
            tensor.numel() // tensor.shape[axis.axis] * axis.multiplicity, dtype=torch.float64
        )
        rows = [
            rows_of(tensor, axis, column).double().flatten() if axis.rows(column) else empty
            for column in range(len(names))
        ]
        parts.append(torch.stack(rows))
    return torch.cat(parts, dim=1)


def _bias_mean(weights: Weights, found: HeadSpec, column: int) -> float:
    rows = [
        rows_of(weights.state_dict[axis.tensor], axis, column).double()
        for axis in found.axes
        if axis.role == "scores"
        and weights.state_dict[axis.tensor].dim() == 1
        and axis.rows(column)
    ]
    return float(torch.cat(rows).mean()) if rows else float("nan")


def _norm(tensor: Tensor) -> float:
    return float(
        torch.linalg.vector_norm(
            tensor.detach().to(torch.float64 if tensor.numel() < 1e6 else torch.float32)
        )
    )
