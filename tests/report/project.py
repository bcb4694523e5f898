"""A finished project for the report's tests: everything is real but the detectors' work.

The pictures are the demo's, validate, surgery, DVCLive and evaluate's own functions ran; detections
are the ground truth, shaken by a seeded generator, so that nothing has to be trained.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from topwork.classes import BACKGROUND
from topwork.dataset.tables import Tables
from topwork.demo.street import STREET_CLASSES
from topwork.demo.worlds import STREET, YARD, draw_split
from topwork.detectors.builders import build
from topwork.files import write_json
from topwork.inference.run import record_of, write_run
from topwork.metrics.sets import held_out
from topwork.params.document import Params, parse_params
from topwork.params.predict import PredictParams
from topwork.project import finetune
from topwork.project import unlabelled as unlabelled_outs
from topwork.project.fetch import PRETRAINED, PROVENANCE
from topwork.project.predictions import predictions_folder, record_path
from topwork.project.surgery import GRAFTED
from topwork.project.unlabelled import UnlabelledRecord
from topwork.stages import check, evaluate, fetch, surgery, validate
from topwork.weights.format import Weights, write_weights

# model -> class -> (share of objects found, shake of the box, false detections an image)
QUALITY = {
    "pretrained": {"person": (0.85, 0.05, 0.3)},
    "grafted": {"person": (0.84, 0.05, 0.3), "forklift": (0.25, 0.2, 0.5)},
    "finetuned": {
        "person": (0.88, 0.045, 0.25),
        "helmet": (0.75, 0.09, 0.3),
        "forklift": (0.92, 0.05, 0.1),
    },
}


def document(**changes: Any) -> dict[str, Any]:
    """params.yaml of the project."""
    return {
        "dataset": {
            "root": "data/demo",
            "train": {"annotations": "yard/train.json", "images": "yard/train/images"},
            "test": {"annotations": "yard/test.json", "images": "yard/test/images"},
            "source": {"annotations": "street/test.json", "images": "street/test/images"},
            "fail_on": "never",
        },
        "surgery": {
            "classes": {"person": "keep", "helmet": "new", "forklift": {"like": ["truck", "car"]}},
            "dropped": "absorb",
        },
        "evaluate": {"bootstrap": 60},
        "retention": {"person": {"min": 0.9, "on": "source"}},
        "report": {"title": "Yard: person kept, helmet and forklift learned", "pictures": 4},
        **changes,
    }


def build_project(
    root: Path, test: int = 16, source: int = 12, train: int = 10, seed: int = 0, **changes: Any
) -> Params:
    """Draw, check, graft and evaluate in `root`; returns the params."""
    params = parse_params(document(**changes))
    # JSON is YAML; unsorted, since classes have an order
    (root / "params.yaml").write_text(json.dumps(document(**changes)))
    data = root / "data/demo"
    draw_split(YARD, data / "yard", "train", train, 7, processes=1)
    draw_split(YARD, data / "yard", "test", test, 7, processes=1)
    if params.dataset.source is not None:
        draw_split(STREET, data / "street", "test", source, 7, processes=1)
    _spoil(data / "yard/train.json")
    validate.run(params, root)
    torch.manual_seed(0)
    builder = "ssdlite320_mobilenet_v3_large"
    columns = (BACKGROUND, *STREET_CLASSES)
    with torch.random.fork_rng():
        model = build(builder, len(columns))
    provenance = {"source": "demo", "licence": "Apache-2.0", "sha256": "ab" * 32}
    pretrained = Weights(model.state_dict(), columns, builder, {}, provenance=provenance)
    write_weights(root / PRETRAINED, pretrained)
    fetch.record_of(pretrained).write(root / PROVENANCE)
    check.run(params, root)
    surgery.run(params, root)
    (root / finetune.FOLDER).mkdir()
    (root / finetune.FINETUNED).write_bytes((root / GRAFTED).read_bytes())
    run_record().write(root / finetune.RECORD)
    write_curves(root / finetune.CURVES)
    predict_and_evaluate(root, params, seed)
    unlabelled(root)
    return params


def run_record() -> finetune.RunRecord:
    """The record of a fine-tuning in an environment that isn't this one."""
    return finetune.RunRecord(
        determinism=finetune.Determinism(level="bit-exact", reasons=("CPU",)),
        machine={"device": "cpu", "torch": "2.14.0"},
        versions={
            "python": "3.11.2",
            "torch": "2.14.0",
            "topwork": "0.0.9",
            "platform": "Linux-x86_64",
        },
        epochs=12,
        steps=96,
        stopped_early=False,
        interpolation=finetune.Interpolation(alpha=0.9, tried=()),
        accumulate=1,
        images={"train": 10, "replay": 0},
        history=(),
        notes=(),
    )


def _spoil(path: Path) -> None:
    """Two faults for the data gate to find: a box of no width, a category that nobody uses."""
    content = json.loads(path.read_text())
    first = content["annotations"][0]
    box = [*first["bbox"][:2], 0.0, first["bbox"][3]]
    content["annotations"].append(
        {
            **first,
            "id": 1 + max(row["id"] for row in content["annotations"]),
            "bbox": box,
            "area": 0.0,
        }
    )
    content["categories"].append({"id": 99, "name": "crane"})
    path.write_text(json.dumps(content))


def write_curves(folder: Path) -> None:
    """DVCLive's files, without its look at the git repository around."""
    curves = {
        "train/loss": [4 * 0.8**epoch + 0.9 for epoch in range(12)],
        "val/map": [0.62 * (1 - 0.7**epoch) for epoch in range(12)],
        "lr": [0.01 * (1 - epoch / 12) for epoch in range(12)],
    }
    for name, values in curves.items():
        path = folder / "plots/metrics" / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{step}\t{value}" for step, value in enumerate(values)]
        path.write_text("\n".join([f"step\t{name.rsplit('/', 1)[-1]}", *lines, ""]))
    write_json(folder / "metrics.json", {name: values[-1] for name, values in curves.items()})


def predict_and_evaluate(root: Path, params: Params, seed: int = 0) -> None:
    """What the stages do, with made-up detections."""
    plan = params.surgery.plan()
    tables = Tables.read(root / validate.FOLDER)
    rng = np.random.default_rng(seed)
    splits = held_out(plan, tables)
    found = {
        split: {
            model: shaken(tables, split, plan, quality, rng) for model, quality in QUALITY.items()
        }
        for split in splits
    }
    for models in (("pretrained", "grafted"), ("finetuned",)):
        of = {model: {split: found[split][model] for split in splits} for model in models}
        write_run(root / predictions_folder(models[0]), of, tables, plan)
        record_of(of, dict.fromkeys(models, "ab" * 32), PredictParams(), torch.device("cpu")).write(
            root / record_path(models[0])
        )
    evaluate.run(params, root)


def shaken(
    tables: Tables,
    split: str,
    plan: Any,
    quality: dict[str, tuple[float, float, float]],
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Detections made of the ground truth: some objects missed, boxes shaken, a few false ones."""
    data, names = tables.split(split), tables.names(split)
    sizes = {
        int(key): (int(w), int(h))
        for key, w, h in zip(
            data.images["image_id"], data.images["width"], data.images["height"], strict=True
        )
    }
    rows: list[tuple[Any, ...]] = []
    for row in data.annotations.itertuples():
        name = names[row.category_id]
        if name not in quality or row.width <= 0:
            continue
        share, shake, _ = quality[name]
        if rng.random() < share:
            x, y, width, height = np.array([row.x, row.y, row.width, row.height]) + rng.normal(
                0, shake, 4
            ) * np.tile([row.width, row.height], 2)
            rows.append(
                (
                    row.image_id,
                    name,
                    float(np.clip(rng.beta(8, 3), 0.05, 0.999)),
                    x,
                    y,
                    max(width, 2),
                    max(height, 2),
                )
            )
    for image_id, (width, height) in sizes.items():
        for name, (_, _, false) in quality.items():
            for _ in range(rng.poisson(false)):
                w, h = width * rng.uniform(0.05, 0.3), height * rng.uniform(0.05, 0.4)
                rows.append(
                    (
                        image_id,
                        name,
                        float(rng.beta(2, 5)),
                        rng.uniform(0, width - w),
                        rng.uniform(0, height - h),
                        w,
                        h,
                    )
                )
    frame = pd.DataFrame(rows, columns=["image_id", "name", "score", "x", "y", "width", "height"])
    frame.insert(1, "label", [plan.columns.index(name) for name in frame["name"]])
    frame = frame.sort_values(
        ["image_id", "score"], ascending=[True, False], kind="stable"
    ).reset_index(drop=True)
    return frame.astype(
        {
            "image_id": "int64",
            "label": "int64",
            "score": "float64",
            "width": "float64",
            "height": "float64",
        }
    )


def changed(finished: Path, folder: Path) -> Path:
    """The project after some work: one param, an annotation fewer, another moved, one image with
    other bytes.
    """
    shutil.copytree(finished, folder)
    (folder / "params.yaml").write_text(json.dumps(document(finetune={"lr": 0.02})))
    tables = Tables.read(folder / "out/validate")
    annotations = tables.annotations
    train = np.flatnonzero(annotations["split"] == "train")
    annotations.loc[annotations.index[train[1]], "x"] += 1
    annotations = annotations.drop(annotations.index[train[2]])
    Tables(tables.images, annotations, tables.categories).write(folder / "out/validate")
    image = folder / "data/demo/yard/train/images/yard_train_00003.jpg"
    image.write_bytes(image.read_bytes() + b"\0")
    return folder


def unlabelled(root: Path) -> None:
    """Three kept-class objects that the training annotations seem to lack."""
    tables = Tables.read(root / "out/validate").split("train")
    ids = list(tables.images["image_id"])[:3]
    frame = pd.DataFrame(
        {
            "image_id": ids,
            "name": "person",
            "score": [0.93, 0.84, 0.71],
            "x": 60.0,
            "y": 90.0,
            "width": 80.0,
            "height": 160.0,
        }
    )
    (root / unlabelled_outs.FOLDER).mkdir(parents=True)
    frame.to_parquet(root / unlabelled_outs.BOXES)
    UnlabelledRecord(
        count=len(ids),
        estimate=2.5,
        classes={},
        rows=(),
        min_score=0.6,
        max_iou=0.3,
        max_inside=0.5,
    ).write(root / unlabelled_outs.FINDINGS)
