"""What is measured on what: which classes a set is evaluated on, and what each model calls them.

The pretrained detector knows its own classes: only those that the plan keeps can be compared, and
they are renamed to the target's names. The source set, and images to replay, are looked at for kept
classes alone, since nobody annotated the new ones there.
"""

import pandas as pd

from topwork.classes import ClassPlan
from topwork.dataset.tables import Tables
from topwork.metrics.truth import Truth, truth_of
from topwork.project.names import HELD_OUT


def classes_of(plan: ClassPlan, tables: Tables, split: str) -> dict[str, tuple[str, ...]]:
    """Target class -> category names of a set that mean it.

    On the custom set all target classes, by their own names. On images of the source domain kept
    classes alone, by the target's name or, where no category has that, by the pretrained
    detector's.
    """
    if split not in ("source", "replay"):
        return {name: (name,) for name in plan.names}
    known = set(tables.split(split).categories["name"])
    named = {target: target if target in known else source for target, source in plan.kept.items()}
    return {target: (name,) for target, name in named.items() if name in known}


def held_out(plan: ClassPlan, tables: Tables) -> list[str]:
    """The held-out splits that are there and have a class to evaluate."""
    return [
        split for split in HELD_OUT if split in tables.splits and classes_of(plan, tables, split)
    ]


def truths_of(plan: ClassPlan, tables: Tables) -> dict[str, Truth]:
    """Ground truth of each held-out split."""
    return {
        split: truth_of(tables, split, classes_of(plan, tables, split))
        for split in held_out(plan, tables)
    }


def rename_kept(predictions: pd.DataFrame, plan: ClassPlan) -> pd.DataFrame:
    """The pretrained detector's predictions of kept classes, under the target's names and labels;
    the rest is left out.
    """
    parts = [
        predictions[predictions["name"] == source].assign(
            name=target, label=plan.columns.index(target)
        )
        for target, source in plan.kept.items()
    ]
    if not parts:
        return predictions.iloc[:0]
    return pd.concat(parts).sort_index(kind="stable").reset_index(drop=True)
