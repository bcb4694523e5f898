"""`topwork.predict`: images in, detections out, without tables; all that the base install needs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from topwork.classes import BACKGROUND, UNUSED
from topwork.dataset.images import ImageStore
from topwork.detectors.builders import load
from topwork.errors import EvaluationError
from topwork.weights.format import Weights

Picture = Path | str | Image.Image | Tensor


class Detections(TypedDict):
    """What was found in one image, best first, on the CPU, without gradients.

    Attributes:
        boxes: float32[N, 4], (x1, y1, x2, y2) in pixels of the image.
        scores: float32[N], in [0, 1].
        labels: int64[N], columns of the head.
        names: the labels' class names.
        masks: float32[N, 1, H, W] in [0, 1], where the detector gives them.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    names: list[str]


def predict(
    model: nn.Module | Weights | Path | str,
    images: Sequence[Picture] | Picture,
    *,
    score: float = 0.05,
    batch_size: int = 8,
    device: str | torch.device | None = None,
) -> list[Detections]:
    """Detect objects in images.

    Args:
        model: what `topwork.load` gives, weights, or a file of them; a module is run in evaluation
            mode and left in its own.
        images: files, PIL images, uint8[3, H, W] or float[3, H, W] in [0, 1]; or one of them.
        score: least score of a detection.
        batch_size: images a forward pass.
        device: where; the model's own where left out.

    Returns:
        One `Detections` an image, in the order given.

    Raises:
        EvaluationError: an image is of another kind, shape or range; or the model has no `columns`.
        DataError: a file isn't there or can't be decoded.

    Example:
        model = topwork.load("out/finetune/weights.safetensors")
        found = topwork.predict(model, ["yard.jpg"])[0]
        print(found["names"], found["scores"])
    """
    if not isinstance(model, nn.Module):
        model = load(model)
    columns = getattr(model, "columns", None)
    if columns is None:
        raise EvaluationError(
            "predict: the model doesn't name its labels. Load it by `topwork.load`, or set"
            " `model.columns`, background first."
        )
    if batch_size < 1:
        raise EvaluationError(f"predict: batch_size is {batch_size}, expected 1 or more.")
    pictures = [images] if isinstance(images, Picture) else list(images)
    if device is not None:
        model.to(device)
    where = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    training = model.training
    model.eval()
    found: list[Detections] = []
    try:
        with torch.no_grad():
            for start in range(0, len(pictures), batch_size):
                batch = [
                    _pixels(picture, start + place).to(where)
                    for place, picture in enumerate(pictures[start : start + batch_size])
                ]
                found += _detections(model(batch), tuple(columns), score)
    finally:
        model.train(training)
    return found


def _detections(
    outputs: Sequence[dict[str, Tensor]], columns: tuple[str, ...], score: float
) -> Iterator[Detections]:
    real = torch.tensor([name not in (BACKGROUND, UNUSED) for name in columns])
    for output in outputs:
        keep = (output["scores"] >= score) & real.to(output["labels"].device)[output["labels"]]
        fields = {
            name: tensor[keep].detach().cpu()
            for name, tensor in output.items()
            if len(tensor) == len(keep)
        }
        names = [columns[label] for label in fields["labels"].tolist()]
        yield {**fields, "names": names}  # type: ignore[typeddict-item]


def _pixels(picture: Picture, index: int) -> Tensor:
    """float32[3, H, W] in [0, 1].

    Raises:
        EvaluationError: another kind, shape or range.
    """
    if isinstance(picture, Path | str):
        path = Path(picture)
        picture = ImageStore(path.parent).open(path.name)
    if isinstance(picture, Image.Image):
        picture = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    if not isinstance(picture, Tensor):
        raise EvaluationError(
            f"predict: image {index} is {type(picture).__name__}, expected a file, a PIL image or"
            " a tensor."
        )
    if picture.dim() != 3 or picture.shape[0] != 3:
        raise EvaluationError(
            f"predict: image {index} has shape {list(picture.shape)}, expected [3, height, width]."
        )
    if picture.dtype == torch.uint8:
        return picture.to(torch.float32).div(255)
    if not picture.is_floating_point():
        raise EvaluationError(
            f"predict: image {index} is {picture.dtype}, expected uint8, or floats in 0..1."
        )
    low, high = (float(value) for value in torch.aminmax(picture)) if picture.numel() else (0, 0)
    if not (low >= 0 and high <= 1):
        raise EvaluationError(
            f"predict: image {index} has floats from {low:g} to {high:g}, expected 0 to 1. Divide"
            " by 255, or give uint8; don't normalise: the detector does."
        )
    return picture.to(torch.float32)
