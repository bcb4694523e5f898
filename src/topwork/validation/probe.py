"""What is known of an image's bytes: size, mode, orientation, frames, whether it decodes, hashes.
Probed on all cores, kept on disk.

A probe is kept by (file name, size, mtime), so that a second run reads no image that hasn't
changed.
"""

import hashlib
import io
import os
import warnings
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import astuple, dataclass, fields
from multiprocessing import get_context
from pathlib import Path

import imagehash
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFile, UnidentifiedImageError

from topwork.dataset.images import (
    BOMB_BYTES,
    BOMB_RATIO,
    MAX_PIXELS,
    ImageStore,
    eight_bits,
    orientation_of,
)
from topwork.errors import DataError, TopworkError
from topwork.files import atomic_path

VERSION = "3"
SMALL = 8  # fewer are read one after another
CHUNK = 16  # images that a process gets at once
AHEAD = 3  # chunks that wait for each process
# below, starting them costs more than they save; Pillow decodes outside the interpreter lock
PROCESSES_FROM = 1024


@dataclass(frozen=True)
class Probe:
    """One image.

    Attributes:
        file_name, size, mtime: what it's known by; size and mtime are -1 where it's missing.
        state: `fine`, `missing`, `unreadable`, `truncated` or `bomb`; `message` has the decoder's
            words.
        width, height, mode, format, orientation, frames: as stored; 0 or empty where it can't be
            opened; the orientation is 1 where pixels need no turn (Pillow turns TIFF itself).
        sha256: of the bytes.
        phash, dhash: perceptual hashes as 16 hex digits; empty where it can't be decoded, or has
            too little in it to compare.
        flat: one colour all over.
    """

    file_name: str
    size: int
    mtime: int
    state: str
    message: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    format: str = ""
    orientation: int = 1
    frames: int = 1
    sha256: str = ""
    phash: str = ""
    dhash: str = ""
    flat: bool = False


def probe_images(
    store: ImageStore, names: Sequence[str], cache: Path | None = None, workers: int | None = None
) -> tuple[dict[str, Probe], int]:
    """Probe images by name.

    Args:
        store: where they are.
        names: file names; each is probed once.
        cache: folder that keeps probes between runs; None keeps none.
        workers: processes; None takes all cores.

    Returns:
        file name -> Probe, and how many images were read (the others were known).
    """
    wanted = list(dict.fromkeys(names))
    place = (
        None
        if cache is None
        else cache
        / f"{hashlib.sha256(str(store.root.absolute()).encode()).hexdigest()[:24]}.parquet"
    )
    known = _load(place)
    found: dict[str, Probe] = {}
    todo: list[tuple[str, int, int]] = []
    for name in wanted:
        stamp = store.stamp(name)
        if stamp is None:
            found[name] = Probe(name, -1, -1, "missing")
            continue
        old = known.get(name)
        if old is not None and (old.size, old.mtime) == stamp:
            found[name] = old
        else:
            todo.append((name, *stamp))
    with warnings.catch_warnings():
        # Pillow warns of odd metadata and large images; what matters becomes a finding
        warnings.simplefilter("ignore")
        for result in _probe_all(store, todo, workers or os.cpu_count() or 1):
            found[result.file_name] = result
    if todo and place is not None:
        _save(
            place,
            {**known, **{name: kept for name, kept in found.items() if kept.state != "missing"}},
        )
    return {name: found[name] for name in wanted}, len(todo)


def probe(store: ImageStore, name: str, size: int, mtime: int) -> Probe:
    """Read and decode one image."""
    member = store.members.get(name)
    if (
        member is not None
        and member.size > BOMB_BYTES
        and member.size > BOMB_RATIO * max(member.packed, 1)
    ):
        return Probe(
            name,
            size,
            mtime,
            "bomb",
            f"claims to unpack from {member.packed} to {member.size} bytes",
        )
    try:
        data = store.read(name)
    except DataError as error:
        return Probe(
            name, size, mtime, "unreadable", str(error).removeprefix(f"{store.root}: {name}: ")
        )
    digest = hashlib.sha256(data).hexdigest()
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        return Probe(name, size, mtime, "bomb", str(error), sha256=digest)
    except Exception as error:  # noqa: BLE001 - Pillow's plugins raise almost anything on broken data
        message = (
            f"begins with {data[:8]!r}" if isinstance(error, UnidentifiedImageError) else str(error)
        )
        return Probe(
            name, size, mtime, "unreadable", "has 0 bytes" if not data else message, sha256=digest
        )
    with image:
        width, height, mode, kind = image.width, image.height, image.mode, image.format or ""
        if width * height > MAX_PIXELS:
            return Probe(
                name,
                size,
                mtime,
                "bomb",
                f"{width}x{height} pixels",
                width,
                height,
                mode,
                kind,
                sha256=digest,
            )
        try:
            frames = int(getattr(image, "n_frames", 1)) if kind != "MPO" else 1
        except Exception:  # noqa: BLE001 - broken metadata around whole pixels
            frames = 1
        orientation = 1
        try:
            ImageFile.LOAD_TRUNCATED_IMAGES = False
            image.draft(
                "RGB" if mode == "RGB" else None, (max(width // 8, 64), max(height // 8, 64))
            )
            image.load()
            orientation = orientation_of(image)
            small = eight_bits(image).convert("L")
        except Exception as error:  # noqa: BLE001
            return Probe(
                name,
                size,
                mtime,
                "truncated",
                str(error),
                width,
                height,
                mode,
                kind,
                orientation,
                frames,
                digest,
            )
        grey = np.asarray(small)
        low, high = int(grey.min()), int(grey.max())
        flat = low == high
        hashes = (
            ("", "")
            if high - low < 16
            else (str(imagehash.phash(small)), str(imagehash.dhash(small)))
        )
    return Probe(
        name,
        size,
        mtime,
        "fine",
        "",
        width,
        height,
        mode,
        kind,
        orientation,
        frames,
        digest,
        *hashes,
        flat,
    )


def _probe_all(store: ImageStore, todo: list[tuple[str, int, int]], workers: int) -> list[Probe]:
    if workers == 1 or len(todo) < SMALL:
        return [probe(store, *item) for item in todo]
    if len(todo) < PROCESSES_FROM:
        with ThreadPoolExecutor(workers) as threads:
            return list(threads.map(lambda item: probe(store, *item), todo))
    left = deque(todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK))
    own: list[Probe] = []
    given: list[Future[list[Probe]]] = []
    # a fork of this process would copy locks that other threads hold
    context = get_context("forkserver")
    try:
        with ProcessPoolExecutor(
            workers - 1, mp_context=context, initializer=_hold, initargs=(store,)
        ) as pool:
            # this process works too, from the start on, while the others still import
            while left:
                while left and sum(
                    not wait.done() for wait in given[-AHEAD * workers :]
                ) < AHEAD * (workers - 1):
                    given.append(pool.submit(_probe_chunk, left.popleft()))
                own += [probe(store, *item) for item in (left.popleft() if left else ())]
            return own + [result for wait in given for result in wait.result()]
    except BrokenProcessPool as error:
        raise DataError(
            f"{store.root}: a process that looked at images was killed, as the system does where"
            " memory runs out, or crashed. Run `topwork validate --workers 1`, which needs less"
            " memory and stops at the image where that's at fault."
        ) from error


_held: dict[str, ImageStore] = {}


def _hold(store: ImageStore) -> None:
    warnings.simplefilter("ignore")
    _held["store"] = store


def _probe_chunk(chunk: list[tuple[str, int, int]]) -> list[Probe]:
    return [probe(_held["store"], *item) for item in chunk]


_ARROW = {int: pa.int64(), str: pa.string(), bool: pa.bool_()}
_COLUMNS = {
    entry.name: _ARROW[entry.type] for entry in fields(Probe) if isinstance(entry.type, type)
}


def _load(place: Path | None) -> dict[str, Probe]:
    """Kept probes; a file that's missing, broken or of another version is none."""
    if place is None:
        return {}
    try:
        table = pq.read_table(place)
        if (table.schema.metadata or {}).get(b"topwork-probe") != VERSION.encode():
            return {}
        columns = [table.column(name).to_pylist() for name in _COLUMNS]
    except (OSError, pa.ArrowException, KeyError):
        return {}
    return {row[0]: Probe(*row) for row in zip(*columns, strict=True)}


def _save(place: Path, probes: dict[str, Probe]) -> None:
    columns = list(zip(*(astuple(kept) for _, kept in sorted(probes.items())), strict=True))
    table = pa.table(
        {
            name: pa.array(values, kind)
            for (name, kind), values in zip(_COLUMNS.items(), columns, strict=True)
        }
    )
    table = table.replace_schema_metadata({"topwork-probe": VERSION})
    try:
        with atomic_path(place) as temporary:
            pq.write_table(table, temporary)
    except TopworkError:
        pass  # a cache that can't be kept costs time, never the run
