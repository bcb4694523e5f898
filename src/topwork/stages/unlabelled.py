"""Stage `unlabelled`: find kept-class objects that the training annotations lack.

Reads params `unlabelled` and `surgery.classes`, the tables of `validate`, and what the pretrained
detector saw on the training images (`baseline`). Writes out/unlabelled/boxes.parquet (one row a
box: image_id, name, score, x, y, width, height) and out/unlabelled/findings.json. Runs no model;
repeats to the byte. It never changes the annotations: what it finds is a warning, and may be added
to the training targets (finetune.teacher_boxes).
"""

import pandas as pd

from topwork.dataset.tables import Tables
from topwork.evaluation.unlabelled import Unlabelled, find_unlabelled
from topwork.files import HeldInputs, atomic_path
from topwork.metrics.truth import truth_of
from topwork.params.section import Sections
from topwork.params.surgery import SurgeryParams
from topwork.params.unlabelled import UnlabelledParams
from topwork.project.predictions import TRAINING
from topwork.project.unlabelled import BOXES, FINDINGS, UnlabelledBox, UnlabelledRecord
from topwork.project.validate import FOLDER, table_paths
from topwork.stages import in_project, main_of


class Params(Sections):
    """What the stage reads of params.yaml."""

    surgery: SurgeryParams
    unlabelled: UnlabelledParams = UnlabelledParams()


@in_project
def run(params: Params) -> None:
    """Search what was seen on the training images."""
    plan = params.surgery.plan()
    held = HeldInputs({**table_paths(), "training": TRAINING})
    tables = Tables.read(FOLDER, segmentation=False)
    found = None
    if plan.kept:
        predictions = pd.read_parquet(TRAINING)
        found = find_unlabelled(
            truth_of(tables, "train", tuple(plan.kept)), predictions, params.unlabelled
        )
    held.check()
    with atomic_path(BOXES) as temporary:
        (found.boxes if found else _no_boxes()).to_parquet(
            temporary, index=False, compression="zstd"
        )
    record_of(found, params.unlabelled, tables).write(FINDINGS)
    print(_sentence(found))


def _no_boxes() -> pd.DataFrame:
    kinds = {
        "image_id": "int64",
        "name": "str",
        **dict.fromkeys(("score", "x", "y", "width", "height"), "float64"),
    }
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})


def record_of(
    found: Unlabelled | None, params: UnlabelledParams, tables: Tables
) -> UnlabelledRecord:
    """How many, the estimate, and every box with its file, as warnings of rule
    `unlabelled-kept-class`.
    """
    limits = params.model_dump(include={"min_score", "max_iou", "max_inside"})
    if found is None:
        return UnlabelledRecord(count=0, estimate=0.0, classes={}, rows=(), **limits)
    images = tables.split("train").images
    files = dict(zip(images["image_id"], images["file_name"], strict=True))
    rows = tuple(
        UnlabelledBox(
            image_id=row["image_id"],
            file_name=files[row["image_id"]],
            name=row["name"],
            score=row["score"],
            bbox=(row["x"], row["y"], row["width"], row["height"]),
        )
        for row in found.boxes.to_dict("records")
    )
    return UnlabelledRecord(
        count=len(rows), estimate=found.estimate, classes=found.classes, rows=rows, **limits
    )


def _sentence(found: Unlabelled | None) -> str:
    if found is None:
        return "no kept class: nothing to look for"
    counts = [
        f"{name}: {entry.count} boxes, about {entry.estimate:.0f} objects"
        for name, entry in found.classes.items()
    ]
    return f"kept classes left unlabelled in the training images: {'; '.join(counts)}"


def main() -> int:
    """Run the stage alone."""
    return main_of(run, Params)


if __name__ == "__main__":
    raise SystemExit(main())
