"""Keeping a class exactly, mostly, or not at all: the same data and recipe in every mode.

    python benchmarks/keeping.py --data DIR --weights FILE --builder builder.py:build
        [--device cuda] [--rows 675/naked 40/branch:auto latency] [--seeds 0 1 2] [--jobs 7]

DIR holds `hardhat/` and `coco128/` (docs/results.md says where they come from); the weights are
those of docs/real_case.yaml. A training row is IMAGES/MODE: `naked` (a graft, trained without
protection), `weights` (docs/real_case.yaml), `branch:CUT` (a second branch; measured again with
each share of --mixes, from the same training) or `branch:CUT+remove` (a second branch whose head
has no columns of dropped classes). `latency` compares the detectors on the CPU, in
rounds that take turns. Every row is printed as JSON when it's measured, and a table at the end.
Needs neither DVC nor Prefect; AP is pycocotools'.
"""

import argparse
import contextlib
import hashlib
import io
import json
import multiprocessing
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from topwork.classes import ClassPlan, category_set, label_of
from topwork.detectors.branches import Branched
from topwork.detectors.builders import load
from topwork.params.finetune import FinetuneParams
from topwork.params.runtime import RuntimeParams
from topwork.surgery.branch import branched
from topwork.surgery.graft import graft
from topwork.training.dataset import DetectionDataset, Example
from topwork.training.device import training_device
from topwork.training.loop import Job, fine_tune
from topwork.weights.format import Weights

RECIPE: dict[str, Any] = {"augmentation": "multiscale", "lr": 0.001, "batch_size": 8}
NAKED: dict[str, Any] = {
    **RECIPE,
    "head_epochs": 0,
    "trunk_lr": 1.0,
    "distill": 0.0,
    "interpolation": "off",
    "teacher_boxes": False,
    "replay": 0.0,
}
PROTECTED: dict[str, Any] = {**RECIPE, "distill": 2.0, "interpolation": 0.5, "replay": 0.0}
EPOCHS = {675: 4}
EPOCHS_OF_FEW = 30
PLAN = {"person": "keep", "hard_hat": "new", "no_hard_hat": "new"}
SETS = {
    "train": ("hardhat/train.3class.coco.json", "hardhat/train"),
    "test": ("hardhat/valid.3class.coco.json", "hardhat/valid"),
    "source": ("coco128/instances.json", "coco128/images"),
}
DEFAULT_ROWS = [
    f"{images}/{mode}"
    for images in (675, 40)
    for mode in ("naked", "branch:auto", "branch:backbone.features.0.7", "weights")
] + ["latency"]
ROUNDS = 21


@dataclass(frozen=True)
class Split:
    """One set, decoded: annotations as COCO's JSON has them, pixels uint8[3, H, W] by image id."""

    coco: dict[str, Any]
    pixels: dict[int, Tensor]
    folder: str

    def names(self) -> dict[int, str]:
        """Category id -> name."""
        return {item["id"]: item["name"] for item in self.coco["categories"]}


@dataclass(frozen=True)
class Setting:
    """What every row has in common; a forked process has it already."""

    arguments: argparse.Namespace
    pretrained: Weights
    splits: Mapping[str, Split]


SETTING: list[Setting] = []
ALONE: dict[str, dict[int, dict[str, Tensor]]] = {}
"""The pretrained detector's detections by set; each process runs it once."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="a .pth state_dict of COCO-91")
    parser.add_argument("--builder", required=True, help="path/to/file.py:function")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", nargs="+", default=DEFAULT_ROWS, metavar="ROW")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--mixes", nargs="*", type=float, default=[0.05, 0.15])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--workers", type=int, default=1, help="loader processes a training")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads a training")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--limit", type=int, default=600, help="seconds a row may take")
    parser.add_argument("--epochs", type=int, help="in place of the row's own (for a try)")
    parser.add_argument("--test-images", type=int, help="of each held-out set (for a try)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the latency row")
    parser.add_argument(
        "--latency",
        nargs="+",
        default=["auto", "auto+remove", "backbone.features.0.7", "none"],
        help="branches of that row",
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="of that row")
    parser.add_argument("--out", type=Path, help="a file to which rows are added, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started = time.perf_counter()
    pretrained = Weights(
        torch.load(arguments.weights, map_location="cpu", weights_only=True),
        category_set("coco-91"),
        arguments.builder,
    )
    SETTING.append(Setting(arguments, pretrained, read_sets(arguments)))
    print(f"images decoded in {time.perf_counter() - started:.0f} s", flush=True)
    rows: list[dict[str, Any]] = []
    trainings = [(name, seed) for name in arguments.rows if "/" in name for seed in arguments.seeds]
    if trainings:
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
            for done in as_completed([pool.submit(train, *item) for item in trainings]):
                rows += [keep(row, arguments.out) for row in done.result()]
    if "latency" in arguments.rows:
        rows += [keep(row, arguments.out) for row in latency()]
    print(f"all in {time.perf_counter() - started:.0f} s; {versions(arguments)}")
    print_table([row for row in rows if "seed" in row and "error" not in row])
    return 0


def keep(row: dict[str, Any], out: Path | None) -> dict[str, Any]:
    text = json.dumps(row)
    print(text, flush=True)
    if out:
        with out.open("a") as stream:
            stream.write(text + "\n")
    return row


def versions(arguments: argparse.Namespace) -> str:
    gpu = ""
    if arguments.device != "cpu" and torch.cuda.is_available():
        gpu = f", {torch.cuda.get_device_name()}"
    return f"torch {torch.__version__}, torchvision {torchvision.__version__}{gpu}"


def read_sets(arguments: argparse.Namespace) -> dict[str, Split]:
    found = {}
    with ThreadPoolExecutor() as pool:
        for name, (annotations, folder) in SETS.items():
            coco = json.loads((arguments.data / annotations).read_text())
            if name != "train" and arguments.test_images:
                coco["images"] = coco["images"][: arguments.test_images]
            paths = [arguments.data / folder / item["file_name"] for item in coco["images"]]
            pixels = dict(
                zip([item["id"] for item in coco["images"]], pool.map(decode, paths), strict=True)
            )
            ids = set(pixels)
            coco["annotations"] = [item for item in coco["annotations"] if item["image_id"] in ids]
            found[name] = Split(coco, pixels, str(arguments.data / folder))
    return found


def decode(path: Path) -> Tensor:
    pixels = np.array(Image.open(path).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def train(name: str, seed: int) -> list[dict[str, Any]]:
    """Train one row with one seed, and measure it."""
    (setting,) = SETTING
    arguments = setting.arguments
    images, mode = name.split("/", 1)
    row: dict[str, Any] = {"images": int(images), "mode": mode, "seed": seed}
    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(arguments.limit)
    try:
        torch.set_num_threads(arguments.threads)
        return list(trained(setting, row))
    except Exception as error:  # noqa: BLE001 (one row must not take the others with it)
        return [{**row, "error": f"{type(error).__name__}: {error}"}]
    finally:
        signal.alarm(0)


def out_of_time(*_: Any) -> None:
    raise TimeoutError("the row took longer than --limit")


def trained(setting: Setting, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    arguments, mode = setting.arguments, str(row["mode"])
    # a branch needs none of the other classes' columns, unless kept ones are mixed
    place, _, dropped = mode.removeprefix("branch:").partition("+")
    plan = ClassPlan.parse(PLAN, dropped=dropped or "absorb")
    start = graft(setting.pretrained, plan).weights
    changes = PROTECTED if mode == "weights" else NAKED
    if mode.startswith("branch:"):
        start = branched(setting.pretrained, start, plan, cut=place)
    params = FinetuneParams.model_validate(
        {
            **changes,
            "epochs": arguments.epochs or EPOCHS.get(row["images"], EPOCHS_OF_FEW),
            "seed": row["seed"],
            "precision": arguments.precision,
            "threads": arguments.threads,
        }
    )
    device = training_device(params, arguments.device)
    dataset = training_images(setting.splits["train"], row["images"], params)
    runtime = RuntimeParams(workers=arguments.workers)
    began = time.perf_counter()
    job = Job(start, ("person",), dataset, len(dataset), params, device, runtime, shown=False)
    result = fine_tune(job).weights
    row["train_s"] = round(time.perf_counter() - began, 1)
    row["parameters"] = sum(tensor.numel() for tensor in result.state_dict.values())
    yield {**row, **measured(setting, result, device.device)}
    if result.branches is not None:
        for share in arguments.mixes:
            mixed = replace(result, branches=replace(result.branches, mix=share))
            yield {
                **row,
                "mode": f"{mode} mix {share:g}",
                **measured(setting, mixed, device.device),
            }


def training_images(split: Split, count: int, params: FinetuneParams) -> DetectionDataset:
    """The first images by SHA-256 of their names, as in benchmarks/protection.py."""
    labels, names = label_of(("__background__", *PLAN)), split.names()
    by_image: dict[int, list[dict[str, Any]]] = {}
    for item in split.coco["annotations"]:
        wanted = names[item["category_id"]] in labels and not item["iscrowd"]
        if wanted and min(item["bbox"][2:]) > 0:
            by_image.setdefault(item["image_id"], []).append(item)
    order = sorted(
        split.coco["images"],
        key=lambda item: hashlib.sha256(item["file_name"].encode()).hexdigest(),
    )[:count]
    chosen = sorted(order, key=lambda item: int(item["id"]))
    examples = []
    for image in chosen:
        own = by_image.get(image["id"], [])
        boxes = np.array([item["bbox"] for item in own], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        examples.append(
            Example(
                "train",
                image["id"],
                image["file_name"],
                split.folder,
                image["height"],
                image["width"],
                boxes,
                np.array([labels[names[item["category_id"]]] for item in own], dtype=np.int64),
                (None,) * len(own),
            )
        )
    dataset = DetectionDataset(
        examples, preset=params.augmentation, seed=params.seed, cache_mib=1 << 16
    )
    dataset._pixels = {place: split.pixels[item.image_id] for place, item in enumerate(examples)}
    return dataset


def measured(setting: Setting, weights: Weights, device: torch.device) -> dict[str, Any]:
    """AP by class and set; of a branched detector whether kept detections are the stock's."""
    model = load(weights)
    figures: dict[str, Any] = {}
    equal = images = 0
    for name in ("test", "source"):
        split = setting.splits[name]
        found = detections(model, split, device)
        wanted = tuple(PLAN) if name == "test" else ("person",)
        for label, ap in average_precision(split, found, wanted).items():
            figures[f"{name}/{label}"] = None if ap is None else round(ap, 4)
        if isinstance(model, Branched) and not weights.branches.mix:  # type: ignore[union-attr]
            if name not in ALONE:
                ALONE[name] = detections(load(setting.pretrained), split, device)
            alone = ALONE[name]
            person = label_of(setting.pretrained.columns)["person"]
            for image_id, theirs in alone.items():
                images += 1
                equal += same(found[image_id], 1, theirs, person)
    if images:
        figures["equal"] = f"{equal} of {images}"
    return figures


def same(ours: dict[str, Tensor], label: int, theirs: dict[str, Tensor], column: int) -> bool:
    one, other = ours["labels"] == label, theirs["labels"] == column
    return all(torch.equal(ours[key][one], theirs[key][other]) for key in ("boxes", "scores"))


def detections(
    model: nn.Module, split: Split, device: torch.device, batch: int = 8
) -> dict[int, dict[str, Tensor]]:
    """Image id -> detections, as `topwork.inference` computes them."""
    model.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    ids, found = list(split.pixels), {}
    exact = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    with torch.inference_mode(), exact:
        for start in range(0, len(ids), batch):
            own = ids[start : start + batch]
            pictures = [split.pixels[key].to(device).float().div_(255) for key in own]
            for key, item in zip(own, model(pictures), strict=True):
                found[key] = {name: value.cpu() for name, value in item.items()}
    return found


def average_precision(
    split: Split, found: Mapping[int, Mapping[str, Tensor]], wanted: Sequence[str]
) -> dict[str, float | None]:
    """COCO's AP by class, by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    ids = {name: key for key, name in split.names().items() if name in wanted}
    labels = label_of(("__background__", *PLAN))
    results = []
    for image_id, item in found.items():
        for name, category in ids.items():
            rows = item["labels"] == labels[name]
            boxes = item["boxes"][rows].clone()
            boxes[:, 2:] -= boxes[:, :2]
            results += [
                {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
                for box, score in zip(boxes.tolist(), item["scores"][rows].tolist(), strict=True)
            ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": split.coco["images"],
            "categories": [{"id": key, "name": name} for name, key in ids.items()],
            "annotations": [
                {
                    "id": item["id"],
                    "image_id": item["image_id"],
                    "category_id": item["category_id"],
                    "bbox": item["bbox"],
                    "area": item["area"],
                    "iscrowd": item["iscrowd"],
                }
                for item in split.coco["annotations"]
                if item["category_id"] in ids.values()
            ],
        }
        truth.createIndex()
        if not results:
            return dict.fromkeys(wanted, 0.0)
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]
    by_category = {}
    for place, category in enumerate(evaluation.params.catIds):
        values = precision[:, :, place, 0, -1]
        by_category[category] = float(values[values > -1].mean()) if (values > -1).any() else None
    return {name: by_category.get(category) for name, category in ids.items()}


def latency() -> Iterator[dict[str, Any]]:
    """Processor time of a forward pass, of detectors that take turns, over the pretrained one's; so
    that other jobs of the machine count little.
    """
    (setting,) = SETTING
    plan = ClassPlan.parse(PLAN, dropped="absorb")
    grafted = graft(setting.pretrained, plan).weights
    models = {"pretrained": load(setting.pretrained), "naked": load(grafted)}
    for mode in setting.arguments.latency:
        cut, _, dropped = mode.partition("+")
        own = ClassPlan.parse(PLAN, dropped=dropped or "absorb")
        scion = graft(setting.pretrained, own).weights
        models[f"branch:{mode}"] = load(branched(setting.pretrained, scion, own, cut=cut))
    for model in models.values():
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pictures = [
        pixels.float().div_(255) for pixels in list(setting.splits["test"].pixels.values())[:8]
    ]
    for batch in setting.arguments.batches:
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for turn in range(setting.arguments.rounds + 2):
            for name, model in models.items():
                began = time.process_time()
                with torch.inference_mode():
                    model(pictures[:batch])
                if turn >= 2:  # the first warm up
                    seconds[name].append(time.process_time() - began)
        for name, own in seconds.items():
            ratios = np.array(own) / np.array(seconds["pretrained"])
            low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
            yield {
                "latency": name,
                "batch": batch,
                "threads": torch.get_num_threads(),
                "cpu_ms": round(1000 * statistics.median(own), 1),
                "ratio": round(float(middle), 3),
                "quartiles": [round(float(low), 3), round(float(high), 3)],
            }


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    columns = ("test/hard_hat", "test/no_hard_hat", "test/person", "source/person")
    print("| images | mode | seeds | " + " | ".join(columns) + " | equal | parameters | train s |")
    print("|---" * (len(columns) + 6) + "|")
    for key in sorted({(-row["images"], row["mode"]) for row in rows}):
        own = [row for row in rows if (-row["images"], row["mode"]) == key]
        cells = [
            spread([row[name] for row in own if row.get(name) is not None]) for name in columns
        ]
        equal = ", ".join(sorted({row["equal"] for row in own if "equal" in row}))
        seconds = statistics.median(row["train_s"] for row in own)
        print(
            f"| {-key[0]} | {key[1]} | {len(own)} | "
            + " | ".join(cells)
            + f" | {equal} | {own[0]['parameters']:,} | {seconds:.0f} |"
        )


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return ""
    deviation = f" ±{statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


if __name__ == "__main__":
    sys.exit(main())
