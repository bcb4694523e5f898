"""ONNX: a detector as one file that needs no PyTorch, held against PyTorch on images before it is
handed out.

The graph takes one image of any size, float32[3, H, W] in [0, 1], and does all that the detector
does, resizing and suppression
included: boxes float32[N, 4] (x1, y1, x2, y2 in pixels of that image), scores float32[N], labels
int64[N] and, for Mask and Keypoint
R-CNN, masks float32[N, 1, H, W] and keypoints float32[N, K, 3]. Absorbed columns are folded inside.
Class names lie in the metadata.

It is written by PyTorch's tracing exporter: the newer one (`dynamo=True`) can't follow the number
of boxes, which depends on the image.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import box_iou

from topwork.classes import BACKGROUND, UNUSED
from topwork.detectors.families import Limits, family_of
from topwork.errors import ExportError
from topwork.files import atomic_path

OPSET = 17
TOLERANCE = 1e-4
"""Scores may differ by this much; boxes by this fraction of the image's longer side."""
MASK_TOLERANCE = 0.01
"""A mask's probabilities may differ by this much, in nine of ten masks: pasting rounds a box to
whole pixels.
"""
MOST = 0.9
NO_LIMITS = (
    " The detector's family declares no `limits`, so that none can be explained by rounding at them"
    " (docs/surgery.md)."
)
OUTPUTS = ("boxes", "scores", "labels", "masks", "keypoints")
Found = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Parity:
    """How far ONNX and PyTorch are apart.

    Attributes:
        images: how many images were looked at.
        detections: PyTorch's detections on them.
        boxes: largest difference of a box coordinate, as a fraction of the image's longer side.
        boxes_px: the same in pixels.
        scores: largest difference of a score.
        masks: largest difference of a mask's probability, or None without masks.
        keypoints: nine of ten keypoints differ by less, in pixels, or None without keypoints: each
            is a heat map's highest place, and rounding decides between two that are as high.
        at_the_edge: detections that one of the two has and the other just hasn't, since rounding
            decided a cut or a suppression (`_decided_by_rounding`).
    """

    images: int
    detections: int
    boxes: float
    boxes_px: float
    scores: float
    masks: float | None
    keypoints: float | None
    at_the_edge: int


class _OneImage(nn.Module):
    """A detector that takes one image and gives a tuple: what the exporter can trace."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        found: dict[str, Tensor] = self.model([image])[0]
        return tuple(found[name] for name in OUTPUTS if name in found)


def export_onnx(
    model: nn.Module,
    path: Path,
    images: Sequence[Tensor],
    *,
    details: Mapping[str, str] | None = None,
) -> Parity:
    """Write a detector as ONNX, once it was seen to agree with PyTorch on every image given.

    Args:
        model: detector from `load`, on the CPU, in evaluation mode; `model.columns` names its
            labels.
        path: where the file goes; untouched when anything fails.
        images: float32[3, H, W] in [0, 1], at least one, better of different sizes.
        details: further metadata, text by name.

    Raises:
        ExportError: torch can't export this detector, or the two disagree; the figures are in the
            message.
    """
    columns = tuple(getattr(model, "columns", ()))
    if not columns:
        raise ExportError(
            "export: the detector has no `columns`; load it with topwork.load, which names its"
            " labels."
        )
    if not images:
        raise ExportError("export: no image to check on; give at least one.")
    with atomic_path(path) as temporary:
        outputs = _trace(model, temporary, images[0])
        _describe(temporary, columns, details or {})
        return compare(temporary, model, images, outputs)


def _trace(model: nn.Module, path: Path, image: Tensor) -> tuple[str, ...]:
    wrapped = _OneImage(model).eval()
    with torch.inference_mode():
        found = model([image])[0]
    outputs = tuple(name for name in OUTPUTS if name in found)
    free: dict[str, dict[int, str]] = {
        "image": {1: "height", 2: "width"},
        **{name: {0: "detections"} for name in outputs},
    }
    if "masks" in outputs:
        free["masks"] |= {2: "height", 3: "width"}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
                # the tracer warns of each constant; the check on images of other sizes is what
                # counts
            )
            torch.onnx.export(
                wrapped,
                (image,),
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=list(outputs),
                dynamic_axes=free,
            )
    except Exception as error:
        raise ExportError(
            f"export: torch can't write {type(model).__name__} as ONNX ({type(error).__name__}:"
            f" {' '.join(str(error).split())[:300]}). docs/export.md lists the builders that were"
            " seen to work."
        ) from error
    return outputs


def _describe(path: Path, columns: Sequence[str], details: Mapping[str, str]) -> None:
    import onnx

    graph = onnx.load(str(path))
    names = {
        str(label): name for label, name in enumerate(columns) if name not in (BACKGROUND, UNUSED)
    }
    entries = {
        "names": json.dumps(names, ensure_ascii=False),
        "columns": json.dumps(list(columns), ensure_ascii=False),
        "input": "image: float32[3, H, W], RGB in [0, 1], any size",
        "boxes": "x1, y1, x2, y2 in pixels of the input",
        **details,
    }
    onnx.helper.set_model_props(graph, entries)
    graph.producer_name = "topwork"
    onnx.checker.check_model(graph)
    onnx.save(graph, str(path))


def class_names(path: Path) -> dict[int, str]:
    """Label -> class name, as an ONNX file's metadata say.

    Raises:
        ExportError: the file isn't ONNX, or doesn't say.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(path), load_external_data=False)
        found = {entry.key: entry.value for entry in graph.metadata_props}
        return {int(label): str(name) for label, name in json.loads(found["names"]).items()}
    except (OSError, ValueError, KeyError, DecodeError) as error:
        raise ExportError(
            f"{path}: not an ONNX file with class names ({type(error).__name__}: {error}). Write it"
            " with `topwork export`."
        ) from error


def compare(
    path: Path, model: nn.Module, images: Sequence[Tensor], outputs: Sequence[str]
) -> Parity:
    """Run both on the images.

    Raises:
        ExportError: they disagree; image, figures and tolerance are named.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    family = family_of(model)
    limits = family.limits(model) if family.limits else None
    parts = []
    for index, image in enumerate(images):
        with torch.inference_mode():
            found: dict[str, Tensor] = model([image])[0]
        ours = {name: found[name].numpy() for name in outputs}
        what = f"image {index + 1} of {len(images)}"
        theirs = dict(zip(outputs, _run(session, outputs, image, what), strict=True))
        parts.append(
            parity_of(
                ours,
                theirs,
                max(image.shape[-2:]),
                what,
                limits,
            )
        )
    masks = [part.masks for part in parts if part.masks is not None]
    keypoints = [part.keypoints for part in parts if part.keypoints is not None]
    return Parity(
        len(parts),
        sum(part.detections for part in parts),
        max(part.boxes for part in parts),
        max(part.boxes_px for part in parts),
        max(part.scores for part in parts),
        max(masks, default=None),
        max(keypoints, default=None),
        sum(part.at_the_edge for part in parts),
    )


def _run(session: Any, outputs: Sequence[str], image: Tensor, what: str) -> list[NDArray[Any]]:
    """The graph's outputs for an image.

    Raises:
        ExportError: onnxruntime can't run the graph on it.
    """
    try:
        found: list[NDArray[Any]] = session.run(list(outputs), {"image": image.numpy()})
    except Exception as error:
        raise ExportError(
            f"export: {what}: onnxruntime can't run the graph"
            f" ({' '.join(str(error).split())[:300]}). Nothing was written. Sizes that a builder"
            " computes from a tensor's shape must be whole numbers, `int(...)`, or the trace fails."
        ) from error
    return found


def parity_of(
    ours: Found, theirs: Found, side: int, what: str = "image", limits: Limits | None = None
) -> Parity:
    """Hold two sets of detections against each other, whatever their order; each detection is
    matched once, within its label.

    Args:
        ours: PyTorch's.
        theirs: ONNX's.
        side: the image's longer side in pixels.
        what: the image, for messages.
        limits: where the detector cuts off: a detection just there may be in one of the two alone;
            None where its family doesn't say, which allows none.

    Raises:
        ExportError: a detection has no counterpart within the tolerance, or masks or keypoints of
            pairs differ.
    """
    pairs, alone = _pairs(ours, theirs, side)
    first, second = (
        np.array([pair[0] for pair in pairs], dtype=int),
        np.array([pair[1] for pair in pairs], dtype=int),
    )
    boxes = float(
        np.abs(ours["boxes"][first].astype(np.float64) - theirs["boxes"][second]).max(initial=0.0)
    )
    scores = float(
        np.abs(ours["scores"][first].astype(np.float64) - theirs["scores"][second]).max(initial=0.0)
    )
    decided = (
        _decided_by_rounding({"ours": ours, "theirs": theirs}, alone, limits, scores, side)
        if limits
        else set()
    )
    lost = [one for one in alone if one not in decided]
    if lost:
        which, index = lost[0]
        mine = ours if which == "ours" else theirs
        box = [round(float(value), 3) for value in mine["boxes"][index]]
        here = sum(name == "ours" for name, _ in lost)
        raise ExportError(
            f"export: {what}: ONNX and PyTorch disagree: {here} of PyTorch's {len(ours['scores'])}"
            f" detections and {len(lost) - here} of ONNX's {len(theirs['scores'])} have no"
            f" counterpart within {TOLERANCE:g}; the first is"
            f" {'PyTorch' if which == 'ours' else 'ONNX'}'s label {int(mine['labels'][index])},"
            f" score {float(mine['scores'][index]):.6f}, box {box}."
            f"{'' if limits else NO_LIMITS} Nothing was written; docs/export.md lists what is known"
            " of each builder."
        )
    masks = keypoints = None
    if "masks" in ours:
        apart = np.abs(ours["masks"][first] - theirs["masks"][second]).max(
            axis=(1, 2, 3), initial=0.0
        )
        _hold_most(apart, MASK_TOLERANCE, f"{what}: masks", "in probability")
        masks = float(apart.max(initial=0.0))
    if "keypoints" in ours:
        apart = (
            np.abs(ours["keypoints"][first] - theirs["keypoints"][second])[..., :2]
            .max(axis=2, initial=0.0)
            .ravel()
        )
        keypoints = _hold_most(apart, TOLERANCE * side, f"{what}: keypoints", "pixels")
    return Parity(1, len(ours["scores"]), boxes / side, boxes, scores, masks, keypoints, len(alone))


def _hold_most(apart: NDArray[Any], allowed: float, what: str, unit: str) -> float:
    """Nine of ten differences lie within what is allowed; returns within what they lie."""
    within = float(np.quantile(apart, MOST)) if len(apart) else 0.0
    if not within <= allowed:
        raise ExportError(
            f"export: {what} of ONNX and PyTorch disagree: {int((apart > allowed).sum())} of"
            f" {len(apart)} differ by more than {allowed:.2g} {unit}, {within:.3g} at {MOST:.0%} of"
            " them. Nothing was written; docs/export.md lists what is known of each builder."
        )
    return within


Lone = tuple[str, int]
"""A detection that one of the two has alone: `ours` or `theirs`, and its index there."""


def _decided_by_rounding(
    both: Mapping[str, Found], alone: Sequence[Lone], limits: Limits, apart: float, side: int
) -> set[Lone]:
    """Those of the lone detections that the other side lost by a decision which rounding can turn.

    - cut: its score is within the tolerance of the score threshold; or the other side was full,
      with better ones; or it is the lowest of its class, but for rounding, where only so many
      candidates a class go on to suppression;
    - suppressed: the other side has a detection of its class that overlaps it just as far as the
      detector allows, or that is there alone, too, and has the same score, but for rounding: of the
      two, either may suppress the other;
    - in consequence: what suppressed it is there alone for one of these reasons.

    Scores are equal but for rounding within twice what they are `apart` in matched detections. One
    that is alone on both sides, with its box but not its score, wasn't lost: its score is wrong.
    """
    noise = 2 * apart + float(np.finfo(np.float32).eps)
    decided: set[Lone] = set()
    rivals: dict[Lone, list[Lone]] = {}
    for lone in alone:
        which, index = lone
        other = "theirs" if which == "ours" else "ours"
        mine, others = both[which], both[other]
        score = float(mine["scores"][index])
        same = np.flatnonzero(others["labels"] == mine["labels"][index])
        lowest = float(others["scores"][same].min(initial=np.inf))
        full = (
            len(others["scores"]) >= limits.count
            and score <= float(others["scores"].min(initial=np.inf)) + TOLERANCE
        )
        twins = [
            place
            for name, place in alone
            if name == other and others["labels"][place] == mine["labels"][index]
        ]
        if (
            (
                np.abs(others["boxes"][twins].astype(np.float64) - mine["boxes"][index])
                <= TOLERANCE * side
            )
            .all(axis=1)
            .any()
        ):
            rivals[lone] = []
            continue
        one, many = (
            torch.from_numpy(boxes.astype(np.float64)).reshape(-1, 4)
            for boxes in (mine["boxes"][index], others["boxes"][same])
        )
        overlap = box_iou(one, many).numpy()[0]
        near = np.flatnonzero(
            (overlap > limits.overlap - TOLERANCE) & (others["scores"][same] >= score - noise)
        )
        at_the_limit = bool((np.abs(overlap[near] - limits.overlap) <= TOLERANCE).any())
        rivals[lone] = [(other, int(same[place])) for place in near]
        if (
            abs(score - limits.score) <= TOLERANCE
            or full
            or abs(score - lowest) <= noise
            or at_the_limit
        ):
            decided.add(lone)
    undecided = [lone for lone in alone if lone not in decided]
    for lone in undecided:
        score = float(both[lone[0]]["scores"][lone[1]])
        if any(
            rival in rivals and abs(float(both[rival[0]]["scores"][rival[1]]) - score) <= noise
            for rival in rivals[lone]
        ):
            decided.add(lone)
    while more := {
        lone
        for lone in undecided
        if lone not in decided and any(rival in decided for rival in rivals[lone])
    }:
        decided |= more
    return decided


def _pairs(ours: Found, theirs: Found, side: int) -> tuple[list[tuple[int, int]], list[Lone]]:
    """Pairs of indices within the tolerance, nearest first, and what is left alone on either
    side.
    """
    far = (
        np.abs(ours["boxes"][:, None].astype(np.float64) - theirs["boxes"][None]).max(
            axis=2, initial=0.0
        )
        / side
    )
    far = np.maximum(
        far, np.abs(ours["scores"][:, None].astype(np.float64) - theirs["scores"][None])
    )
    far[ours["labels"][:, None] != theirs["labels"][None]] = np.inf
    rows, columns = np.nonzero(far <= TOLERANCE)
    order = np.argsort(far[rows, columns], kind="stable")
    pairs: list[tuple[int, int]] = []
    taken_rows: set[int] = set()
    taken_columns: set[int] = set()
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in taken_rows and column not in taken_columns:
            pairs.append((row, column))
            taken_rows.add(row)
            taken_columns.add(column)
    alone = [("ours", row) for row in range(len(far)) if row not in taken_rows]
    return pairs, alone + [
        ("theirs", column) for column in range(far.shape[1]) if column not in taken_columns
    ]
