"""Predictions as files: an exact table, and COCO results next to it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from topwork.dataset.tables import Tables
from topwork.files import atomic_path, write_text


def write_predictions(
    stem: Path, predictions: pd.DataFrame, tables: Tables, split: str, labels: Mapping[str, int]
) -> None:
    """Write STEM.parquet (exact) and STEM.json (COCO results, rounded as COCO asks for).

    Category ids in the JSON are those of the set's annotations, so that it can be evaluated against
    them as it is; a class that the set lacks gets an id beyond those.
    """
    with atomic_path(stem.with_name(f"{stem.name}.parquet")) as temporary:
        predictions.to_parquet(temporary, index=False, compression="zstd")
    ids = {name: key for key, name in tables.names(split).items()}
    beyond = max(ids.values(), default=0)
    results = coco_results(
        predictions, {name: ids.get(name, beyond + label) for name, label in labels.items()}
    )
    lines = ",\n".join(json.dumps(result, sort_keys=True) for result in results)
    write_text(stem.with_name(f"{stem.name}.json"), f"[\n{lines}\n]\n" if lines else "[]\n")


def coco_results(
    predictions: pd.DataFrame, category_ids: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Predictions as COCO's results JSON has them; boxes to 1/100 pixel and scores to 6 digits, as
    COCO asks for.

    Args:
        predictions: the table of `predict`.
        category_ids: class name -> category id; classes that aren't named are left out.
    """
    rows = predictions[predictions["name"].isin(list(category_ids))]
    results = [
        {
            "image_id": int(image_id),
            "category_id": category_ids[name],
            "bbox": [round(float(value), 2) for value in box],
            "score": round(float(score), 6),
        }
        for image_id, name, score, *box in zip(
            *(
                rows[key].tolist()
                for key in ("image_id", "name", "score", "x", "y", "width", "height")
            ),
            strict=True,
        )
    ]
    if "segmentation" in rows:
        for result, text in zip(results, rows["segmentation"], strict=True):
            result["segmentation"] = json.loads(text)
    return results
