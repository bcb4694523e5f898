"""Images to replay that a share is chosen on: held out, so that nothing is trained on them.

By the tables alone, so that the stage `check`, which imports this, doesn't depend on the code that
reads images; copies are looked for where a caller has the images.
"""

from typing import TYPE_CHECKING

from topwork.classes import ClassPlan
from topwork.dataset.tables import Tables
from topwork.errors import TrainingError
from topwork.metrics.sets import classes_of
from topwork.metrics.truth import Truth, truth_of
from topwork.params.finetune import FinetuneParams

if TYPE_CHECKING:
    from topwork.dataset.split_images import SplitImages

LEAST_OBJECTS = 10
"""Of a class, on the held-out images: with fewer its AP is mostly luck."""
NAMED_COPIES = 3


def replay_halves(tables: Tables, params: FinetuneParams) -> tuple[frozenset[int], frozenset[int]]:
    """Ids of the images of `replay`: those that are replayed, and those that are held out.

    Where a share is chosen by retention, the second half by id is held out if the first is replayed
    (every other one would leave neighbours of a film on both sides), else all.

    Raises:
        TrainingError: there are too few images for two halves.
    """
    ids = sorted(int(number) for number in tables.split("replay").images["image_id"])
    replayed = params.protect == "weights" and params.replay > 0
    if not (params.by_retention and params.epochs):
        return frozenset(ids if replayed else ()), frozenset()
    if not replayed:
        return frozenset(), frozenset(ids)
    if len(ids) < 2:
        raise TrainingError(
            f"dataset.replay: {len(ids)} image{'' if len(ids) == 1 else 's'}, expected 2 or more:"
            " one half of them is replayed (finetune.replay), and a share is chosen by what kept"
            " classes keep on the other half. Name more images, or write `replay: 0` in finetune,"
            " which holds all of them out, or a number in place of `retention`."
        )
    half = len(ids) // 2
    return frozenset(ids[:half]), frozenset(ids[half:])


def check_held_out(
    plan: ClassPlan, tables: Tables, params: FinetuneParams, images: "SplitImages | None" = None
) -> None:
    """Refuse to choose a share by what kept classes keep where that can't be measured.

    Raises:
        TrainingError: see `held_truth`.
    """
    if params.by_retention and params.epochs:
        held_truth(plan, tables, params, images)


def held_truth(
    plan: ClassPlan, tables: Tables, params: FinetuneParams, images: "SplitImages | None" = None
) -> tuple[Truth, tuple[str, ...]]:
    """Kept classes on the held-out images, and notes on what is left out.

    Args:
        plan: which classes are kept.
        tables: the data set.
        params: how a share is chosen.
        images: of the data set, so that copies of what is trained on are left out; None takes them
            as they are.

    Raises:
        TrainingError: no kept class has enough objects there, or there are too few images.
    """
    replayed, held = replay_halves(tables, params)
    split, notes = tables.split("replay"), []
    if images is not None and (copies := _copies(images, replayed, held)):
        rows = split.images[split.images["image_id"].isin(copies)]
        some = ", ".join(map(str, rows["file_name"].head(NAMED_COPIES)))
        notes.append(
            f"{len(copies)} of the {len(held)} images of dataset.replay that are held out are"
            " copies of images that are trained on, and what is kept isn't measured on them:"
            f" {some}{', ...' if len(copies) > NAMED_COPIES else ''}"
        )
        held -= copies
    named = classes_of(plan, tables, "replay")
    part = Tables(
        split.images[split.images["image_id"].isin(held)],
        split.annotations[split.annotations["image_id"].isin(held)],
        split.categories,
    )
    truth = truth_of(part, "replay", named) if named else None
    objects = {} if truth is None else truth.objects
    enough = [name for name, count in objects.items() if count >= LEAST_OBJECTS]
    lacking = [f"{name} ({objects.get(name, 0)})" for name in plan.kept if name not in enough]
    if truth is None or not enough:
        raise TrainingError(
            f"dataset.replay: a share is to be chosen by what kept classes keep on {len(held)} of"
            f" its images, and none has {LEAST_OBJECTS} objects there: {', '.join(lacking)}"
            f"{''.join(f' ({note})' for note in notes)}. Name more images, or write a number in"
            " place of `retention` in finetune."
        )
    if lacking:
        notes.append(
            f"what is kept isn't measured for {', '.join(lacking)}: fewer than {LEAST_OBJECTS}"
            f" objects in the {len(held)} images of dataset.replay that are held out"
        )
    return truth.only(enough), tuple(notes)


def _copies(
    images: "SplitImages", replayed: frozenset[int], held: frozenset[int]
) -> frozenset[int]:
    """Held-out images with the bytes of one that is trained on."""
    trained = {"replay": replayed}
    if "train" in images.tables.splits:
        rows = images.tables.split("train").images["image_id"]
        trained["train"] = frozenset(int(number) for number in rows)
    return images.copies("replay", held, trained)
