"""What protects a kept class: the same fine-tuning with and without each option, over seeds.

    python benchmarks/protection.py PROJECT [--variants NAME...] [--seeds 0 1 2] [--set
    KEY=VALUE...] [--train N --val M] [--out FILE.json]

PROJECT is a folder with params.yaml in which `dvc repro surgery unlabelled` has run (the demo, or
an own set). `--train 40 --val 56` makes a small
set of it: the first 40 training images by SHA-256 of their names, and the next 56 to choose the
interpolation by. `--replay 64` takes that many of the
source images out, likewise, to be replayed: retention is then measured on the others. Each variant
is trained with the project's params and its own
changes, then measured on the project's test and source sets. Rows already in --out are not run
again.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from reference import train_reference
from topwork.classes import ClassPlan
from topwork.dataset.split_images import SplitImages
from topwork.dataset.tables import Tables
from topwork.detectors.axes import head_spec_of
from topwork.detectors.builders import build, load
from topwork.evaluation.unlabelled import find_unlabelled
from topwork.inference.device import keep_freed_memory
from topwork.inference.prediction import predict
from topwork.metrics.coco import score
from topwork.metrics.sets import classes_of, rename_kept
from topwork.metrics.truth import detections_of, truth_of
from topwork.params.document import Params, load_params
from topwork.project.fetch import PRETRAINED
from topwork.project.surgery import GRAFTED
from topwork.project.unlabelled import BOXES
from topwork.project.validate import FOLDER as TABLES
from topwork.surgery.graft import graft
from topwork.training.device import training_device
from topwork.training.loop import Job, fine_tune
from topwork.training.measuring import validation
from topwork.training.setup import training_set
from topwork.weights.format import Weights, read_weights

UNPROTECTED = {
    "head_epochs": 0,
    "trunk_lr": 1.0,
    "distill": 0.0,
    "interpolation": "off",
    "teacher_boxes": False,
    "replay": 0.0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "fresh head": {**UNPROTECTED, "fresh": "head"},
    "fresh head, torchvision's recipe": {**UNPROTECTED, "fresh": "head", "recipe": "reference"},
    "fresh class rows": {**UNPROTECTED, "fresh": "rows"},
    "graft, train all": UNPROTECTED,
    "graft, trunk frozen": {**UNPROTECTED, "trunk_lr": 0.0},
    "defaults": {"replay": 0.0},
    "defaults with replay": {},
    "persons unlabelled, train all": {**UNPROTECTED, "unlabelled": True},
    "persons unlabelled, no teacher": {
        "replay": 0.0,
        "unlabelled": True,
        "teacher_boxes": False,
        "distill": 0.0,
    },
    "persons unlabelled, defaults": {"replay": 0.0, "unlabelled": True},
    # one option at a time, on top of nothing
    "only head first": {**UNPROTECTED, "head_epochs": 2},
    "only trunk rate x0.3": {**UNPROTECTED, "trunk_lr": 0.3},
    "only trunk rate x0.1": {**UNPROTECTED, "trunk_lr": 0.1},
    "only batch norm in training": {**UNPROTECTED, "freeze_batch_norm": False},
    "only distillation": {**UNPROTECTED, "distill": 1.0},
    "only distillation x3": {**UNPROTECTED, "distill": 3.0},
    "only interpolation": {**UNPROTECTED, "interpolation": "validation"},
    "only replay": {**UNPROTECTED, "replay": 0.25},
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("project", type=Path)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS)[:10])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="finetune params for all variants"
    )
    parser.add_argument("--train", type=int, help="train on so many of the training images")
    parser.add_argument("--val", type=int, default=0, help="and validate on so many others of them")
    parser.add_argument(
        "--replay",
        type=int,
        default=0,
        help="replay so many of the source images, and measure on the others",
    )
    parser.add_argument("--out", type=Path, help="JSON lines; rows that are there aren't run again")
    arguments = parser.parse_args()
    keep_freed_memory()
    out = arguments.out.resolve() if arguments.out else None
    os.chdir(arguments.project)
    params = load_params()
    plan = params.surgery.plan()
    tables = Tables.read(TABLES, segmentation=False)
    for split, parts in {
        "train": {"train": arguments.train, "val": arguments.val},
        "source": {"replay": arguments.replay, "source": None},
    }.items():
        tables = dealt_out(tables, split, parts) if any(parts.values()) else tables
    measure = Measure(plan, tables)
    common = {
        key: json.loads(value) for key, value in (item.split("=", 1) for item in arguments.set)
    }
    torch.set_num_threads(
        common.get("threads") or params.finetune.threads or len(os.sched_getaffinity(0))
    )
    rows = (
        [json.loads(line) for line in out.read_text().splitlines()] if out and out.exists() else []
    )
    if not any(row["variant"] == "pretrained" for row in rows):
        for name, path in {"pretrained": PRETRAINED, "grafted": GRAFTED}.items():
            keep(
                rows,
                {
                    "variant": name,
                    "seed": 0,
                    **measure(load(path), pretrained=name == "pretrained"),
                },
                out,
            )
    for seed in arguments.seeds:
        for variant in arguments.variants:
            name, _, extra = variant.partition("@")  # "defaults@distill=2.0,lr=0.02"
            changes = {**common, **VARIANTS[name], "seed": seed}
            changes |= {
                key: json.loads(value)
                for key, value in (item.split("=", 1) for item in extra.split(",") if item)
            }
            if not any(row["variant"] == variant and row["seed"] == seed for row in rows):
                keep(
                    rows,
                    {
                        "variant": variant,
                        "seed": seed,
                        **run(params, plan, tables, measure, changes),
                    },
                    out,
                )
    print_table(rows)
    return 0


def keep(rows: list[dict[str, Any]], row: dict[str, Any], out: Path | None) -> None:
    rows.append(row)
    print(json.dumps(row), flush=True)
    if out:
        with out.open("a") as stream:
            stream.write(json.dumps(row) + "\n")


def run(
    params: Params, plan: ClassPlan, tables: Tables, measure: "Measure", changes: dict[str, Any]
) -> dict[str, float]:
    """Train one variant with one seed, and measure it."""
    changes = dict(changes)
    fresh, unlabelled, recipe = (
        changes.pop("fresh", None),
        changes.pop("unlabelled", False),
        changes.pop("recipe", None),
    )
    finetune = type(params.finetune).model_validate(
        {**params.finetune.model_dump(exclude_unset=True), **changes}
    )
    params = params.model_copy(update={"finetune": finetune})
    weights = read_weights(GRAFTED)
    if fresh:
        source = read_weights(PRETRAINED)
        weights = graft(
            source,
            {name: {"new": "reference"} for name in plan.names},
            dropped="remove",
            seed=finetune.seed,
        ).weights
        weights = fresh_head(weights, finetune.seed) if fresh == "head" else weights
    boxes = None
    if unlabelled:
        tables = without(tables, set(plan.kept))
        boxes = missing_boxes(params, plan, tables)
    device = training_device(finetune, params.runtime.device)
    dataset, train = training_set(
        params, plan, tables, weights, pd.read_parquet(BOXES) if boxes is None else boxes
    )
    if recipe:
        return {
            **measure(train_reference(weights, dataset.items, finetune.epochs, finetune.seed)),
            "share": 1.0,
        }
    job = Job(
        weights,
        () if fresh else tuple(plan.kept),
        dataset,
        train,
        finetune,
        device,
        params.runtime,
        validation(tables, weights, SplitImages(tables), params.predict, device),
        shown=False,
    )
    outcome = fine_tune(job)
    return {**measure(load(outcome.weights)), "share": outcome.record.interpolation.alpha}


def fresh_head(weights: Weights, seed: int) -> Weights:
    """The usual way: every tensor of the score head (whatever it has besides class rows) starts
    fresh, as `num_classes=` builds it.
    """
    tensors = [axis.tensor for axis in head_spec_of(weights).axes]
    place = (
        os.path.commonpath([tensor.replace(".", "/") for tensor in tensors]).replace("/", ".") + "."
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        start = build(weights.builder, len(weights.columns), weights.builder_args).state_dict()
    mixed = {
        name: start[name] if name.startswith(place) else tensor
        for name, tensor in weights.state_dict.items()
    }
    return replace(weights, state_dict=mixed)


def dealt_out(tables: Tables, split: str, parts: dict[str, int | None]) -> Tables:
    """A split's images dealt out, by the SHA-256 of their names, to splits of so many images each
    (None: the rest; 0: none).
    """
    whole = tables.split(split)
    order = sorted(
        whole.images["file_name"], key=lambda name: hashlib.sha256(name.encode()).hexdigest()
    )
    dealt = [tables.split(name) for name in tables.splits if name not in parts]
    for name, size in parts.items():
        chosen, order = (order, []) if size is None else (order[:size], order[size:])
        images = whole.images[whole.images["file_name"].isin(chosen)]
        annotations = whole.annotations[whole.annotations["image_id"].isin(images["image_id"])]
        if chosen:
            dealt.append(
                Tables(
                    *(frame.assign(split=name) for frame in (images, annotations, whole.categories))
                )
            )
    frames = ("images", "annotations", "categories")
    return Tables(
        *(
            pd.concat([getattr(part, frame) for part in dealt], ignore_index=True)
            for frame in frames
        )
    )


def without(tables: Tables, names: set[str]) -> Tables:
    """The tables with kept classes' training boxes taken out."""
    ids = {key for key, name in tables.names("train").items() if name in names}
    rows = tables.annotations
    return replace(
        tables, annotations=rows[~((rows["split"] == "train") & rows["category_id"].isin(ids))]
    )


def missing_boxes(params: Params, plan: ClassPlan, tables: Tables) -> pd.DataFrame:
    """What the `unlabelled` stage finds in these tables."""
    found = predict(load(PRETRAINED), SplitImages(tables).openers("train"), batch_size=8)
    return find_unlabelled(
        truth_of(tables, "train", tuple(plan.kept)), rename_kept(found, plan), params.unlabelled
    ).boxes


class Measure:
    """Measures detectors on some splits: {"SPLIT": mAP, "SPLIT/CLASS": AP}; of a pretrained one,
    kept classes alone.
    """

    def __init__(
        self, plan: ClassPlan, tables: Tables, splits: Sequence[str] = ("test", "source")
    ) -> None:
        self.plan = plan
        wanted = {
            split: classes_of(plan, tables, split) for split in splits if split in tables.splits
        }
        self.truths = {
            split: truth_of(tables, split, classes) for split, classes in wanted.items() if classes
        }
        self.pictures = {split: SplitImages(tables).openers(split) for split in self.truths}

    def __call__(self, model: nn.Module, pretrained: bool = False) -> dict[str, float]:
        """The figures of one detector; the pretrained one's classes get the target's names."""
        figures = {}
        for split, truth in self.truths.items():
            table = predict(
                model,
                self.pictures[split],
                batch_size=8,
                columns=None if pretrained else self.plan.columns,
            )
            table = rename_kept(table, self.plan) if pretrained else table
            scores = score(truth, detections_of(table[table["name"].isin(truth.classes)], truth))
            figures[split] = round(float(scores.ap() or 0.0), 4)
            names = [name for name in truth.classes if name in self.plan.kept or not pretrained]
            figures |= {
                f"{split}/{name}": round(float(scores.ap(name) or 0.0), 4) for name in names
            }
        return figures


def print_table(rows: list[dict[str, Any]]) -> None:
    columns = sorted(
        {key for row in rows for key in row if "/" in key},
        key=lambda key: (not key.startswith("source"), key),
    )
    print("| variant | " + " | ".join(columns) + " | share |")
    print("|---" * (len(columns) + 2) + "|")
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        cells = [spread([row[key] for row in own if key in row]) for key in columns]
        print(
            f"| {variant} | "
            + " | ".join(cells)
            + " | "
            + spread([row["share"] for row in own if "share" in row])
            + " |"
        )


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return ""
    return f"{statistics.mean(values):.3f}" + (
        f" ±{statistics.stdev(values):.3f}" if len(values) > 1 else ""
    )


if __name__ == "__main__":
    sys.exit(main())
