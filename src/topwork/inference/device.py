"""The device: which one, how it computes, and what of the machine decides the bits."""

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torchvision

from topwork.errors import DeviceError
from topwork.params.predict import Precision

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h
_THRESHOLDS = (1 << 30, 32 << 20)  # the second one where the C library allows no more


def choose_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """The device of that name; `auto` takes the accelerator that torch finds, else the CPU.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:1`...
        local_rank: number of this process on its machine: which of several devices it takes where
            the name has no number.

    Raises:
        DeviceError: the name is unknown, or that device isn't there.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else torch.device(found.type, local_rank)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise DeviceError(
            f"device {name!r}: not a device of torch ({reason}); write `auto`, `cpu`, `cuda` or"
            " `cuda:1` (runtime.device)."
        ) from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise DeviceError(
                f"device {name!r}: torch {torch.__version__} sees no CUDA device here. "
                "Write `auto` or `cpu` (runtime.device), or repair the driver."
            )
        device = device if device.index is not None else torch.device("cuda", local_rank)
        if (device.index or 0) >= count:
            raise DeviceError(
                f"device 'cuda:{device.index}': torch sees {count} CUDA devices (counted from 0). "
                "Lower runtime.device, or finetune.processes."
            )
    return device


@contextmanager
def computing_at(precision: Precision, device: torch.device) -> Iterator[None]:
    """Within the block, forward passes have this precision, and on one GPU the same bits each time;
    on the CPU the math library takes exactly as many threads as torch says.

    Args:
        precision: `float32`: every operation in full; `tf32`: products of matrices and convolutions
            of 10 bits of mantissa on a GPU; `bfloat16`: autocast.
        device: where they are computed.

    Raises:
        DeviceError: `tf32` on a device that isn't a GPU of NVIDIA's.
    """
    if precision == "tf32" and device.type != "cuda":
        raise DeviceError(
            f"predict.precision: tf32 is a mode of CUDA devices, and this is {device.type!r}. Write"
            " `float32` or `bfloat16`, or choose a CUDA device (runtime.device)."
        )
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    tf32 = precision == "tf32"
    if device.type == "cpu":
        torch.set_num_threads(torch.get_num_threads())  # MKL's own choice of a number ends by this
    try:
        matmul.allow_tf32 = tf32
        with (
            torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32
            ),
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"),
        ):
            yield
    finally:
        matmul.allow_tf32 = before


def keep_freed_memory() -> None:
    """Tell the C library to keep freed memory for the next step instead of handing it back page by
    page (glibc; elsewhere nothing happens).

    A step, and a forward pass, frees and takes the same few hundred megabytes again and again; on a
    CPU the page faults are some 8% of a step's time, and a third of a forward pass's.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt"):
        return
    # setting either one stops glibc from fitting the first by itself: so both, or none
    if any(library.mallopt(_M_MMAP_THRESHOLD, most) for most in _THRESHOLDS):
        library.mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_facts(device: torch.device, threads: int | None = None) -> dict[str, Any]:
    """What of the machine decides the bits of a computation: device, threads, instruction set,
    library versions.

    Args:
        device: where it is computed.
        threads: CPU threads; those of torch in this process where left out.
    """
    facts: dict[str, Any] = {
        "device": device.type,
        "threads": threads or torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "architecture": platform.machine(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
    }
    if device.type == "cuda" and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return facts
