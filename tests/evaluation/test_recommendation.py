"""`topwork plan` recommends a way of protecting from the pretrained detector's own detections."""

from pathlib import Path

import pandas as pd
import pytest

from topwork.classes import ClassPlan
from topwork.dataset.tables import Tables
from topwork.evaluation.recommendation import recommend
from topwork.project.predictions import TRAINING, predictions_path
from topwork.project.validate import FOLDER

PLAN = ClassPlan.parse({"human": {"keep": "person"}, "helmet": "new"})


def write(folder: Path, own_hits: int, source: bool = True) -> None:
    """Ten images a set with one person each; the detector finds so many of the own ones, and all of
    the source domain's.
    """
    images, annotations, categories, found = [], [], [], {}
    for split, name in (("train", "human"), ("source", "person"))[: 2 if source else 1]:
        categories.append({"split": split, "category_id": 1, "name": name})
        box = {"x": 5.0, "y": 5.0, "width": 30.0, "height": 40.0}
        for number in range(10):
            of = {"split": split, "image_id": number}
            size = {"file_name": f"{number}.png", "width": 64, "height": 64, "image_root": "data"}
            images.append({**of, **size})
            shape = {"area": 1200.0, "iscrowd": False, "segmentation": None}
            ids = {"annotation_id": len(annotations), "category_id": 1}
            annotations.append({**of, **ids, **box, **shape})
        hits = own_hits if split == "train" else 10
        found[split] = pd.DataFrame(
            [{"image_id": k, "label": 1, "name": "human", "score": 0.9, **box} for k in range(hits)]
        )
    Tables(*(pd.DataFrame(rows) for rows in (images, annotations, categories))).write(
        folder / FOLDER
    )
    for split, table in found.items():
        path = folder / (TRAINING if split == "train" else predictions_path("pretrained", split))
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(path, index=False)


@pytest.mark.parametrize(("hits", "protect"), [(9, "branch"), (3, "weights")])
def test_a_class_that_is_found_is_kept_as_it_is(tmp_path: Path, hits: int, protect: str) -> None:
    write(tmp_path, hits)
    found = recommend(PLAN, tmp_path)
    assert found.protect == protect
    own, source = found.figures["human"]
    assert own < source == pytest.approx(1.0)
    assert f"recommended: finetune.protect: {protect} (human: AP {own:.2f} on" in found.sentence


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert "tables of the stage `validate` are missing" in recommend(PLAN, tmp_path).sentence
    write(tmp_path, 5, source=False)
    assert "(dataset.source) are missing" in recommend(PLAN, tmp_path).sentence
    write(tmp_path, 5)
    (tmp_path / TRAINING).unlink()
    found = recommend(PLAN, tmp_path)
    assert found.protect is None
    assert "predictions of the stage `baseline` (dvc repro baseline) are" in found.sentence
    new = ClassPlan.parse({"helmet": "new"})
    assert "a kept class is missing" in recommend(new, tmp_path).sentence
