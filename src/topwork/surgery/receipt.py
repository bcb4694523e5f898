"""Writing a graft's receipt: every tensor and row, with hashes before and after (schema:
project.surgery.ReceiptRecord).
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor

from topwork import __version__
from topwork.classes import ClassPlan, Row
from topwork.detectors.axes import PROBE_COLUMNS, PROOF_METHOD, HeadSpec
from topwork.detectors.layouts import ClassAxis
from topwork.files import canonical_json
from topwork.project.surgery import RECEIPT_VERSION
from topwork.surgery.rows import RowSource, keeps_scores, kept_columns, rows_of
from topwork.weights.format import Weights


def sha256_tensor(tensor: Tensor) -> str:
    """SHA-256 of a tensor's numbers, row-major, little-endian as stored."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data if flat.numel() else b"").hexdigest()


def receipt_of(
    source: Weights,
    result: Weights,
    plan: ClassPlan,
    before: HeadSpec,
    after: HeadSpec,
    sources: Sequence[RowSource],
) -> dict[str, Any]:
    """Write down what a graft did; only JSON values, no clock time, no path."""
    hashes = {name: sha256_tensor(tensor) for name, tensor in source.state_dict.items()}
    receipt = {
        "topwork_receipt": RECEIPT_VERSION,
        "versions": {
            "topwork": __version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "builder": source.builder,
        "builder_args": dict(source.builder_args),
        "family": before.family.name,
        "activation": "softmax" if before.softmax else "sigmoid",
        "source": {
            "columns": list(source.columns),
            "absorbed": list(source.absorbed),
            "sha256": digest(hashes),
            "file_sha256": None,
        },
        "result": {
            "columns": list(result.columns),
            "absorbed": list(result.absorbed),
            "file_sha256": None,
        },
        "plan": plan_record(plan),
        "dropped": _dropped(source, plan, before.softmax),
        "tensors": [
            _tensor_record(name, source, result, before, after, sources, hashes)
            for name in sorted(source.state_dict)
        ],
    }
    return sealed(receipt)


def sealed(
    receipt: Mapping[str, Any], source_file: str | None = None, result_file: str | None = None
) -> dict[str, Any]:
    """A receipt with its own SHA-256 (over its canonical JSON without that field), and the two
    files' hashes where they are given.
    """
    receipt = {key: value for key, value in receipt.items() if key != "sha256"}
    for side, file in (("source", source_file), ("result", result_file)):
        if file is not None:
            receipt[side] = {**receipt[side], "file_sha256": file}
    return {**receipt, "sha256": seal_of(receipt)}


def seal_of(receipt: Mapping[str, Any]) -> str:
    """SHA-256 over a receipt's canonical JSON; the receipt without its field `sha256`."""
    return hashlib.sha256(canonical_json(receipt).encode()).hexdigest()


def digest(hashes: Mapping[str, str]) -> str:
    """One hash over all tensors' names and hashes."""
    return hashlib.sha256(
        "".join(f"{name}\0{value}\n" for name, value in sorted(hashes.items())).encode()
    ).hexdigest()


def plan_record(plan: ClassPlan) -> dict[str, Any]:
    """A class plan as JSON values."""
    return {
        "classes": [
            {"name": row.name, "origin": row.origin, "sources": dict(row.sources), "init": row.init}
            for row in plan.rows
        ],
        "dropped": plan.dropped,
        "prior": plan.prior,
        "seed": plan.seed,
    }


def plan_of(record: Mapping[str, Any]) -> ClassPlan:
    """The class plan that `plan_record` wrote down."""
    rows = tuple(
        Row(row["name"], row["origin"], dict(row["sources"]), row["init"])
        for row in record["classes"]
    )
    return ClassPlan(rows, record["dropped"], record["prior"], record["seed"])


def _dropped(source: Weights, plan: ClassPlan, softmax: bool) -> dict[str, Any]:
    everything = [*source.columns, *source.absorbed]
    kept = set(kept_columns(plan.rows, everything))
    names = [name for index, name in enumerate(everything) if index and index not in kept]
    absorbed = softmax and plan.dropped == "absorb"
    return {
        "done": "absorbed" if absorbed else "removed",
        "exact": keeps_scores(plan, names, softmax),
        "classes": names,
    }


def _tensor_record(
    name: str,
    source: Weights,
    result: Weights,
    before: HeadSpec,
    after: HeadSpec,
    sources: Sequence[RowSource],
    hashes: Mapping[str, str],
) -> dict[str, Any]:
    tensor, grafted = source.state_dict[name], result.state_dict[name]
    axis, target = before.axis_of(name), after.axis_of(name)
    record: dict[str, Any] = {
        "name": name,
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape_before": list(tensor.shape),
        "shape_after": list(grafted.shape),
    }
    record |= {
        "sha256_before": hashes[name],
        "sha256_after": hashes[name] if grafted is tensor else sha256_tensor(grafted),
    }
    if axis is None or target is None:
        return {**record, "status": "untouched"}
    return {
        **record,
        "status": "changed",
        "role": axis.role,
        "axis": axis.axis,
        "layout": {
            "name": axis.layout,
            "outer": axis.outer,
            "inner": axis.inner,
            "multiplicity": axis.multiplicity,
        },
        "proof": {
            "method": PROOF_METHOD,
            "columns": PROBE_COLUMNS,
            "activation": "softmax" if before.softmax else "sigmoid",
        },
        "rows": _row_records(tensor, grafted, axis, target, source, sources),
    }


def _row_records(
    tensor: Tensor,
    grafted: Tensor,
    axis: ClassAxis,
    target: ClassAxis,
    source: Weights,
    sources: Sequence[RowSource],
) -> list[dict[str, Any]]:
    everything = [*source.columns, *source.absorbed]
    records = []
    for column, row in enumerate(sources):
        places = target.rows(column)
        if not places:
            continue
        records.append(
            {
                "class": row.name,
                "origin": row.origin,
                "init": row.init,
                "rows": places,
                "sha256": sha256_tensor(rows_of(grafted, target, column)),
                "from": [
                    {
                        "class": everything[index],
                        "weight": weight,
                        "rows": axis.rows(index),
                        "sha256": sha256_tensor(rows_of(tensor, axis, index)),
                    }
                    for index, weight in row.columns.items()
                ],
            }
        )
    return records
