"""Time to quality: how long torchvision's reference loop and ours train until the detector is good
enough.

    python benchmarks/quality.py PROJECT [--seeds 0 1 2] [--set KEY=VALUE...]

PROJECT is a folder with params.yaml in which `dvc repro surgery` has run. The reference is the
pretrained detector with a fresh score head, trained by the recipe in reference.py. Ours is
`finetune` with the project's params. After each epoch both are measured on the validation and
source images; that time isn't counted. Two figures a seed: seconds until each kept class reaches
95% of the pretrained AP on both, and until validation mAP reaches the reference's last.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from protection import Measure, fresh_head
from reference import train_reference
from topwork.classes import ClassPlan
from topwork.dataset.tables import Tables
from topwork.detectors.builders import load
from topwork.inference.device import keep_freed_memory
from topwork.params.document import Params, load_params
from topwork.project.fetch import PRETRAINED
from topwork.project.surgery import GRAFTED
from topwork.project.unlabelled import BOXES
from topwork.project.validate import FOLDER as TABLES
from topwork.surgery.graft import graft
from topwork.training.device import training_device
from topwork.training.loop import Job, fine_tune
from topwork.training.setup import training_set
from topwork.weights.format import Weights, read_weights

SPLITS = ("val", "source")
Figures = dict[str, float]


class Curve:
    """Figures over seconds of training; what measuring takes isn't counted."""

    def __init__(self, measure: Measure) -> None:
        self.measured = measure
        self.rows: list[tuple[float, Figures]] = []
        self.seconds, self.since = 0.0, time.perf_counter()

    def measure(self, model: nn.Module) -> Figures:
        """Stop the clock, measure, and let it run on."""
        self.seconds += time.perf_counter() - self.since
        figures = self.measured(model)
        self.rows.append((self.seconds, figures))
        self.since = time.perf_counter()
        return figures

    def until(self, good: Callable[[Figures], bool]) -> float:
        """Seconds of training at the first measurement that is good enough; infinite if none
        was.
        """
        return next((seconds for seconds, figures in self.rows if good(figures)), float("inf"))


def train_ours(
    params: Params, plan: ClassPlan, tables: Tables, weights: Weights, curve: Curve
) -> None:
    """The stage's own loop with the project's params; preparing the run is counted."""
    device = training_device(params.finetune, params.runtime.device)
    curve.since = time.perf_counter()
    dataset, train = training_set(params, plan, tables, weights, pd.read_parquet(BOXES))

    def validate(model: nn.Module) -> dict[str, float]:
        found = curve.measure(model)
        return {"map": found["val"], **found}

    fine_tune(
        Job(
            weights,
            tuple(plan.kept),
            dataset,
            train,
            params.finetune,
            device,
            params.runtime,
            validate,
            shown=False,
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("project", type=Path)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="finetune params of our run"
    )
    parser.add_argument("--curves", action="store_true", help="print every measurement, too")
    arguments = parser.parse_args()
    keep_freed_memory()
    os.chdir(arguments.project)
    params = load_params()
    plan = params.surgery.plan()
    tables = Tables.read(TABLES, segmentation=False)
    measure = Measure(plan, tables, SPLITS)
    source, grafted = read_weights(PRETRAINED), read_weights(GRAFTED)
    pretrained = measure(load(source), pretrained=True)
    kept = [name for name in pretrained if "/" in name]
    print(
        "pretrained:", json.dumps({name: round(pretrained[name], 3) for name in kept}), flush=True
    )
    changes = {
        key: json.loads(value) for key, value in (item.split("=", 1) for item in arguments.set)
    }
    print(
        "| seed | | seconds in all | until kept classes have 95% of their AP | until the"
        " reference's last mAP | last mAP | last kept |\n" + "|---" * 7 + "|"
    )
    ratios = []
    for seed in arguments.seeds:
        own = {
            "validate_every": 1,
            "interpolation": "off",
            "early_stop": None,
            "seed": seed,
            **changes,
        }
        finetune = type(params.finetune).model_validate(
            {**params.finetune.model_dump(exclude_unset=True), **own}
        )
        torch.set_num_threads(finetune.threads or len(os.sched_getaffinity(0)))
        fresh = graft(
            source, {name: {"new": "reference"} for name in plan.names}, dropped="remove", seed=seed
        ).weights
        curves = {"reference": Curve(measure), "ours": Curve(measure)}
        items = training_set(
            params.model_copy(update={"finetune": finetune.model_copy(update={"replay": 0.0})}),
            plan,
            tables,
            fresh,
            pd.read_parquet(BOXES),
        )[0].items
        curves["reference"].since = time.perf_counter()
        train_reference(
            fresh_head(fresh, seed), items, finetune.epochs, seed, curves["reference"].measure
        )
        train_ours(
            params.model_copy(update={"finetune": finetune}), plan, tables, grafted, curves["ours"]
        )
        aim = curves["reference"].rows[-1][1]["val"]
        learned = {
            name: curve.until(partial(reaches, {"val": aim})) for name, curve in curves.items()
        }
        for name, curve in curves.items():
            holds = curve.until(partial(reaches, {key: 0.95 * pretrained[key] for key in kept}))
            last = curve.rows[-1][1]
            shown = ", ".join(f"{key} {last[key]:.3f}" for key in kept)
            print(
                f"| {seed} | {name} | {curve.seconds:.0f} | {holds:.0f} | {learned[name]:.0f} |"
                f" {last['val']:.3f} | {shown} |",
                flush=True,
            )
            if arguments.curves:
                print(
                    json.dumps([[round(seconds, 1), found] for seconds, found in curve.rows]),
                    flush=True,
                )
        ratios.append(learned["ours"] / learned["reference"])
    middle = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"\nseconds to the reference's last mAP, ours over the reference: {middle}; ", end="")
    print(
        f"threads {torch.get_num_threads()}, {torch.backends.cpu.get_cpu_capability()}, torch"
        f" {torch.__version__}"
    )
    return 0


def reaches(wanted: Figures, found: Figures) -> bool:
    return all(found[name] >= value for name, value in wanted.items())


if __name__ == "__main__":
    sys.exit(main())
