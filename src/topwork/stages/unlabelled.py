"""Stage `unlabelled`: find kept-class objects that the training annotations lack.

Reads params `unlabelled` and `surgery.classes`, the tables of `validate` with the training images, and the pretrained weights. Writes
out/unlabelled/boxes.parquet (one row a box: image_id, name, score, x, y, width, height) and out/unlabelled/findings.json. On the CPU of one
kind of machine it repeats to the byte. It never changes the annotations: what it finds is a warning, and may teach (finetune.teacher).
"""

from pathlib import Path
from typing import Any

from topwork.classes import ClassPlan
from topwork.coco.tables import Tables
from topwork.detectors.builders import load
from topwork.evaluation.predict import predict
from topwork.evaluation.sets import Pictures, rename_kept
from topwork.evaluation.truth import truth_of
from topwork.evaluation.unlabelled import Unlabelled, find_unlabelled
from topwork.files import HeldInputs, atomic_path, write_json
from topwork.params import Params, UnlabelledParams
from topwork.stages import main_of
from topwork.weights.weights import read_weights

FOLDER = Path("out/unlabelled")
PRETRAINED = Path("out/fetch/pretrained.safetensors")
TABLES = Path("out/validate")


def run(params: Params, root: Path = Path()) -> None:
    """Search the training images."""
    held = HeldInputs({"weights": root / PRETRAINED, "tables": root / TABLES})
    plan = ClassPlan.parse(params.surgery.classes)
    tables = Tables.read(root / TABLES, segmentation=False)
    found = _search(params, plan, tables, root) if plan.kept else None
    held.check()
    folder = root / FOLDER
    boxes = found.boxes if found else _no_boxes()
    with atomic_path(folder / "boxes.parquet") as temporary:
        boxes.to_parquet(temporary, index=False, compression="zstd")
    write_json(folder / "findings.json", findings(found, params.unlabelled, tables))
    print(_sentence(found))


def _search(params: Params, plan: ClassPlan, tables: Tables, root: Path) -> Unlabelled:
    truth = truth_of(tables, "train", tuple(plan.kept))
    detector = load(read_weights(root / PRETRAINED, trust=True))
    predictions = predict(
        detector, Pictures(root).of(tables, "train"), batch_size=params.unlabelled.batch_size, device=params.unlabelled.device
    )
    return find_unlabelled(truth, rename_kept(predictions, plan), params.unlabelled)


def _no_boxes() -> Any:
    import pandas as pd

    kinds = {"image_id": "int64", "name": "str", **dict.fromkeys(("score", "x", "y", "width", "height"), "float64")}
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})


def findings(found: Unlabelled | None, params: UnlabelledParams, tables: Tables) -> dict[str, Any]:
    """What findings.json says: how many, the estimate, and every box with its file, as warnings of rule `unlabelled-kept-class`."""
    if found is None:
        return {"count": 0, "estimate": 0.0, "classes": {}, "rows": [], **_limits(params)}
    files = dict(zip(tables.split("train").images["image_id"], tables.split("train").images["file_name"], strict=True))
    rows = [
        {
            "rule": "unlabelled-kept-class", "severity": "warning", "split": "train", "image_id": row["image_id"],
            "file_name": files[row["image_id"]], "class": row["name"], "score": row["score"],
            "bbox": [row["x"], row["y"], row["width"], row["height"]],
        }
        for row in found.boxes.to_dict("records")
    ]  # fmt: skip
    return {
        "count": len(rows), "estimate": found.estimate, "classes": found.classes, "rows": rows,
        **_limits(params),
    }  # fmt: skip


def _limits(params: UnlabelledParams) -> dict[str, float]:
    return params.model_dump(include={"min_score", "max_iou", "max_inside"})


def _sentence(found: Unlabelled | None) -> str:
    if found is None:
        return "no kept class: nothing to look for"
    parts = [f"{name}: {entry['count']} boxes, about {entry['estimate']:.0f} objects" for name, entry in found.classes.items()]
    return f"kept classes left unlabelled in the training images: {'; '.join(parts)}"


def main() -> int:
    """Run the stage alone."""
    return main_of(run)


if __name__ == "__main__":
    raise SystemExit(main())
