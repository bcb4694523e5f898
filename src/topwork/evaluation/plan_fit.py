"""The class plan against the training data: does every class that is learned have boxes, and does
every category have a class?

Training goes by name. A class of the plan that no category is called like gets no box, and a
category that the plan doesn't name is learned as background: a slip of the pen in either is a
detector that has learned not to see.
"""

import difflib
import re
from dataclasses import dataclass

from topwork.classes import ClassPlan, Row
from topwork.dataset.tables import Tables
from topwork.errors import ClassPlanError

NEAR = 0.6  # difflib's ratio from which a name is taken for a slip of another


@dataclass(frozen=True)
class PlanFit:
    """What was found.

    Attributes:
        faults: what can't be right, a sentence each.
        notes: what may be intended, a sentence each.
    """

    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, tuple[str, ...]]:
        """As `--format json` prints it; notes are called `told` there, as in earlier versions."""
        return {"faults": self.faults, "told": self.notes}

    def check(self) -> None:
        """Stop where something can't be right.

        Raises:
            ClassPlanError: there are faults; all are named.
        """
        if self.faults:
            raise ClassPlanError(
                f"params.yaml: surgery.classes against dataset.train: {'; '.join(self.faults)}."
                " Mend surgery.classes, or rename categories by dataset.aliases."
            )


def plan_fit(plan: ClassPlan, tables: Tables) -> PlanFit:
    """Hold a class plan against the categories and boxes of train (crowds aside); nothing is found
    where there's no train.
    """
    if "train" not in tables.splits:
        return PlanFit()
    counts = _counts(tables)
    unplanned = [name for name in counts if name not in plan.names]
    faults, notes = [], []
    for row in plan.rows:
        if row.name not in counts:
            near = _near(row, unplanned)
            if row.origin != "keep" or near is not None:
                faults.append(_lacking(row, near, counts))
            else:
                notes.append(
                    f"{row.name}: kept, and train has no category of that name, so that nothing"
                    " there teaches it; what shows there is background, but for the teacher's boxes"
                )
        elif not counts[row.name]:
            found = f"{row.name}: `{row.origin}`, and its category has no box in train"
            if row.origin == "new":
                faults.append(f"{found}, so that it can't be learned")
            else:
                notes.append(f"{found}: its rows stay what they were, or learn background")
    notes += [
        f"{name}: a category with {_boxes(counts[name])} in train that surgery.classes doesn't"
        " name: learned as background"
        for name in unplanned
    ]
    return PlanFit(tuple(faults), tuple(notes))


def _counts(tables: Tables) -> dict[str, int]:
    """Category of train -> its boxes that training takes."""
    train = tables.split("train")
    usable = train.annotations[
        ~train.annotations["iscrowd"].astype(bool)
        & (train.annotations["width"] > 0)
        & (train.annotations["height"] > 0)
    ]
    numbers = usable["category_id"].map(tables.names("train")).value_counts()
    return {name: int(numbers.get(name, 0)) for name in tables.names("train").values()}


def _near(row: Row, unplanned: list[str]) -> str | None:
    """The category that a class probably means. Kept classes may be absent on purpose, so that
    theirs must be the source's name, or differ in case and separators alone.
    """
    plain = {_plain(name): name for name in reversed(unplanned)}
    for name in (row.name, *(row.sources if row.origin == "keep" else ())):
        if _plain(name) in plain:
            return plain[_plain(name)]
    if row.origin == "keep":
        return None
    found = difflib.get_close_matches(_plain(row.name), plain, n=1, cutoff=NEAR)
    return plain[found[0]] if found else None


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", "", name).casefold()


def _lacking(row: Row, near: str | None, counts: dict[str, int]) -> str:
    text = f"{row.name}: `{row.origin}`, and no category of train is called so"
    if near is not None:
        return (
            f"{text}; the nearest is {near!r} with {_boxes(counts[near])}, which would be learned"
            f" as background: write `{near}`, or `dataset.aliases: {{{near}: {row.name}}}`"
        )
    return f"{text} (they are {', '.join(map(repr, list(counts)[:20])) or 'none'})"


def _boxes(count: int) -> str:
    return f"{count} box{'' if count == 1 else 'es'}"
