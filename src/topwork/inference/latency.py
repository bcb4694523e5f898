"""How fast a detector is: latency and throughput by batch size.

Clock times are no part of the pipeline's outputs (they'd differ in every run): `topwork predict
--benchmark` prints them.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn

from topwork.inference.device import choose_device

BATCH_SIZES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Latency:
    """Forward passes at one batch size.

    Attributes:
        batch_size: images a pass.
        median_s: of one pass.
        p90_s: of one pass.
        images_per_s: at the median.
    """

    batch_size: int
    median_s: float
    p90_s: float
    images_per_s: float


def measure(
    model: nn.Module,
    images: Sequence[Image.Image],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    device: str = "auto",
    repeats: int = 7,
    warmup: int = 2,
) -> list[Latency]:
    """Time forward passes (resizing and non-maximum suppression included, decoding not) on images
    that are repeated to fill a batch.
    """
    target = choose_device(device)
    model.to(device=target, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    tensors = [
        torch.from_numpy(np.array(image.convert("RGB")))
        .permute(2, 0, 1)
        .contiguous()
        .to(target, torch.float32)
        .div_(255)
        for image in images
    ]
    rows = []
    with torch.inference_mode():
        for batch_size in batch_sizes:
            batch = [tensors[index % len(tensors)] for index in range(batch_size)]
            seconds = np.asarray(
                [_timed(model, batch, target) for _ in range(warmup + repeats)][warmup:]
            )
            middle = float(np.median(seconds))
            rows.append(
                Latency(batch_size, middle, float(np.quantile(seconds, 0.9)), batch_size / middle)
            )
    return rows


def _timed(model: nn.Module, batch: list[torch.Tensor], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    model(batch)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def print_latency(rows: Sequence[Latency]) -> None:
    """Print the figures as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=(
            f"Forward pass ({torch.get_num_threads()} threads)"
            if not torch.cuda.is_available()
            else "Forward pass"
        )
    )
    for heading in ("batch size", "median ms", "90th percentile ms", "images/s"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row.batch_size),
            f"{1000 * row.median_s:.1f}",
            f"{1000 * row.p90_s:.1f}",
            f"{row.images_per_s:.1f}",
        )
    Console().print(table)
