"""The device: which one, at what precision, and how exactly it repeats itself. CUDA first; the same
code runs on a CPU.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from topwork.errors import DeviceError
from topwork.inference.device import choose_device, machine_facts, usable_cores
from topwork.params.finetune import FinetuneParams

_LOADERS = 12  # of a GPU at most: by then a card waits for something else

Level = Literal["bit-exact", "same-device", "statistical"]


@dataclass(frozen=True)
class Device:
    """Where training runs.

    Attributes:
        device: torch's.
        dtype: of the forward pass; float32 means no autocast.
        scaled: whether gradients are scaled (float16).
    """

    device: torch.device
    dtype: torch.dtype
    scaled: bool

    @property
    def on_gpu(self) -> bool:
        """Whether this is an accelerator."""
        return self.device.type != "cpu"

    def autocast(self) -> torch.autocast:
        """Context of the forward pass."""
        return torch.autocast(
            self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32
        )

    def to(self, value: Any) -> Any:
        """Copy tensors inside lists and dicts to the device, without waiting for it."""
        if isinstance(value, torch.Tensor):
            return value.to(self.device, non_blocking=True)
        if isinstance(value, dict):
            return {key: self.to(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.to(item) for item in value)
        return value


def training_device(params: FinetuneParams, name: str = "auto", local_rank: int = 0) -> Device:
    """The device of that name (`inference.device.choose_device`), at the precision that params ask
    for.

    Raises:
        DeviceError: the device isn't there, or can't compute at the precision.
    """
    device = choose_device(name, local_rank)
    return Device(device, _dtype(params, device), params.precision == "float16")


def _dtype(params: FinetuneParams, device: torch.device) -> torch.dtype:
    if params.precision == "auto":
        usable = (
            device.type == "cuda"
            and torch.cuda.is_available()
            and torch.cuda.is_bf16_supported(including_emulation=False)
        )
        return torch.bfloat16 if usable else torch.float32
    if params.precision == "float16" and device.type == "cpu":
        raise DeviceError(
            "finetune.precision: float16 on a CPU is slower than float32 and less exact; write"
            " `auto`, `float32` or `bfloat16`."
        )
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
        params.precision
    ]


def loader_processes(workers: int | Literal["auto"], device: Device, processes: int = 1) -> int:
    """How many processes load images for one of a machine's training processes."""
    if workers != "auto":
        return workers
    return max(1, min(_LOADERS, usable_cores() // processes)) if device.on_gpu else 1


@contextmanager
def exactness(params: FinetuneParams, device: Device) -> Iterator[None]:
    """Set threads and deterministic algorithms for the block, and put back what was there
    before.
    """
    threads, before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    benchmark = torch.backends.cudnn.benchmark
    if params.deterministic and device.on_gpu:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        torch.set_num_threads(params.threads or usable_cores())
        torch.use_deterministic_algorithms(params.deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = device.on_gpu and not params.deterministic
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = benchmark


def determinism(params: FinetuneParams, device: Device) -> tuple[Level, list[str]]:
    """How exactly a run repeats itself, and why."""
    if not params.deterministic:
        return "statistical", [
            "finetune.deterministic is false: algorithms may add up in any order"
        ]
    if device.on_gpu:
        return "same-device", [
            f"deterministic algorithms on {device.device.type}; another kind of device adds up in"
            " another order"
        ]
    return "bit-exact", [
        "CPU with a fixed number of threads, deterministic algorithms, every random draw seeded by"
        " its key"
    ]


def machine(params: FinetuneParams, device: Device) -> dict[str, Any]:
    """What of the machine decides the bits: part of a run's record and of its resume key."""
    return {
        **machine_facts(device.device, params.threads or usable_cores()),
        "precision": str(device.dtype).removeprefix("torch."),
        "processes": params.nodes * params.processes,
    }
