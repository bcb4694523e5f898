"""Whole steps and predictions on one device: torchvision's reference loop and ours, row by row.

    python benchmarks/gpu.py [--device cuda] [--rows PATTERN...] [--limit 45] [--out FOLDER]

Each row is a process of its own with a time limit, and is printed when it is measured. Rows come in
order of worth. Pictures are JPEGs of 800 by 608 pixels, read, decoded and mirrored again in every
epoch by loader processes. Rates are medians of blocks of steps, with their quartiles; `busy` is the
time of the device's kernels (torch's profiler) over the time of the same steps without the
profiler; `first` are the seconds from the start of the loop to the end of its first step. With
--out, each row's profile is written there.

The reference loop is written after pytorch/vision's references/detection/engine.py: SGD, batch norm
in training mode, NCHW, a gradient scaler where it runs in float16.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.models import get_model

from topwork.detectors.builders import build
from topwork.inference.device import keep_freed_memory, usable_cores
from topwork.inference.prediction import predict
from topwork.params.finetune import FinetuneParams
from topwork.training.batches import epoch_batches, loader
from topwork.training.dataset import Example
from topwork.training.device import exactness, training_device
from training import COLUMNS, decoded, our_run, pictures, reference_transform

SIZE = (800, 608)
DETECTORS = {  # batch size, steps a block
    "fasterrcnn_resnet50_fpn_v2": (8, 5),
    "retinanet_resnet50_fpn_v2": (8, 5),
    "ssdlite320_mobilenet_v3_large": (32, 5),
}
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, not deterministic": {"deterministic": False},
    "ours, compiled": {"deterministic": False, "compile": True},
    "ours, distilling": {"distill": 1.0},
    "ours, compiled, deterministic": {"compile": True},
}
PREDICTIONS = ("float32", "tf32", "bfloat16")
BLOCKS = 5
Step = Callable[[], None]


def rows() -> list[str]:
    """`DETECTOR: WHAT`, in order of worth."""
    trained = ["reference, AMP", "ours", *list(OURS)[1:], "reference, float32"]
    return [
        *(f"{detector}: {what}" for what in trained for detector in DETECTORS),
        *(f"{detector}: predict, {how}" for how in PREDICTIONS for detector in DETECTORS),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--rows", nargs="*", default=[], help="those that end in one of these, * for anything"
    )
    parser.add_argument("--limit", type=float, default=45, help="seconds a row")
    parser.add_argument("--out", type=Path, help="folder for profiles and rows.jsonl")
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--images", type=int, default=64, help="different pictures")
    parser.add_argument("--batch-size", type=int, help="in place of each detector's own")
    parser.add_argument("--workers", type=int, default=min(12, usable_cores()))
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(measured(arguments)))
        return 0
    device = (
        torch.cuda.get_device_name() if arguments.device.startswith("cuda") else arguments.device
    )
    print(
        f"{device}, torch {torch.__version__}, {usable_cores()} cores, {arguments.workers} loader"
        " processes\n\n| row | images/s | quartiles | busy | peak MiB | first s |\n"
        "|---|---|---|---|---|---|",
        flush=True,
    )
    for row in rows():
        if arguments.rows and not any(fnmatch(row, f"*{text}") for text in arguments.rows):
            continue
        found = in_process(row, arguments.limit)
        if "failed" in found:
            print(f"| {row} | {found['failed']} | | | | |", flush=True)
        else:
            print(
                f"| {row} | {found['rate']:.1f} | {found['low']:.1f} to {found['high']:.1f} |"
                f" {found['busy']} | {found['peak_mib']} | {found['first']:.1f} |",
                flush=True,
            )
        if arguments.out:
            with (arguments.out / "rows.jsonl").open("a") as file:
                file.write(json.dumps({"row": row, "device": device, **found}) + "\n")
    return 0


def in_process(row: str, limit: float) -> dict[str, Any]:
    """What a child process measures, or why it didn't."""
    try:
        child = subprocess.run(
            [sys.executable, *sys.argv, "--row", row],
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not measured: more than {limit:.0f} s"}
    if child.returncode:
        return {"failed": f"not measured: {(child.stderr.strip() or 'killed').splitlines()[-1]}"}
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    detector, what = arguments.row.split(": ", 1)
    batch_size, steps = DETECTORS[detector]
    batch_size = arguments.batch_size or batch_size
    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        items = pictures(Path(folder), *SIZE, images=arguments.images)
        if device.type == "cpu" and not what.startswith("reference"):
            keep_freed_memory()  # as our stages do
        if what.startswith("predict"):
            return predictions(detector, what.split(", ")[1], items, batch_size, device)
        begun = time.perf_counter()
        if what.startswith("reference"):
            options = arguments.workers, "AMP" in what
            step = reference(detector, items, batch_size, device, *options)
            return timed(step, begun, batch_size, steps, arguments, device)
        params = FinetuneParams(
            epochs=1000,
            head_epochs=0,
            batch_size=batch_size,
            lr=1e-4,
            trunk_lr=1.0,
            warmup_steps=0,
            **{"distill": 0.0, **OURS[what]},
        )
        with exactness(params, training_device(params, str(device))):
            step = ours(detector, items, params, device, arguments.workers)
            return timed(step, begun, batch_size, steps, arguments, device)


def reference(
    detector: str,
    items: list[Example],
    batch_size: int,
    device: torch.device,
    workers: int,
    amp: bool,
) -> Step:
    """A step of the reference recipe."""
    torch.manual_seed(0)
    options = {"weights": None, "weights_backbone": None, "num_classes": len(COLUMNS)}
    model = get_model(detector, **options).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=amp)
    batches = DataLoader(
        _Endless(items),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=lambda samples: tuple(zip(*samples, strict=True)),
    )
    stream = iter(batches)

    def step() -> None:
        images, targets = next(stream)
        images = [image.to(device) for image in images]
        targets = [{key: value.to(device) for key, value in one.items()} for one in targets]
        with torch.autocast(device.type, enabled=amp):
            losses = model(images, targets)
            total = sum(losses.values())
        if not math.isfinite(total.item()):
            raise SystemExit(f"reference: the loss is {total.item()}")
        optimizer.zero_grad()
        scaler.scale(total).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


class _Endless(Dataset[Any]):
    """The pictures, again and again, as the reference recipe loads them."""

    def __init__(self, items: list[Example]) -> None:
        self.items, self.transform = items, reference_transform()

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, index: int) -> Any:
        return self.transform(*decoded(self.items[index % len(self.items)]))


def ours(
    detector: str, items: list[Example], params: FinetuneParams, device: torch.device, workers: int
) -> Step:
    """A step of our loop."""
    run = our_run(detector, items, params, cache_mib=0, device=str(device))
    keys = [
        batch
        for epoch in range(params.epochs)
        for batch in epoch_batches(epoch, train=len(items), batch_size=params.batch_size)
    ]
    stream = zip(
        keys,
        loader(run.job.dataset, keys, workers=workers, pin_memory=run.device.on_gpu),
        strict=True,
    )

    def step() -> None:
        batch, (images, targets) = next(stream)
        run._step(run.objective, batch, images, targets)

    return step


def timed(
    step: Step,
    begun: float,
    batch_size: int,
    steps: int,
    arguments: argparse.Namespace,
    device: torch.device,
) -> dict[str, Any]:
    """Rates, peak memory, and how much of the time the device computes."""
    step()
    wait(device)
    first = time.perf_counter() - begun
    for _ in range(2 * steps):
        step()
    seconds = []
    for _ in range(arguments.blocks):
        wait(device)
        since = time.perf_counter()
        for _ in range(steps):
            step()
        wait(device)
        seconds.append((time.perf_counter() - since) / steps)
    peak = torch.cuda.max_memory_allocated() >> 20 if device.type == "cuda" else 0
    busy = "not measured"
    if device.type == "cuda":
        kernels = profile(step, 3, arguments) / statistics.median(seconds)
        busy = f"{kernels:.0%}"
    return {**rates(seconds, batch_size), "busy": busy, "peak_mib": peak, "first": first}


def rates(seconds: list[float], batch_size: int) -> dict[str, float]:
    """Images a second: median and quartiles."""
    found = sorted(batch_size / each for each in seconds)
    low, high = statistics.quantiles(found, n=4)[::2] if len(found) > 1 else (found[0], found[0])
    return {"rate": statistics.median(found), "low": low, "high": high}


def profile(step: Step, steps: int, arguments: argparse.Namespace) -> float:
    """Seconds of kernels a step; the tables are written where --out is given."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as found:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    kernels = [event for event in found.events() if event.device_type.name == "CUDA"]
    if arguments.out:
        name = "".join(c if c.isalnum() else "-" for c in arguments.row)
        averages = found.key_averages()
        tables = [
            averages.table(sort_by=key, row_limit=25, max_name_column_width=70)
            for key in ("self_cuda_time_total", "self_cpu_time_total")
        ]
        (arguments.out / f"{name}.txt").write_text("\n".join(tables))
    return sum(event.self_device_time_total for event in kernels) / 1e6 / steps


def predictions(
    detector: str, how: str, items: list[Example], batch_size: int, device: torch.device
) -> dict[str, Any]:
    """Our predictions from files, and the bare forward pass on the same pictures, ready on the
    device, at the same precision; their ratio stands in `busy`.
    """
    torch.manual_seed(0)
    model = build(detector, len(COLUMNS)).to(device).eval()
    openers = [(item.image_id, opener(item)) for item in items]
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "device": device,
        "columns": COLUMNS,
        "precision": how,
    }
    ready = [
        torch.as_tensor(decoded(item)[0]).to(device).float().div_(255).as_subclass(torch.Tensor)
        for item in items
    ]
    batches = [ready[start : start + batch_size] for start in range(0, len(ready), batch_size)]
    seconds: tuple[list[float], list[float]] = ([], [])
    begun = time.perf_counter()
    first = 0.0
    for round_number in range(-1, BLOCKS):
        for bare, found in enumerate(seconds):
            wait(device)
            since = time.perf_counter()
            if bare:
                forward(model, batches, how, device)
            else:
                predict(model, openers, **options)
            wait(device)
            if round_number >= 0:
                found.append((time.perf_counter() - since) / len(items))
            else:
                first = first or time.perf_counter() - begun
    ratios = sorted(theirs / own for own, theirs in zip(*seconds, strict=True))
    peak = torch.cuda.max_memory_allocated() >> 20 if device.type == "cuda" else 0
    return {
        **rates(seconds[0], 1),
        "busy": f"{statistics.median(ratios):.2f} of the bare forward's"
        f" {1 / statistics.median(seconds[1]):.1f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        "peak_mib": peak,
        "first": first,
    }


def forward(
    model: torch.nn.Module, batches: list[list[torch.Tensor]], how: str, device: torch.device
) -> None:
    """The forward pass alone, as one would write it."""
    tf32 = how == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    flags = {"benchmark": False, "deterministic": False, "allow_tf32": tf32}
    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, **flags),
        torch.autocast(device.type, torch.bfloat16, enabled=how == "bfloat16"),
    ):
        for batch in batches:
            model(batch)


def opener(item: Example) -> Callable[[], Any]:
    from PIL import Image

    return lambda: Image.open(Path(item.root) / item.file_name)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
