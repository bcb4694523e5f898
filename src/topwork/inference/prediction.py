"""Run a detector over images: batched, on the best device, one table of boxes out (`predict`), or
its columns as arrays (`detect`), which the base install has all for.

The table has one row for each detection: image_id (int64), label (int64, the column's index), name
(the column's name), score, x, y, width, height (float64; COCO boxes, absolute pixels of the image
as stored), and for models with masks `segmentation` (JSON text of a compressed RLE). Images are in
the order given, detections of an image as the model orders them (best first).
"""

import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from topwork.classes import BACKGROUND, UNUSED
from topwork.errors import EvaluationError
from topwork.inference.device import choose_device, computing_at, usable_cores
from topwork.params.predict import Precision

if TYPE_CHECKING:
    import pandas as pd

    from topwork.dataset.split_images import Picture

COLUMNS = {
    "image_id": "int64",
    "label": "int64",
    "name": "str",
    "score": "float64",
    "x": "float64",
    "y": "float64",
    "width": "float64",
    "height": "float64",
}
MASK_THRESHOLD = 0.5
"""Probability from which a pixel belongs to a mask, as in torchvision's and COCO's own evaluation
of Mask R-CNN.
"""
_SETTLED: "WeakSet[nn.Module]" = WeakSet()
"""Models that have run on the CPU in this process."""
_DECODERS_BESIDE_A_GPU = 12
"""Threads at most that open images for a GPU, while it computes."""
_DECODERS = 8
"""Threads that open images for a CPU, between two forward passes: more than cores, so that a disk
isn't waited for image by image.
"""


@dataclass(frozen=True)
class Detected:
    """What a detector saw in some images, best first in each.

    Attributes:
        image_ids: int64[N].
        labels: int64[N], indices of names.
        scores: float64[N].
        boxes_xyxy: float64[N, 4], absolute pixels.
        names: the detector's columns, background first.
        masks: JSON texts of compressed RLE, of detectors that give masks, where they are wanted.
    """

    image_ids: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    boxes_xyxy: np.ndarray
    names: tuple[str, ...]
    masks: tuple[str, ...] | None = None


def predict(
    model: nn.Module,
    images: "Sequence[Picture]",
    *,
    batch_size: int = 8,
    device: str | torch.device = "auto",
    columns: Sequence[str] | None = None,
    precision: Precision = "float32",
    watch: Callable[[int], None] | None = None,
) -> "pd.DataFrame":
    """Detect objects in images.

    Args:
        model: see `detect`; so are the others.
        images: ids, and functions that open the images.
        batch_size: images a forward pass.
        device: see `device.choose_device`.
        columns: names of the labels; left out where the model says them (`model.columns`).
        precision: of the forward pass; see `device.computing_at`.
        watch: called with the number of images done, after each batch.

    Returns:
        The table that this module's docstring describes; for no images, the same columns and no
        rows.

    Raises:
        EvaluationError: the model gives a NaN, or a label that the columns don't have; the image is
            named.
    """
    return _table(
        detect(
            model,
            images,
            batch_size=batch_size,
            device=device,
            columns=columns,
            precision=precision,
            watch=watch,
        )
    )


def detect(
    model: nn.Module,
    images: "Sequence[Picture]",
    *,
    batch_size: int = 8,
    device: str | torch.device = "auto",
    columns: Sequence[str] | None = None,
    precision: Precision = "float32",
    masks: bool = True,
    watch: Callable[[int], None] | None = None,
) -> Detected:
    """Detect objects in images; columns that are no classes are left out.

    A model's first batch on the CPU is computed twice, and the second result taken: in a process's
    first pass one thread's share of the images can differ in the last digits (the math library
    picks a function's kernel at that function's first call in the process, while other threads call
    it: pytorch issue 188792; seen in one run of some sixty). It picks by function, instruction set
    and accuracy, not by shape: a smaller last batch, or images of another size, call what was
    called before. A guard by shape would compute nearly every batch of a two-stage detector twice.
    By precision there is none either, since a process predicts at one (`predict.precision`).

    Args:
        model: a torchvision-style detector; it is moved to the device, run in evaluation mode, and
            left in its own mode.
        images: ids, and functions that open the images.
        batch_size: images a forward pass.
        device: see `device.choose_device`.
        columns: names of the labels; left out where the model says them (`model.columns`).
        precision: of the forward pass; see `device.computing_at`.
        masks: keep masks, of detectors that give them.
        watch: called with the number of images done, after each batch.

    Raises:
        EvaluationError: the model gives a NaN, or a label that the columns don't have; the image is
            named.
    """
    names = tuple(columns if columns is not None else getattr(model, "columns", ()))
    if not names:
        raise EvaluationError(
            "predict: the model has no `columns`; pass the names of its labels, background first."
        )
    if batch_size < 1:
        raise EvaluationError(f"predict: batch_size is {batch_size}, expected 1 or more.")
    target = device if isinstance(device, torch.device) else choose_device(device)
    training = model.training
    model.to(device=target, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    try:
        found, done = [], 0
        with torch.inference_mode(), computing_at(precision, target):
            for ids, batch in _batches(images, batch_size, target):
                if target.type == "cpu" and model not in _SETTLED:
                    model(batch)
                    _SETTLED.add(model)
                found.append(_to_host(ids, model(batch), masks))
                done += len(ids)
                if watch is not None:
                    watch(done)
    finally:
        model.train(training)
    return _together(found, names)


def no_detections() -> "pd.DataFrame":
    """The table of a detector that saw nothing."""
    import pandas as pd

    return pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in COLUMNS.items()})


def _batches(
    images: "Sequence[Picture]", batch_size: int, device: torch.device
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Ids and images, float32[3, H, W] in [0, 1] on the device, of each batch. For a GPU the next
    batches are opened while the caller works on this one; a CPU's cores can't do both, and what is
    opened meanwhile would keep the model's threads waiting for each other.
    """
    on_gpu = device.type != "cpu"
    decoders = min(usable_cores(), _DECODERS_BESIDE_A_GPU) if on_gpu else _DECODERS
    at_once = 3 if on_gpu else max(1, _DECODERS // batch_size)  # batches
    starts = iter(range(0, len(images), batch_size))
    opening: deque[tuple[list[int], list[Future[Tensor]]]] = deque()
    with ThreadPoolExecutor(decoders, thread_name_prefix="topwork-decode") as pool:
        while True:
            if on_gpu or not opening:
                for start in itertools.islice(starts, at_once - len(opening)):
                    batch = images[start : start + batch_size]
                    ids = [image_id for image_id, _ in batch]
                    opening.append((ids, [pool.submit(_open, own, on_gpu) for _, own in batch]))
            if not opening:
                return
            ids, futures = opening.popleft()
            opened = [future.result() for future in futures]
            yield ids, _to_device(opened, device) if on_gpu else opened


def _open(open_image: Callable[[], Image.Image], on_gpu: bool) -> Tensor:
    """For a GPU uint8[H, W, 3]; for the CPU float32[3, H, W] in [0, 1], so that the conversion,
    too, happens in the decoding thread; by NumPy, since each thread that calls torch's operations
    has a team of OpenMP threads that then wait, spinning, on the cores that the model needs.
    """
    pixels = np.array(open_image().convert("RGB"))  # a copy: PIL's is read-only
    if on_gpu:
        return torch.from_numpy(pixels)
    planes = np.empty((3, *pixels.shape[:2]), dtype=np.float32)
    np.divide(pixels.transpose(2, 0, 1), np.float32(255), out=planes)
    return torch.from_numpy(planes)


def _to_device(opened: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """A batch of uint8[H, W, 3] as float32[3, H, W] in [0, 1] on the device: one copy, which
    nobody waits for.
    """
    sizes = [image.numel() for image in opened]
    buffer = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    torch.cat([image.reshape(-1) for image in opened], out=buffer)
    moved = buffer.to(device, non_blocking=True)
    return [
        pixels.view(image.shape).permute(2, 0, 1).contiguous().to(torch.float32).div_(255)
        for pixels, image in zip(torch.split(moved, sizes), opened, strict=True)
    ]


def _to_host(
    ids: Sequence[int], outputs: Sequence[Mapping[str, Tensor]], masks: bool
) -> dict[str, Any]:
    """One batch's detections as flat arrays; a single copy, so that a GPU is waited for once."""
    counts = [len(output["scores"]) for output in outputs]
    table = torch.cat(  # [N, 6]; float64 holds each of them exactly
        [
            torch.column_stack([output[key].double() for key in ("labels", "scores", "boxes")])
            for output in outputs
        ]
    )
    values = table.cpu().numpy()
    rows: dict[str, Any] = {
        "image_id": np.repeat(np.asarray(ids, dtype=np.int64), counts),
        "label": values[:, 0].astype(np.int64),
        "score": values[:, 1],
        "boxes_xyxy": values[:, 2:],
    }
    if masks and outputs and "masks" in outputs[0]:
        rows["segmentation"] = [
            text for output in outputs for text in _encode_masks(output["masks"])
        ]
    return rows


def _encode_masks(masks: Tensor) -> list[str]:
    """Soft masks, float[N, 1, H, W], as JSON texts of compressed RLE."""
    from pycocotools import mask as coco_mask

    hard = (masks[:, 0] >= MASK_THRESHOLD).to(torch.uint8).cpu().numpy()
    # (N, H, W) -> (H, W, N)
    encoded = coco_mask.encode(np.asfortranarray(hard.transpose(1, 2, 0))) if len(hard) else []
    return [
        json.dumps({"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")})
        for rle in encoded
    ]


def _together(found: Sequence[Mapping[str, Any]], names: tuple[str, ...]) -> Detected:
    """All batches as one, held to be sound."""
    if not found:
        whole = np.empty(0, dtype=np.int64)
        return Detected(whole, whole, np.empty(0), np.empty((0, 4)), names)
    image_ids, labels, scores, boxes = (
        np.concatenate([rows[key] for rows in found])
        for key in ("image_id", "label", "score", "boxes_xyxy")
    )
    bad = ~np.isfinite(np.column_stack([scores, boxes])).all(axis=1)
    if bad.any():
        raise EvaluationError(
            f"predictions: image {image_ids[bad][0]}: {int(bad.sum())} boxes or scores are NaN or"
            " infinite. The weights are damaged (a diverged training?); look at them with `topwork"
            " inspect`."
        )
    if len(labels) and (labels.min() < 0 or labels.max() >= len(names)):
        raise EvaluationError(
            f"predictions: label {labels.max()} (lowest {labels.min()}), and the model's columns"
            f" are 0 to {len(names) - 1}. Weights and column names don't belong together."
        )
    real = np.array([name not in (BACKGROUND, UNUSED) for name in names])[labels]
    masks = None
    if "segmentation" in found[0]:
        texts = [text for rows in found for text in rows["segmentation"]]
        masks = tuple(text for text, wanted in zip(texts, real, strict=True) if wanted)
    return Detected(image_ids[real], labels[real], scores[real], boxes[real], names, masks)


def _table(found: Detected) -> "pd.DataFrame":
    import pandas as pd

    boxes = found.boxes_xyxy
    table = pd.DataFrame(
        {
            "image_id": found.image_ids,
            "label": found.labels,
            "name": pd.Series(np.asarray(found.names, dtype=object)[found.labels], dtype="str"),
            "score": found.scores,
            "x": boxes[:, 0],
            "y": boxes[:, 1],
            "width": boxes[:, 2] - boxes[:, 0],
            "height": boxes[:, 3] - boxes[:, 1],
        }
    )
    if found.masks is not None:
        table["segmentation"] = pd.Series(found.masks, dtype="str")
    return table
