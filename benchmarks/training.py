"""Speed of fine-tuning: torchvision's reference loop and ours, in one process, interleaved.

    python benchmarks/training.py [--rounds 5] [--steps 4] [--threads 1] [--cases NAME...]
    python benchmarks/training.py --loading

With --loading: our steps with images of 640 by 640 pixels that a loader process reads, decodes and
mirrors meanwhile, against the same steps on ready tensors.

The reference is written after pytorch/vision's references/detection/engine.py: the same detector,
pictures, batch size and mirroring, tensors in NCHW, SGD, everything (batch norm too) in training
mode. Ours is a whole training step of `topwork.training`. Time is the CPU time of the process where
--cpu-time is given (fair on a machine that others use too), else wall time. The ratio is of
medians; the spread is the quartiles of the rounds' ratios.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.models import get_model
from torchvision.transforms import v2

from topwork.detectors.builders import build
from topwork.inference.device import keep_freed_memory
from topwork.params.finetune import FinetuneParams
from topwork.training.batches import epoch_batches, loader
from topwork.training.dataset import DetectionDataset, Example, collate
from topwork.training.device import exactness, training_device
from topwork.training.features import FeatureBank
from topwork.training.loop import Job, _Run
from topwork.training.progress import RunProgress
from topwork.weights.format import Weights

CASES = {
    "ssdlite320, full": ("ssdlite320_mobilenet_v3_large", 1.0, 8),
    "ssdlite320, trunk frozen": ("ssdlite320_mobilenet_v3_large", 0.0, 8),
    "fasterrcnn mobilenet 320, full": ("fasterrcnn_mobilenet_v3_large_320_fpn", 1.0, 4),
    "fasterrcnn mobilenet 320, trunk frozen": ("fasterrcnn_mobilenet_v3_large_320_fpn", 0.0, 4),
}
IMAGES = 16
COLUMNS = ("__background__", "person", "helmet", "forklift")


def pictures(
    folder: Path, width: int = 320, height: int = 320, images: int = IMAGES
) -> list[Example]:
    """Smooth noise as JPEGs, with boxes."""
    random = np.random.default_rng(0)
    items = []
    for number in range(images):
        coarse = random.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(
            folder / f"{number}.jpg", quality=90
        )
        corners = random.uniform(0, [width * 0.6, height * 0.6], (4, 2))
        boxes = np.concatenate([corners, corners + random.uniform(20, height * 0.35, (4, 2))], 1)
        labels = random.integers(1, len(COLUMNS), 4)
        items.append(
            Example(
                "train",
                number,
                f"{number}.jpg",
                str(folder),
                height,
                width,
                boxes,
                labels,
                (None,) * 4,
            )
        )
    return items


def reference_transform() -> Callable[..., Any]:
    """Of the reference recipe."""
    transform: Callable[..., Any] = v2.Compose(
        [v2.RandomHorizontalFlip(0.5), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]
    )
    return transform


def decoded(item: Example) -> tuple[tv_tensors.Image, dict[str, Any]]:
    """A picture and its target, as the reference recipe reads them."""
    with Image.open(Path(item.root) / item.file_name) as picture:
        image = tv_tensors.Image(v2.functional.pil_to_tensor(picture.convert("RGB")))
    boxes = tv_tensors.BoundingBoxes(
        torch.tensor(item.boxes, dtype=torch.float32),
        format="XYXY",
        canvas_size=(item.height, item.width),
    )
    return image, {"boxes": boxes, "labels": torch.tensor(item.labels)}


def reference(
    builder: str, frozen: bool, items: list[Example], batch_size: int
) -> Callable[[int], None]:
    """A step of the reference recipe, decoding and mirroring included."""
    model = get_model(
        builder, weights=None, weights_backbone=None, num_classes=len(COLUMNS)
    ).train()
    if frozen:
        model.backbone.requires_grad_(False)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=1e-4, momentum=0.9, weight_decay=5e-4
    )
    transform = reference_transform()

    def step(number: int) -> None:
        start = number * batch_size % len(items)
        images, targets = zip(
            *(transform(*decoded(item)) for item in items[start : start + batch_size]), strict=True
        )
        losses = model(list(images), list(targets))
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return step


def our_run(
    builder: str,
    items: list[Example],
    params: FinetuneParams,
    cache_mib: int = 512,
    device: str = "cpu",
) -> _Run:
    """Our loop, ready to take steps."""
    torch.manual_seed(0)
    weights = Weights(build(builder, len(COLUMNS)).state_dict(), COLUMNS, builder)
    dataset = DetectionDataset(items, root=Path("/"), preset="hflip", cache_mib=cache_mib)
    kept = COLUMNS[1:2] if params.distill else ()
    on = training_device(params, device)
    run = _Run(Job(weights, kept, dataset, len(items), params, on, shown=False))
    run.state.model.train()
    run.protection.freeze(run.state.model, trunk=params.trunk_lr > 0)
    run.progress = RunProgress(0, shown=False)
    return run


def params_of(trunk_lr: float, batch_size: int, options: dict[str, Any]) -> FinetuneParams:
    return FinetuneParams(
        epochs=100,
        head_epochs=0,
        batch_size=batch_size,
        lr=1e-4,
        trunk_lr=trunk_lr,
        distill=0.0,
        warmup_steps=0,
        **options,
    )


def ours(
    builder: str, trunk_lr: float, items: list[Example], batch_size: int, options: dict[str, Any]
) -> Callable[[int], None]:
    """A step of our loop, from keys to weights."""
    run = our_run(builder, items, params_of(trunk_lr, batch_size, options))
    dataset = run.job.dataset
    batches = [
        batch
        for epoch in range(40)
        for batch in epoch_batches(epoch, train=len(items), batch_size=batch_size)
    ]
    bank = (
        None
        if trunk_lr
        else FeatureBank.where_it_pays(
            run.state.model, run.family, dataset, run.device, run.params
        )[0]
    )
    run.objective.bank = bank

    def step(number: int) -> None:
        keys = batches[number]
        images, targets = bank.targets(keys) if bank else collate([dataset[key] for key in keys])
        run._step(run.objective, keys, images, targets)

    return step


def loading(items: list[Example], rounds: int, steps: int, options: dict[str, Any]) -> None:
    """Print what a step costs with images that come from the loader, over one on ready tensors;
    decoded images aren't kept.
    """
    builder, trunk_lr, batch_size = CASES["ssdlite320, full"]
    run = our_run(builder, items, params_of(trunk_lr, batch_size, options), cache_mib=0)
    epochs = 1 + (rounds + 2) * steps * batch_size // len(items)
    batches = [
        batch
        for epoch in range(epochs)
        for batch in epoch_batches(epoch, train=len(items), batch_size=batch_size)
    ]
    loaded = loader(run.job.dataset, batches, workers=1)
    ready = [
        collate([run.job.dataset[key] for key in batch])
        for batch in batches[: len(items) // batch_size]
    ]
    ratios = []
    for round_number in range(-2, rounds):
        seconds = []
        for comes in (loaded, iter(ready * steps)):
            since = time.perf_counter()
            for step in range(steps):
                run._step(run.objective, batches[step], *next(comes))
            seconds.append(time.perf_counter() - since)
        if round_number >= 0:
            ratios.append(seconds[0] / seconds[1])
    low, high = statistics.quantiles(ratios, n=4)[::2]
    print(
        f"ssdlite320, full: loaded over ready {statistics.median(ratios):.3f} (quartiles {low:.3f}"
        f" to {high:.3f}; aim: at most 1.05)"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--loading", action="store_true")
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    keep_freed_memory()
    options = {"threads": arguments.threads} if arguments.threads else {}
    params = FinetuneParams(**options)
    if arguments.loading:
        with (
            tempfile.TemporaryDirectory() as folder,
            exactness(params, training_device(params, "cpu")),
        ):
            loading(pictures(Path(folder), 640, 640), arguments.rounds, arguments.steps, options)
        return 0
    print(
        "| case | reference images/s | ours images/s | ratio | quartiles |\n|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder, exactness(params, training_device(params, "cpu")):
        items = pictures(Path(folder))
        for case in arguments.cases:
            builder, trunk_lr, batch_size = CASES[case]
            loops = [
                reference(builder, trunk_lr == 0, items, batch_size),
                ours(builder, trunk_lr, items, batch_size, options),
            ]
            seconds: list[list[float]] = [[], []]
            for round_number in range(-2, arguments.rounds):
                for loop, times in zip(loops, seconds, strict=True):
                    since = clock()
                    for step in range(arguments.steps):
                        loop((round_number + 2) * arguments.steps + step)
                    if round_number >= 0:
                        times.append((clock() - since) / arguments.steps / batch_size)
            ratios = sorted(a / b for a, b in zip(*seconds, strict=True))
            low, high = (
                statistics.quantiles(ratios, n=4)[::2]
                if len(ratios) > 1
                else (ratios[0], ratios[0])
            )
            rates = [1 / statistics.median(times) for times in seconds]
            print(
                f"| {case} | {rates[0]:.1f} | {rates[1]:.1f} | {rates[1] / rates[0]:.2f} |"
                f" {low:.2f} to {high:.2f} |",
                flush=True,
            )
    print(
        f"\nthreads {torch.get_num_threads()}, {torch.backends.cpu.get_cpu_capability()}, torch"
        f" {torch.__version__}, ",
        end="",
    )
    print(
        f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
