"""Run a detector over images: batched, on the best device, one table of boxes out.

The table has one row for each detection: image_id (int64), label (int64, the column's index), name
(the column's name), score, x, y, width, height (float64; COCO boxes, absolute pixels of the image
as stored), and for models with masks `segmentation` (JSON text of a compressed RLE). Images are in
the order given, detections of an image as the model orders them (best first).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from topwork.classes import BACKGROUND, UNUSED
from topwork.dataset.split_images import Picture
from topwork.errors import EvaluationError
from topwork.inference.device import choose_device

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
_DECODERS = 2
"""Threads that open images while the model runs on the batch before."""


def predict(
    model: nn.Module,
    images: Sequence[Picture],
    *,
    batch_size: int = 8,
    device: str | torch.device = "auto",
    columns: Sequence[str] | None = None,
    watch: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Detect objects in images.

    Args:
        model: a torchvision-style detector; it is moved to the device, run in evaluation mode, and
            left in its own mode.
        images: ids, and functions that open the images.
        batch_size: images a forward pass.
        device: see `device.choose_device`.
        columns: names of the labels; left out where the model says them (`model.columns`).
        watch: called with the number of images done, after each batch.

    Returns:
        The table that this module's docstring describes; for no images, the same columns and no
        rows.

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
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=False
            ),
        ):
            found, done = [], 0
            for ids, batch in _batches(images, batch_size, pin=target.type == "cuda"):
                found.append(_to_host(ids, model([_to_device(image, target) for image in batch])))
                done += len(ids)
                if watch is not None:
                    watch(done)
    finally:
        model.train(training)
    return _table(found, names)


def no_detections() -> pd.DataFrame:
    """The table of a detector that saw nothing."""
    return pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in COLUMNS.items()})


def _open(open_image: Callable[[], Image.Image], pin: bool) -> Tensor:
    """uint8[3, H, W]; for the CPU float32 in [0, 1], so that the conversion, too, happens in the
    decoding thread.
    """
    pixels = np.array(open_image().convert("RGB"))  # a copy: PIL's own buffer is read-only
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    return tensor.pin_memory() if pin else tensor.to(torch.float32).div_(255)


def _to_device(image: Tensor, device: torch.device) -> Tensor:
    moved = image.to(device, non_blocking=True)
    return moved if moved.is_floating_point() else moved.to(torch.float32).div_(255)


def _batches(
    images: Sequence[Picture], batch_size: int, pin: bool
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Batches of opened images; the next batch is opened while the caller works on this one."""
    with ThreadPoolExecutor(_DECODERS, thread_name_prefix="topwork-decode") as pool:

        def submit(start: int) -> list[Future[Tensor]]:
            return [
                pool.submit(_open, open_image, pin)
                for _, open_image in images[start : start + batch_size]
            ]

        ahead = submit(0)
        for start in range(0, len(images), batch_size):
            current, ahead = ahead, submit(start + batch_size)
            yield (
                [image_id for image_id, _ in images[start : start + batch_size]],
                [future.result() for future in current],
            )


def _to_host(ids: Sequence[int], outputs: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    """One batch's detections as flat arrays; a single copy a field, so that a GPU is waited for
    once.
    """
    counts = [len(output["scores"]) for output in outputs]
    rows: dict[str, Any] = {
        "image_id": np.repeat(np.asarray(ids, dtype=np.int64), counts),
        "label": torch.cat([output["labels"] for output in outputs]).cpu().numpy().astype(np.int64),
        "score": torch.cat([output["scores"] for output in outputs]).double().cpu().numpy(),
        "boxes_xyxy": (
            torch.cat([output["boxes"] for output in outputs]).double().cpu().numpy().reshape(-1, 4)
        ),
    }
    if outputs and "masks" in outputs[0]:
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


def _table(found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> pd.DataFrame:
    if not found:
        return no_detections()
    image_ids, labels, scores = (
        np.concatenate([rows[key] for rows in found]) for key in ("image_id", "label", "score")
    )
    boxes = np.concatenate([rows["boxes_xyxy"] for rows in found])
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
    table = pd.DataFrame(
        {
            "image_id": image_ids,
            "label": labels,
            "name": pd.Series(np.asarray(names, dtype=object)[labels], dtype="str"),
            "score": scores,
            "x": boxes[:, 0],
            "y": boxes[:, 1],
            "width": boxes[:, 2] - boxes[:, 0],
            "height": boxes[:, 3] - boxes[:, 1],
        }
    )
    if "segmentation" in found[0]:
        table["segmentation"] = pd.Series(
            [text for rows in found for text in rows["segmentation"]], dtype="str"
        )
    real = ~table["name"].isin([BACKGROUND, UNUSED])
    return table[real].reset_index(drop=True)
