"""A scion on a pretrained stock: the graft's rows in a second branch, so that training them leaves
the kept classes' detections as they are, bit for bit.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from topwork.classes import BACKGROUND, ClassPlan
from topwork.detectors.branches import choose_cut, head_path, lower_modules
from topwork.detectors.builders import Builder, load, resolve
from topwork.detectors.families import Family, family_of
from topwork.errors import SurgeryError
from topwork.surgery.graft import graft
from topwork.weights.branches import class_names, own_plan, scion_weights, stock_of, with_scions
from topwork.weights.format import Branches, Scion, Weights


def branch(
    weights: Weights,
    plan: ClassPlan | Mapping[str, Any],
    *,
    cut: str = "auto",
    mix: float = 0.0,
    builder: Builder | None = None,
) -> Weights:
    """Put a scion on pretrained weights, or a further one on a branched file's stock.

    Args:
        weights: the pretrained detector's, or those of a file with scions.
        plan: target classes. On a file with scions, `keep` also takes what those have learned; a
            plan that keeps alone adds no scion, it chooses what the file hands on.
        cut: where the scion's own trunk begins: after this module, `auto`, or `none`
            (`choose_cut`).
        mix: share of the scion in kept classes' scores and boxes; 0 keeps them bit for bit.
        builder: in place of the one that the weights name.

    Returns:
        Weights of both branches, untrained, for `topwork.load`, `topwork.write_weights` and
        fine-tuning.

    Raises:
        ClassPlanError: the plan names what the weights don't have.
        SurgeryError: the trunk can't be cut there, or the detector can't be branched.

    Example:
        both = topwork.branch(topwork.demo_weights(), {"person": "keep", "helmet": "new"})
        model = topwork.load(both)  # persons as before, bit for bit; helmets once it's trained
    """
    plan = plan if isinstance(plan, ClassPlan) else ClassPlan.parse(plan, dropped="absorb")
    plan.check(class_names(weights))
    stock, own = stock_of(weights), own_plan(weights, plan)
    grafted = graft(stock, own, builder=builder).weights
    return branched(weights, grafted, plan, cut=cut, mix=mix, builder=builder)


def branched(
    weights: Weights,
    grafted: Weights,
    plan: ClassPlan,
    *,
    cut: str = "auto",
    mix: float = 0.0,
    builder: Builder | None = None,
) -> Weights:
    """The same, with the scion grafted already (by `own_plan`).

    Raises:
        SurgeryError: as `branch`.
    """
    stock, earlier = stock_of(weights), weights.branches
    own = own_plan(weights, plan)
    learned = tuple(name for name in own.names if name not in own.kept)
    if not learned and weights.branches is None:
        raise SurgeryError(
            f"branch: the plan ({', '.join(plan.names)}) keeps every class, so that a second branch"
            " has nothing to learn. Name a new class in surgery.classes, or write `protect:"
            " weights`."
        )
    folded = [source for source in own.kept.values() if source in stock.absorbed]
    if folded:
        raise SurgeryError(
            f"branch: {', '.join(folded)}: absorbed into background in these weights, so that the"
            " stock doesn't tell it apart. Take the weights from before that graft."
        )
    detector = load(stock, builder=builder)
    family = family_of(detector, resolve(builder or stock.builder))
    if family.name == "undeclared":
        raise SurgeryError(
            f"branch: {stock.builder} declares no family, so that nothing says where its transform"
            " and its trunk are. Give the builder a `family` (docs/surgery.md), or write `protect:"
            " weights`."
        )
    if any("keypoint" in name for name in stock.state_dict):
        raise SurgeryError(
            "branch: Keypoint R-CNN gives every detection keypoints, and a new class has none to"
            " learn from (the tables hold boxes and masks). Write `protect: weights`."
        )
    if mix:
        head_path(family)
        if earlier is not None or not own.kept:
            raise SurgeryError(
                "mix: needs a kept class, and one scion alone; a further scion keeps what is there"
                " exactly. Write `kept: exact`."
            )
    before = [] if earlier is None else list(range(len(earlier.scions)))
    kept = dict(own.kept)
    scions, added = _new_scion(detector, family, grafted, learned, cut)
    if earlier is not None:
        renamed = {
            next(iter(row.sources)): row.name
            for row in plan.rows
            if row.origin == "keep" and row.name not in own.names
        }
        changed = {source: name for source, name in renamed.items() if source != name}
        if changed:
            raise SurgeryError(
                f"onto: {', '.join(changed)} would be renamed; classes of an earlier scion keep"
                " their names. Write `NAME: keep`."
            )
        scions = [
            Scion(
                old.cut,
                old.columns,
                old.absorbed,
                tuple(name for name in old.learned if name in renamed),
            )
            for old in earlier.scions
        ] + scions
    branches = Branches(stock.columns, stock.absorbed, kept, tuple(scions), mix)
    return with_scions(
        stock,
        (BACKGROUND, *plan.names),
        branches,
        [scion_weights(weights, number).state_dict for number in before] + added,
        grafted.provenance,
    )


def _new_scion(
    detector: nn.Module, family: Family, grafted: Weights, learned: tuple[str, ...], cut: str
) -> tuple[list[Scion], list[dict[str, Tensor]]]:
    """The new branch and its tensors, those below the cut left out; none where nothing is new."""
    if not learned:
        return [], []
    chosen = choose_cut(detector, family, cut)
    lower = tuple(f"{path}." for path in lower_modules(detector, family, chosen))
    tensors = {
        name: tensor
        for name, tensor in grafted.state_dict.items()
        if not (lower and name.startswith(lower))
    }
    return [Scion(chosen, grafted.columns, grafted.absorbed, learned)], [tensors]
