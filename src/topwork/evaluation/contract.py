"""The contracts against the class plan and the data: can they be measured at all?"""

from collections.abc import Mapping

from topwork.classes import ClassPlan
from topwork.dataset.tables import Tables
from topwork.errors import EvaluationError
from topwork.metrics.sets import classes_of, held_out, truths_of
from topwork.params.learned import LearnParams
from topwork.params.retention import KeepParams
from topwork.project.names import HELD_OUT


def check_measurable(
    contract: Mapping[str, KeepParams],
    learned: Mapping[str, LearnParams],
    plan: ClassPlan,
    tables: Tables,
) -> None:
    """Refuse data and contracts that can't be measured, before anything is.

    Raises:
        EvaluationError: there is no test set, or a contract can't be measured (`check_contract`,
            `check_learned`).
    """
    if "test" not in held_out(plan, tables):
        raise EvaluationError(
            "no test set; name one as dataset.test in params.yaml, or let dataset.split take one"
            " from the training images."
        )
    sets = {
        split: tuple(name for name in classes_of(plan, tables, split) if name in plan.kept)
        for split in HELD_OUT
        if split in tables.splits
    }
    check_contract(contract, plan, sets)
    check_learned(learned, plan)


def check_contract(
    contract: Mapping[str, KeepParams], plan: ClassPlan, sets: Mapping[str, tuple[str, ...]]
) -> None:
    """Refuse a contract that can't be measured, before anything is.

    Args:
        contract: class -> what is asked.
        plan: the class plan.
        sets: set -> kept classes that its categories have.

    Raises:
        EvaluationError: a class that isn't kept, a set that isn't given, or one whose categories
            lack the class; all are named.
    """
    faults = []
    for name, asked in contract.items():
        if name not in plan.names:
            faults.append(f"{name}: no target class (surgery.classes has {', '.join(plan.names)})")
        elif name not in plan.kept:
            origin = next(row.origin for row in plan.rows if row.name == name)
            faults.append(
                f"{name}: not a kept class (`{origin}` in surgery.classes), so there is no"
                f" pretrained AP to retain; kept are {', '.join(plan.kept) or 'none'}"
            )
        elif asked.on not in sets:
            faults.append(
                f"{name}: on: {asked.on}, and dataset.{asked.on} isn't given; sets to measure on"
                f" are {', '.join(sets) or 'none'}"
            )
        elif name not in sets[asked.on]:
            faults.append(
                f"{name}: on: {asked.on}, and that set's categories don't have it (they have"
                f" {', '.join(sets[asked.on]) or 'no kept class'})"
            )
    if faults:
        raise EvaluationError(
            f"params.yaml: retention: {'; '.join(faults)}. Fix the contract, surgery.classes or"
            " dataset."
        )


def check_objects(
    contract: Mapping[str, KeepParams],
    learned: Mapping[str, LearnParams],
    plan: ClassPlan,
    tables: Tables,
) -> None:
    """Refuse a contract on a class of which its set holds no object: its AP would be undefined, and
    an undefined figure never holds.

    Raises:
        EvaluationError: there is such a class; all are named.
    """
    truths = truths_of(plan, tables)
    asked: dict[str, Mapping[str, KeepParams | LearnParams]] = {
        "retention": contract,
        "learned": learned,
    }
    faults = [
        f"{section}.{name}: on: {item.on}, and the {item.on} set has no object of {name}"
        for section, items in asked.items()
        for name, item in items.items()
        if not truths[item.on].objects[name]
    ]
    if faults:
        raise EvaluationError(
            f"params.yaml: {'; '.join(faults)}. Ask on another set, or annotate objects of the"
            " class there."
        )


def check_learned(learned: Mapping[str, LearnParams], plan: ClassPlan) -> None:
    """Refuse a learning contract that can't be measured.

    Raises:
        EvaluationError: a class that the plan lacks, or keeps; all are named.
    """
    faults = []
    for name in learned:
        if name not in plan.names:
            faults.append(f"{name}: no target class (surgery.classes has {', '.join(plan.names)})")
        elif name in plan.kept:
            faults.append(f"{name}: a kept class; what is asked of it stands in `retention`")
    if faults:
        raise EvaluationError(
            f"params.yaml: learned: {'; '.join(faults)}. Fix the contract or surgery.classes."
        )
