"""Grafting: a detector's head rows moved, by class name, to a head of other classes.

    graft = topwork.graft(state_dict, {"person": "keep", "helmet": "new"},
    builder=ssdlite320_mobilenet_v3_large, columns=names) model.load_state_dict(graft.state_dict,
    strict=True)

Tensors that don't depend on the classes are passed on as they are, not copied; kept rows are
bit-identical.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from topwork.classes import BACKGROUND, UNUSED, ClassPlan, category_set
from topwork.detectors.axes import HeadSpec, head_spec, head_spec_of
from topwork.detectors.builders import Builder, build, builder_name, load
from topwork.detectors.layouts import ClassAxis
from topwork.errors import ClassPlanError, SurgeryError
from topwork.surgery.receipt import receipt_of
from topwork.surgery.rows import (
    RowSource,
    assemble,
    mean_rows,
    prior_rows,
    real_columns,
    row_sources,
    rows_of,
)
from topwork.weights.fit import check_fit
from topwork.weights.format import Weights


@dataclass(frozen=True, repr=False)
class Graft:
    """A graft's result.

    Attributes:
        weights: the grafted weights.
        receipt: what was done, row by row, provable from the two files (docs/surgery.md).
    """

    weights: Weights
    receipt: dict[str, Any]
    builder: Builder

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The grafted tensors, for `model.load_state_dict(graft.state_dict, strict=True)`."""
        return self.weights.state_dict

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the grafted detector's labels, background first: `graft.columns[label]`."""
        return self.weights.columns

    def __repr__(self) -> str:
        """What became of the classes: a line each kind, whatever the tensors."""
        origins = self.weights.provenance["graft"]["rows"]
        kinds = [
            f"{kind}: {', '.join(names)}"
            for kind in ("keep", "like", "new")
            if (names := [name for name, origin in origins.items() if origin == kind])
        ]
        dropped = self.receipt["dropped"]
        classes = [name for name in dropped["classes"] if name != UNUSED]
        kinds.append(f"{dropped['done']}: {len(classes)} classes")
        return f"Graft({'; '.join(kinds)})\n  {self.weights!r}"

    def build(
        self, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> nn.Module:
        """The grafted detector, ready to predict."""
        return load(self.weights, device, dtype, builder=self.builder)


def graft(
    weights: Weights | Mapping[str, Tensor],
    plan: ClassPlan | Mapping[str, Any] | Sequence[str],
    *,
    builder: Builder | None = None,
    columns: Sequence[str] | None = None,
    builder_args: Mapping[str, Any] | None = None,
    dropped: str | None = None,
    prior: float | None = None,
    seed: int | None = None,
) -> Graft:
    """Move head rows, by name, to a head of the plan's classes.

    Args:
        weights: the pretrained weights; or a plain state_dict, with `builder` and `columns`
            given as well.
        plan: target classes in order: a `ClassPlan`, a list of classes to keep, or a mapping as
            params.yaml writes it.
        builder: of a plain state_dict: what makes the detector (name or function).
        columns: of a plain state_dict: its columns' names, background first; or a category set such
            as `coco-91`.
        builder_args: of a plain state_dict: further keyword arguments of the builder.
        dropped: what becomes of the other rows of a softmax head: `absorb` into background (the
            default; kept classes' scores stay what they were), or `remove`.
        prior: probability at which `new: prior` rows start (0.01).
        seed: for `new: reference` (0).

    Raises:
        ClassPlanError: the plan names what the weights don't have, or contradicts itself.
        WeightsError: the tensors don't fit the builder; all are named.
        SurgeryError: a class axis can't be proved, or a row that is used isn't finite.

    Example:
        graft = topwork.graft(topwork.demo_weights(), {"person": "keep", "forklift": {"like":
        ["truck", "car"]}}) graft.receipt["dropped"]  # {"done": "absorbed",
        "exact": True, "classes": [...]}
    """
    source, function = _source(weights, builder, columns, builder_args)
    options: Any = {
        key: value
        for key, value in (("dropped", dropped), ("prior", prior), ("seed", seed))
        if value is not None
    }
    if not isinstance(plan, ClassPlan):
        plan = ClassPlan.parse(plan, **options)
    elif options:
        raise ClassPlanError(
            f"graft: {', '.join(options)} given with a ClassPlan, which has its own. Leave it"
            " out, or give `ClassPlan.parse` it."
        )
    plan.check((*source.columns, *source.absorbed))
    before = head_spec_of(source, function)
    check_fit(source, before.shapes)
    sources = row_sources(plan, source.columns, source.absorbed, before.softmax)
    absorbed = tuple(row.name for row in sources if row.origin == "absorbed")
    after = head_spec(function, len(plan.columns), source.builder_args, len(absorbed))
    state_dict = _operate(source, function, plan, before, after, sources)
    grafted = Weights(
        state_dict=state_dict,
        columns=plan.columns,
        builder=source.builder,
        builder_args=dict(source.builder_args),
        absorbed=absorbed,
        provenance={
            **source.provenance,
            "graft": {"rows": {row.name: row.origin for row in plan.rows}, "dropped": plan.dropped},
        },
    )
    return Graft(grafted, receipt_of(source, grafted, plan, before, after, sources), function)


def _source(
    weights: Weights | Mapping[str, Tensor],
    builder: Builder | None,
    columns: Sequence[str] | None,
    builder_args: Mapping[str, Any] | None,
) -> tuple[Weights, Builder]:
    if isinstance(weights, Weights):
        if weights.branches is not None:
            raise SurgeryError(
                "graft: these weights hold a stock and branches on it. Put a further branch on them"
                " with `topwork.branch`, or give the stock: `stock_of(weights)` of"
                " topwork.weights.branches."
            )
        if columns is not None or builder_args is not None:
            raise SurgeryError(
                "graft: these weights bring their own columns and builder_args; leave them out, or"
                " give `weights.state_dict`."
            )
        return weights, builder or weights.builder
    if not isinstance(weights, Mapping):
        raise SurgeryError(
            f"graft: found {type(weights).__name__}, expected weights or a state_dict. Give"
            " `topwork.read_weights(FILE)` or `model.state_dict()`."
        )
    if builder is None or columns is None:
        raise SurgeryError(
            "graft: a plain state_dict was given without `builder` and `columns`; name both, or"
            " read the weights with `topwork.read_weights`."
        )
    odd = [
        f"{name} ({type(value).__name__})"
        for name, value in weights.items()
        if not isinstance(value, Tensor)
    ]
    if odd:
        raise SurgeryError(
            f"graft: {', '.join(odd[:8])} in the state_dict; expected tensors alone. Give"
            " `model.state_dict()`."
        )
    names = category_set(columns) if isinstance(columns, str) else tuple(columns)
    if names[:1] != (BACKGROUND,):
        raise ClassPlanError(
            f"graft: columns begin with {', '.join(map(repr, names[:1])) or 'nothing'}, expected"
            f" {BACKGROUND!r}, then one name a label (1, 2, ...)."
        )
    return Weights(dict(weights), names, builder_name(builder), dict(builder_args or {})), builder


def _operate(
    source: Weights,
    builder: Builder,
    plan: ClassPlan,
    before: HeadSpec,
    after: HeadSpec,
    sources: Sequence[RowSource],
) -> dict[str, Tensor]:
    """The target's tensors: those without a class axis passed on, the others put together row by
    row.
    """
    reference = _reference(source, builder, plan, sources)
    classes = real_columns(source.columns)
    result = dict(source.state_dict)
    for axis in before.axes:
        tensor, target = source.state_dict[axis.tensor], after.axis_of(axis.tensor)
        if target is None:
            raise SurgeryError(
                f"{axis.tensor}: depends on the classes in the source's detector but not in the"
                " target's."
            )
        make = _maker(tensor, target, plan, before, reference, classes)
        result[axis.tensor] = assemble(tensor, axis, target, sources, make)
        _check_finite(result[axis.tensor], target, sources)
    return result


def _maker(
    tensor: Tensor,
    target: ClassAxis,
    plan: ClassPlan,
    before: HeadSpec,
    reference: Mapping[str, Tensor],
    classes: Sequence[int],
) -> Callable[[RowSource, ClassAxis], Tensor]:
    """How to make the rows of one tensor that aren't copies."""
    names = plan.columns

    def make(row: RowSource, axis: ClassAxis) -> Tensor:
        if row.origin == "like":
            return mean_rows(tensor, axis, row.columns)
        if row.init == "reference":
            return rows_of(reference[axis.tensor], target, names.index(row.name))
        if row.init == "zero":
            return torch.zeros(1, dtype=torch.float64)
        bias = tensor.dim() == 1
        if (
            axis.role == "scores"
            and not bias
            and before.axis_of(f"{axis.tensor.rpartition('.')[0]}.bias") is None
        ):
            raise SurgeryError(
                f"{axis.tensor}: {row.name}: `new: prior` needs a bias next to it, and there is"
                " none. Write `new: reference` or `new: zero`."
            )
        return prior_rows(
            tensor, axis, softmax=before.softmax, bias=bias, prior=plan.prior, classes=classes
        )

    return make


def _reference(
    source: Weights, builder: Builder, plan: ClassPlan, sources: Sequence[RowSource]
) -> Mapping[str, Tensor]:
    """The builder's own random init under the plan's seed, where a row asks for it."""
    if not any(row.init == "reference" for row in sources):
        return {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        return build(
            builder, len(plan.columns), source.builder_args, len(sources) - len(plan.columns)
        ).state_dict()


def _check_finite(tensor: Tensor, axis: ClassAxis, sources: Sequence[RowSource]) -> None:
    if _finite(tensor):
        return
    faults = [
        row.name for column, row in enumerate(sources) if not _finite(rows_of(tensor, axis, column))
    ]
    raise SurgeryError(
        f"{axis.tensor}: NaN or infinite numbers in the rows of {', '.join(faults)}; expected"
        " finite ones. Take other weights, or other classes."
    )


def _finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite: NaN and infinity reach the extremes, so that no copy of a
    large tensor is made.
    """
    if not tensor.numel() or tensor.is_complex():
        return bool(torch.isfinite(tensor).all())
    # float8 has no extremes of its own
    numbers = tensor.float() if tensor.element_size() == 1 else tensor
    return bool(torch.isfinite(torch.stack(numbers.aminmax())).all())
