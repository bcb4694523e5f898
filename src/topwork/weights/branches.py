"""A branched file's tensors: the stock's under their own names, each scion's under its number, none
of them twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from topwork.classes import ClassPlan
from topwork.errors import WeightsError
from topwork.weights.format import Branches, Scion, Weights

SCIONS = "scions."
_OF_SCIONS = ("graft", "finetune")  # what the file's provenance says of the branches


def prefix_of(number: int) -> str:
    """What the names of a scion's tensors begin with; numbers count from 0."""
    return f"{SCIONS}{number}."


def stock_weights(weights: Weights) -> Weights:
    """The pretrained detector inside a branched file, as its own weights.

    Raises:
        WeightsError: they are a single detector's.
    """
    branches = _branches_of(weights)
    own = {name: t for name, t in weights.state_dict.items() if not name.startswith(SCIONS)}
    facts = {key: value for key, value in weights.provenance.items() if key not in _OF_SCIONS}
    return replace(
        weights,
        state_dict=own,
        columns=branches.columns,
        absorbed=branches.absorbed,
        provenance=facts,
        branches=None,
    )


def stock_of(weights: Weights) -> Weights:
    """The pretrained detector's weights: the file's stock, or the weights themselves."""
    return weights if weights.branches is None else stock_weights(weights)


def own_plan(weights: Weights, plan: ClassPlan) -> ClassPlan:
    """The part of a plan that a new scion is grafted by: without what earlier scions learned."""
    if weights.branches is None:
        return plan
    learned = {name for scion in weights.branches.scions for name in scion.learned}
    rows = tuple(
        row
        for row in plan.rows
        if not (row.origin == "keep" and next(iter(row.sources)) in learned)
    )
    return ClassPlan(rows, plan.dropped, plan.prior, plan.seed)


def class_names(weights: Weights) -> tuple[str, ...]:
    """Names of all columns that a class plan may take from: a file with scions offers what it hands
    out, and every other class of its stock.
    """
    names = (*weights.columns, *weights.absorbed)
    if weights.branches is None:
        return names
    more = (*weights.branches.columns, *weights.branches.absorbed)
    return (*names, *(name for name in more if name not in names))


def scion_weights(weights: Weights, number: int) -> Weights:
    """One scion's own tensors under the detector's names; those below its cut aren't among them.

    Raises:
        WeightsError: they are a single detector's.
    """
    scion, prefix = _branches_of(weights).scions[number], prefix_of(number)
    own = {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.state_dict.items()
        if name.startswith(prefix)
    }
    return replace(
        weights, state_dict=own, columns=scion.columns, absorbed=scion.absorbed, branches=None
    )


def learning_weights(weights: Weights) -> Weights:
    """What fine-tuning changes: the last scion's own weights, or all of a single detector."""
    if weights.branches is None:
        return weights
    return scion_weights(weights, len(weights.branches.scions) - 1)


def columns_of_tensor(weights: Weights, name: str) -> tuple[str, ...]:
    """Names of the columns that a class-dependent tensor's rows stand for: the stock's, a scion's,
    or a single detector's, absorbed ones last.
    """
    part: Weights | Branches | Scion = weights
    if weights.branches is not None:
        number = name.removeprefix(SCIONS).partition(".")[0] if name.startswith(SCIONS) else ""
        part = weights.branches.scions[int(number)] if number else weights.branches
    return (*part.columns, *part.absorbed)


def with_learned(weights: Weights, learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a file once training changed what `learning_weights` gives; the others are
    passed on as they are.
    """
    if weights.branches is None:
        return dict(learned)
    prefix = prefix_of(len(weights.branches.scions) - 1)
    return {**weights.state_dict, **{f"{prefix}{name}": own for name, own in learned.items()}}


def with_scions(
    stock: Weights,
    columns: Sequence[str],
    branches: Branches,
    scions: Sequence[Mapping[str, Tensor]],
    provenance: Mapping[str, Any],
) -> Weights:
    """A branched file's weights.

    Args:
        stock: the pretrained detector's.
        columns: names of the labels that are handed out, background first.
        branches: which class comes from which branch.
        scions: each one's tensors under the detector's names.
        provenance: of the stock, and of the graft that made the last scion.
    """
    tensors = dict(stock.state_dict)
    for number, own in enumerate(scions):
        tensors |= {f"{prefix_of(number)}{name}": tensor for name, tensor in own.items()}
    return Weights(
        tensors,
        tuple(columns),
        stock.builder,
        dict(stock.builder_args),
        (),
        dict(provenance),
        branches,
    )


def _branches_of(weights: Weights) -> Branches:
    if weights.branches is None:
        raise WeightsError(
            f"{weights.provenance.get('source', 'weights')}: a single detector, without a stock of"
            " its own; expected a file that `finetune.protect: branch` wrote."
        )
    return weights.branches
