"""Keeping a class exactly, mostly, or not at all: the same data and recipe in every mode.

    python benchmarks/keeping.py --data DIR --weights FILE --builder builder.py:build
        [--device cuda] [--rows 675/unprotected 40/branch:auto latency] [--seeds 0 1 2] [--jobs 7]

DIR holds `hardhat/` and `coco128/` (docs/results.md says where they come from); the weights are
those of docs/real_case.yaml. A training row is IMAGES/MODE: `unprotected` (a graft, trained without
protection), `weights` (docs/real_case.yaml) or `branch:CUT` (a second branch; measured again with
each share of --mixes, from the same training). To a branch may be added `+remove` (its head has no
columns of dropped classes), and what becomes of persons that the pretrained detector finds and
nobody annotated: `+ignore` leaves them out of the loss, `+label` makes them targets. `--choose N`
measures each row on N training pictures besides which it wasn't trained on, by which one may
choose between rows without looking at the test set. `latency` compares the detectors on the CPU, in
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
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

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
UNPROTECTED: dict[str, Any] = {
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
    for mode in ("unprotected", "branch:auto", "branch:backbone.features.0.7", "weights")
] + ["latency"]
ROUNDS = 21
UNLABELLED_SCORE, UNLABELLED_IOU = 0.6, 0.5
IGNORED = -1
"""Label of a box whose anchors are left out of the loss."""


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
    parser.add_argument(
        "--choose", type=int, default=0, metavar="N", help="other training pictures"
    )
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
    place, *options = mode.removeprefix("branch:").split("+")
    # a branch needs none of the other classes' columns, unless kept ones are mixed
    plan = ClassPlan.parse(PLAN, dropped="remove" if "remove" in options else "absorb")
    start = graft(setting.pretrained, plan).weights
    changes = PROTECTED if mode == "weights" else UNPROTECTED
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
    train = setting.splits["train"]
    chosen, others = by_name(train)[: row["images"]], by_name(train)[row["images"] :]
    held = part_of(train, others[: arguments.choose])
    unlabelled = {
        "ignore": (IGNORED, unlabelled_persons),
        "label": (label_of(("__background__", *PLAN))["person"], unlabelled_persons),
    }
    extra = [
        (label, find(setting, part_of(train, chosen), device.device))
        for option, (label, find) in unlabelled.items()
        if option in options
    ]
    dataset = training_images(part_of(train, chosen), params, *extra)
    row["unlabelled"] = sum(len(found) for _, by_image in extra for found in by_image.values())
    runtime = RuntimeParams(workers=arguments.workers)
    began = time.perf_counter()
    job = Job(start, ("person",), dataset, len(dataset), params, device, runtime, shown=False)
    with left_out_of_the_loss():
        result = fine_tune(job).weights
    row["train_s"] = round(time.perf_counter() - began, 1)
    row["parameters"] = sum(tensor.numel() for tensor in result.state_dict.values())
    if held.pixels:
        found = average_precision(held, detections(load(result), held, device.device), tuple(PLAN))
        row |= {f"choice/{name}": ap and round(ap, 4) for name, ap in found.items()}
    yield {**row, **measured(setting, result, device.device)}
    if result.branches is not None:
        for share in arguments.mixes:
            mixed = replace(result, branches=replace(result.branches, mix=share))
            yield {
                **row,
                "mode": f"{mode} mix {share:g}",
                **measured(setting, mixed, device.device),
            }


def by_name(split: Split) -> list[dict[str, Any]]:
    """Its images by SHA-256 of their names, as in benchmarks/protection.py."""
    return sorted(
        split.coco["images"],
        key=lambda item: hashlib.sha256(item["file_name"].encode()).hexdigest(),
    )


def part_of(split: Split, images: Sequence[dict[str, Any]]) -> Split:
    """Some of its images."""
    ids = {item["id"] for item in images}
    annotations = [item for item in split.coco["annotations"] if item["image_id"] in ids]
    ordered = sorted(images, key=lambda item: int(item["id"]))
    return Split(
        {**split.coco, "images": ordered, "annotations": annotations},
        {item["id"]: split.pixels[item["id"]] for item in ordered},
        split.folder,
    )


def training_images(
    split: Split, params: FinetuneParams, *extra: tuple[int, Mapping[int, Tensor]]
) -> DetectionDataset:
    """What is trained on; `extra` are targets of a label by image, besides the annotated ones."""
    labels, names = label_of(("__background__", *PLAN)), split.names()
    by_image: dict[int, list[dict[str, Any]]] = {}
    for item in split.coco["annotations"]:
        wanted = names[item["category_id"]] in labels and not item["iscrowd"]
        if wanted and min(item["bbox"][2:]) > 0:
            by_image.setdefault(item["image_id"], []).append(item)
    examples = []
    for image in split.coco["images"]:
        own = by_image.get(image["id"], [])
        boxes = np.array([item["bbox"] for item in own], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        targets = [labels[names[item["category_id"]]] for item in own]
        for label, found in extra:
            more = found[image["id"]].double().numpy()
            boxes, targets = np.concatenate([boxes, more]), targets + [label] * len(more)
        examples.append(
            Example(
                "train",
                image["id"],
                image["file_name"],
                split.folder,
                image["height"],
                image["width"],
                boxes,
                np.array(targets, dtype=np.int64),
                (None,) * len(targets),
            )
        )
    dataset = DetectionDataset(
        examples, preset=params.augmentation, seed=params.seed, cache_mib=1 << 16
    )
    dataset._pixels = {place: split.pixels[item.image_id] for place, item in enumerate(examples)}
    return dataset


def unlabelled_persons(setting: Setting, split: Split, device: torch.device) -> dict[int, Tensor]:
    """Image id -> boxes float[M, 4] of persons that the pretrained detector is sure of and that
    overlap no annotated one.
    """
    person = label_of(setting.pretrained.columns)["person"]
    (category,) = [key for key, name in split.names().items() if name == "person"]
    known: dict[int, list[list[float]]] = {key: [] for key in split.pixels}
    for item in split.coco["annotations"]:
        if item["category_id"] == category:
            x, y, width, height = item["bbox"]
            known[item["image_id"]].append([x, y, x + width, y + height])
    result = {}
    for key, found in detections(load(setting.pretrained), split, device).items():
        sure = (found["labels"] == person) & (found["scores"] >= UNLABELLED_SCORE)
        boxes, own = found["boxes"][sure], torch.tensor(known[key]).reshape(-1, 4)
        overlap = box_iou(boxes, own).amax(1) if len(own) else torch.zeros(len(boxes))
        result[key] = boxes[overlap < UNLABELLED_IOU]
    return result


@contextlib.contextmanager
def left_out_of_the_loss() -> Iterator[None]:
    """Within the block, SSD's loss takes no account of anchors that belong to IGNORED boxes: they
    become background that is sure of itself, so that hard negatives are found elsewhere.
    """
    whole = SSD.compute_loss

    def compute_loss(
        self: SSD,
        targets: list[dict[str, Tensor]],
        outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched: list[Tensor],
    ) -> dict[str, Tensor]:
        logits = outputs["cls_logits"]
        sure = torch.full_like(logits[0, 0], -50.0)
        sure[0] = 50.0
        out = []
        for index, (target, places) in enumerate(zip(targets, matched, strict=True)):
            padded = torch.cat([target["labels"], target["labels"].new_zeros(1)])  # [-1]: none
            out.append(padded[places] == IGNORED)
            matched[index] = places.masked_fill(out[index], -1)
        ignored = torch.stack(out)[..., None]
        return whole(
            self,
            targets,
            {**outputs, "cls_logits": torch.where(ignored, sure, logits)},
            anchors,
            matched,
        )

    SSD.compute_loss = compute_loss  # type: ignore[method-assign]
    try:
        yield
    finally:
        SSD.compute_loss = whole  # type: ignore[method-assign]


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
    models = {"pretrained": load(setting.pretrained), "unprotected": load(grafted)}
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
