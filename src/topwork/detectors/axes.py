"""Class axes, discovered on the `meta` device and proved by gradients.

Comparing two detectors that differ by one class shows which tensors depend on the class count,
along which axis and how often. How a class's rows lie inside a multiplied axis is proved on a small
detector of the same builder: the gradient of one class's score (box, mask) must touch exactly the
rows that the layout gives that class. What can't be proved is refused, never guessed.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from topwork.detectors.builders import (
    Builder,
    UninitializedParameters,
    build,
    builder_name,
    resolve,
    shapes_of,
)
from topwork.detectors.families import ROLES, Family, Role, family_of
from topwork.detectors.layouts import ClassAxis, factorizations, layout_name, rows_of_column
from topwork.errors import SurgeryError
from topwork.weights.format import Weights

# background and four classes: the fewest with which pairs of classes determine the rows of each
PROBE_COLUMNS = 5
TOUCHED = 1e-9  # relative to the largest gradient in float64; untouched rows are 0 but for rounding
PROOF_METHOD = "gradient"


@dataclass(frozen=True)
class HeadSpec:
    """What surgery and training need to know of a detector's head.

    Attributes:
        axes: one a class-dependent tensor, in the order of the state_dict.
        softmax: whether classes compete (softmax with background) or stand alone (sigmoid).
        shapes: every tensor's shape.
        family: the detector's family; `UNDECLARED` where neither torchvision's nor declared.
    """

    axes: tuple[ClassAxis, ...]
    softmax: bool
    shapes: Mapping[str, tuple[int, ...]]
    family: Family

    def axis_of(self, tensor: str) -> ClassAxis | None:
        """The class axis of a tensor, None where it doesn't depend on the classes."""
        return next((axis for axis in self.axes if axis.tensor == tensor), None)


@dataclass(frozen=True)
class _Found:
    """A class axis before its layout is known."""

    tensor: str
    axis: int
    multiplicity: int
    background: bool


@dataclass(frozen=True)
class _Proof:
    """What holds for a builder whatever its class count; the shapes are those of PROBE_COLUMNS
    columns.
    """

    axes: tuple[ClassAxis, ...]
    shapes: Mapping[str, tuple[int, ...]]
    softmax: bool
    family: Family


_PROOFS: dict[tuple[Any, str], _Proof] = {}


def head_spec(
    builder: Builder, columns: int, builder_args: Mapping[str, Any] | None = None, absorbed: int = 0
) -> HeadSpec:
    """Class axes, kind of head and all shapes of a builder's detector; the axes are proved.

    Args:
        builder: name or function.
        columns: class columns, background included.
        builder_args: further keyword arguments of the builder.
        absorbed: further columns of the score head that count as background.

    Raises:
        SurgeryError: the builder ignores `num_classes`, or a tensor's layout can't be proved; the
            tensors are named with their shapes.

    Example:
        >>> [axis.layout for axis in head_spec("ssdlite320_mobilenet_v3_large", 91).axes][:2]
        ['anchor-major', 'anchor-major']
    """
    proof = _proof(builder, dict(builder_args or {}))
    axes = [
        replace(axis, columns=columns + (absorbed if axis.role == "scores" else 0))
        for axis in proof.axes
    ]
    shapes = dict(proof.shapes)
    for axis in axes:
        shape = list(shapes[axis.tensor])
        shape[axis.axis] = axis.multiplicity * (axis.columns - (0 if axis.background else 1))
        shapes[axis.tensor] = tuple(shape)
    return HeadSpec(tuple(axes), proof.softmax, shapes, proof.family)


def head_spec_of(weights: Weights, builder: Builder | None = None) -> HeadSpec:
    """The head spec of the detector that weights belong to; `builder` replaces the one that they
    name.
    """
    return head_spec(
        builder or weights.builder,
        len(weights.columns),
        weights.builder_args,
        len(weights.absorbed),
    )


def _proof(builder: Builder, arguments: dict[str, Any]) -> _Proof:
    """Find and prove the axes of a builder, once a process."""
    key = (resolve(builder), json.dumps(arguments, sort_keys=True, default=repr))
    if key not in _PROOFS:
        found, shapes = _find(builder, arguments)
        _PROOFS[key] = _prove(builder, arguments, found, shapes)
    return _PROOFS[key]


def _find(
    builder: Builder, arguments: dict[str, Any]
) -> tuple[list[_Found], dict[str, tuple[int, ...]]]:
    """Compare the shapes of two detectors that differ by one class."""
    name = builder_name(builder)
    small, large = (
        shapes_of(builder, count, arguments) for count in (PROBE_COLUMNS, PROBE_COLUMNS + 1)
    )
    if small.keys() != large.keys():
        differing = ", ".join(sorted(small.keys() ^ large.keys())[:10])
        raise SurgeryError(
            f"{name}: has other tensors with {PROBE_COLUMNS} columns than with {PROBE_COLUMNS + 1}"
            f" ({differing}); such a head can't be grafted."
        )
    found, faults = [], []
    for tensor, shape in small.items():
        grown = large[tensor]
        if shape == grown:
            continue
        axes = [axis for axis, (a, b) in enumerate(zip(shape, grown, strict=False)) if a != b]
        multiplicity = grown[axes[0]] - shape[axes[0]] if axes and len(shape) == len(grown) else 0
        skipped = PROBE_COLUMNS - shape[axes[0]] / multiplicity if multiplicity > 0 else -1
        if len(axes) != 1 or skipped not in (0, 1):
            faults.append(f"{tensor} {list(shape)} -> {list(grown)}")
            continue
        found.append(_Found(tensor, axes[0], multiplicity, background=skipped == 0))
    if faults:
        raise SurgeryError(
            f"{name}: with one class more ({PROBE_COLUMNS} -> {PROBE_COLUMNS + 1} columns) these"
            f" tensors don't grow by whole classes along one axis: {'; '.join(faults)}. Surgery"
            " refuses to guess; give the builder a head with one axis of classes."
        )
    if not found:
        raise SurgeryError(
            f"{name}: ignores num_classes: no tensor's shape differs between {PROBE_COLUMNS} and"
            f" {PROBE_COLUMNS + 1} columns. Pass num_classes on to the detector's head."
        )
    return found, small


def _prove(
    builder: Builder,
    arguments: dict[str, Any],
    found: list[_Found],
    shapes: Mapping[str, tuple[int, ...]],
) -> _Proof:
    """Prove each axis's layout by the gradients of single classes."""
    name = builder_name(builder)
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), _one_thread():
        torch.manual_seed(0)
        with UninitializedParameters():
            model = build(builder, PROBE_COLUMNS, arguments)
        family = family_of(model, resolve(builder))
        if family.isolate is not None:
            family.isolate(model)
        model.double().eval().requires_grad_(False)
        randomize(model)
        # heads that share their rows have them under several names
        parameters = dict(model.named_parameters(remove_duplicate=False))
        loose = [
            f"{item.tensor} {list(shapes[item.tensor])}"
            for item in found
            if item.tensor not in parameters
        ]
        if loose:
            raise SurgeryError(
                f"{name}: {', '.join(loose)} grow with the classes but are buffers; no gradient can"
                " prove their layout."
            )
        watched = {item.tensor: parameters[item.tensor].requires_grad_() for item in found}
        touches, softmax = _touches(
            _probe(name, family, model), watched, {item.tensor: item.axis for item in found}
        )
    axes, unproved = [], []
    for item in found:
        axis = _match(
            item,
            {role: by_tensor[item.tensor] for role, by_tensor in touches.items()},
            softmax,
            family,
        )
        if axis is None:
            unproved.append(
                f"{item.tensor} {list(shapes[item.tensor])} (axis {item.axis}, {item.multiplicity}"
                " rows a class)"
            )
        else:
            axes.append(axis)
    if unproved:
        raise SurgeryError(
            f"{name}: no layout can be proved with {PROBE_COLUMNS} columns for"
            f" {'; '.join(unproved)}: the gradients of single classes don't touch just the rows"
            " that a layout gives them. Surgery refuses to guess; give the builder a `family`"
            " whose probe returns every candidate's score (docs/surgery.md)."
        )
    return _Proof(tuple(axes), shapes, softmax, family)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The probe's tensors are small: sharing them out costs more than computing, and on a machine
    of many cores it took a minute.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def randomize(model: nn.Module) -> None:
    """Fill parameters with random numbers at which activations neither vanish nor explode, in
    place.

    Weights are N(0, 1 / fan-in), biases N(0, 0.01); norms keep their ones and zeros.
    """
    with torch.no_grad():
        for module in model.modules():
            norm = "Norm" in type(module).__name__
            for parameter in module.parameters(recurse=False):
                if parameter.dim() >= 2:
                    parameter.normal_(std=max(parameter[0].numel(), 1) ** -0.5)
                elif not norm:
                    parameter.normal_(std=0.1)


def _probe(name: str, family: Family, model: nn.Module) -> dict[str, Tensor]:
    """Every candidate's label and, by role, one differentiable number: its score, and random
    mixtures of its box and mask.
    """
    try:
        detections = family.probe(model)
        outputs = {"labels": torch.cat([item["labels"] for item in detections])}
        for role in ROLES:
            if role in detections[0]:
                values = torch.cat([item[role] for item in detections]).reshape(
                    len(outputs["labels"]), -1
                )
                outputs[role] = (
                    values[:, 0]
                    if role == "scores"
                    else values @ torch.rand(values.shape[1], dtype=values.dtype)
                )
        outputs["scores"] = outputs["scores"].log()
        return outputs
    except Exception as error:
        raise SurgeryError(
            f"{name}: its head can't be probed ({type(error).__name__}: {error}). Expected"
            " torchvision's output, a list of dicts with scores and labels; or give the builder a"
            " `family` whose probe returns it (docs/surgery.md)."
        ) from error


def _touches(
    outputs: Mapping[str, Tensor], watched: Mapping[str, Tensor], axes: Mapping[str, int]
) -> tuple[dict[Role, dict[str, list[set[int]]]], bool]:
    """Role -> tensor -> for each real class, the rows that its output depends on; and whether the
    head is a softmax.

    In a softmax every score depends on every row. The difference of two classes' log scores depends
    on those two classes' rows alone; so there the sets are those of a class and its successor
    together.
    """

    def largest(total: Tensor) -> dict[str, Tensor]:
        """Tensor -> the largest gradient in each of its rows."""
        found = torch.autograd.grad(
            total, list(watched.values()), retain_graph=True, materialize_grads=True
        )
        return {
            tensor: (
                gradient.movedim(axes[tensor], 0)
                .reshape(gradient.shape[axes[tensor]], -1)
                .abs()
                .amax(1)
            )
            for tensor, gradient in zip(watched, found, strict=True)
        }

    touches: dict[Role, dict[str, list[set[int]]]] = {}
    softmax = False
    for role in ROLES:
        if role not in outputs or not outputs[role].requires_grad:
            continue
        sums = [
            outputs[role][outputs["labels"] == label].sum() for label in range(1, PROBE_COLUMNS)
        ]
        by_class = [largest(total) for total in sums]
        scales = {tensor: max(float(rows[tensor].max()) for rows in by_class) for tensor in watched}
        touches[role] = _rows_touched(by_class, scales)
        if role == "scores":
            moved = {tensor: sets for tensor, sets in touches[role].items() if any(sets)}
            softmax = bool(moved) and all(
                len(one) == len(by_class[0][tensor])
                for tensor, sets in moved.items()
                for one in sets
            )
        if role == "scores" and softmax:
            pairs = [
                largest(one - after) for one, after in zip(sums, [*sums[1:], sums[0]], strict=True)
            ]
            touches[role] = _rows_touched(pairs, scales)
    return touches, softmax


def _rows_touched(
    found: list[dict[str, Tensor]], scales: Mapping[str, float]
) -> dict[str, list[set[int]]]:
    """Tensor -> for each output, the rows whose gradient is more than rounding next to the
    tensor's largest of a single class.
    """
    return {
        tensor: [
            set((rows[tensor] > TOUCHED * scale).nonzero().flatten().tolist()) if scale else set()
            for rows in found
        ]
        for tensor, scale in scales.items()
    }


def _match(
    item: _Found, touches: Mapping[Role, list[set[int]]], softmax: bool, family: Family
) -> ClassAxis | None:
    """The one layout under which every class touches just its own rows; None where there is none,
    or it isn't the declared one.
    """
    for role, sets in touches.items():
        if not any(sets):
            continue
        skipped = 0 if item.background else 1
        for outer, inner in factorizations(item.multiplicity):
            own = [
                set(rows_of_column(outer, inner, PROBE_COLUMNS - skipped, column - skipped))
                for column in range(1, PROBE_COLUMNS)
            ]
            expected = (
                [one | after for one, after in zip(own, [*own[1:], own[0]], strict=True)]
                if softmax and role == "scores"
                else own
            )
            if sets == expected:
                declared = family.layouts.get(role)
                if declared not in (None, layout_name(outer, inner)):
                    return None
                return ClassAxis(
                    item.tensor, item.axis, outer, inner, PROBE_COLUMNS, item.background, role
                )
        return None
    return None
