"""Checkpoints: everything that a killed run needs to end in the same bits.

They lie in a scratch folder named after the run's inputs, outside DVC's outs (DVC removes outs
before it runs a stage), so that a checkpoint of other inputs is never resumed. Each file begins
with the SHA-256 of what follows; the two newest are kept, and one that a power cut damaged is
passed over.
"""

import hashlib
import io
import random
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from topwork.errors import TopworkError
from topwork.files import atomic_path, canonical_json

SCRATCH = Path(".topwork/scratch")
KEPT = 2
SUFFIX = ".checkpoint"
ABANDONED_DAYS = 14.0
KEY = re.compile("[0-9a-f]{32}")


def scratch_key(inputs: dict[str, Any]) -> str:
    """A folder name from all that decides a run's bits."""
    return hashlib.sha256(canonical_json(inputs).encode()).hexdigest()[:32]


def sweep(scratch: Path) -> None:
    """Remove scratch folders of runs that nobody went on with."""
    for folder in scratch.iterdir() if scratch.is_dir() else ():
        with suppress(FileNotFoundError):  # its run ended meanwhile
            age = time.time() - folder.stat().st_mtime
            if KEY.fullmatch(folder.name) and age > ABANDONED_DAYS * 86400:
                shutil.rmtree(folder, ignore_errors=True)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: scratch folder of the run, or None for a run that keeps none.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint, whole or not at all, then drop those that are older than the last
        two.

        Raises:
            TopworkError: the disk is full; earlier checkpoints are still there.
        """
        if self.folder is None:
            return
        buffer = io.BytesIO()
        torch.save(state, buffer)
        path = self.folder / f"{step:09d}{SUFFIX}"
        try:
            _write(path, buffer.getbuffer())
        except TopworkError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            # a run that decides the same ended meanwhile, and took the folder with it
            _write(path, buffer.getbuffer())
        for old in self.files()[:-KEPT]:
            old.unlink(missing_ok=True)

    def files(self) -> list[Path]:
        """Checkpoint files, oldest first."""
        return (
            sorted(self.folder.glob(f"*{SUFFIX}"))
            if self.folder is not None and self.folder.is_dir()
            else []
        )

    def latest(self) -> dict[str, Any] | None:
        """The newest checkpoint that is whole, or None."""
        for path in reversed(self.files()):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue  # a run that decides the same ended meanwhile
            if hashlib.sha256(memoryview(data)[32:]).digest() == data[:32]:
                state: dict[str, Any] = torch.load(
                    io.BytesIO(data[32:]), map_location="cpu", weights_only=True
                )
                return state
        return None


def _write(path: Path, payload: memoryview) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        stream.write(hashlib.sha256(payload).digest())
        stream.write(payload)


def rng_states() -> dict[str, Any]:
    """States of every generator that something might draw from."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.random.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": _listed(random.getstate()),
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
    }


def restore_rng(states: dict[str, Any]) -> None:
    """Put every generator where it was."""
    torch.random.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))


def _listed(state: tuple[Any, ...]) -> list[Any]:
    version, numbers, gauss = state
    return [version, list(numbers), gauss]
