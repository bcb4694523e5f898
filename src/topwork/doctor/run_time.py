"""About how long a run takes here: a forward pass and a training step of the detector, timed, times
how often the pipeline does them; and how long a stage takes to start, times the stages.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from topwork.detectors.builders import build
from topwork.doctor.project import Project
from topwork.errors import TopworkError
from topwork.inference.device import choose_device, usable_cores
from topwork.params.document import Params
from topwork.project.names import HELD_OUT

BATCH = 4
KEYPOINTS = 17
ROUNDS = 3
BUSY = 1.2
"""Load a core from which the figure says that other programs run."""
LONG_S = 5.0
"""A pass that takes longer is timed once more, not three times."""
TRIED_ALPHAS = 5
"""Validations that choose the interpolation."""
STAGES = 11
STARTS = 1.25
"""A stage's start over its imports alone: DVC goes around them."""
SURE = 0.5
"""Random weights score all boxes alike; with the detector's own, low threshold all of them would be
candidates, which took three times as long as trained weights do.
"""


@dataclass(frozen=True)
class RunTime:
    """Seconds that the stages with a model take."""

    training: float
    prediction: float
    starts: float = 0.0

    def __str__(self) -> str:
        total = self.training + self.prediction + self.starts
        text = (
            f"{'' if total < 60 else 'about '}{spoken(total)} (training {spoken(self.training)},"
            f" predictions {spoken(self.prediction)}, starting {STAGES} stages"
            f" {spoken(self.starts)})"
        )
        if os.getloadavg()[0] > BUSY * usable_cores():
            text += "; the machine is busy, longer while it is"
        return text


def estimate(project: Project) -> RunTime:
    """Time the detector on a made-up image of the data's median size, and count.

    Raises:
        TopworkError: a part of the project that it needs is at fault.
    """
    params, tables, detector = project.params, project.tables, project.detector
    device = choose_device(params.runtime.device)
    images = {name: len(tables.split(name).images) for name in tables.splits}
    size = (
        int(np.median(tables.images["height"])) or 480,
        int(np.median(tables.images["width"])) or 640,
    )
    plan = params.surgery.plan()
    absorbed = len(detector.columns) - len(plan.columns) if plan.dropped == "absorb" else 0
    model = build(detector.builder, len(plan.columns), detector.builder_args, max(absorbed, 0))
    for part in model.modules():
        if hasattr(part, "score_thresh"):
            part.score_thresh = SURE  # type: ignore[assignment]
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    pictures = [torch.rand(3, *size, device=device) for _ in range(BATCH)]
    box = torch.tensor([[0.2 * size[1], 0.2 * size[0], 0.6 * size[1], 0.6 * size[0]]])
    target = {
        "boxes": box.to(device),
        "labels": torch.ones(1, dtype=torch.int64, device=device),
        # of detectors that learn them
        "masks": torch.ones(1, *size, dtype=torch.uint8, device=device),
        "keypoints": torch.ones(1, KEYPOINTS, 3, device=device),
    }

    def step() -> None:
        losses = model(pictures, [target] * BATCH)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]

    try:
        model.eval()
        with torch.inference_mode():
            forward = _seconds(lambda: model(pictures), device) / BATCH
        model.train()
        training = _seconds(step, device) / BATCH
    except (
        RuntimeError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        AssertionError,
    ) as error:
        raise TopworkError(
            f"{detector.builder}: can't be timed on a made-up image ({type(error).__name__}:"
            f" {error})."
        ) from error
    return count(params, images, forward, training, _import_s())


def count(
    params: Params, images: dict[str, int], forward: float, training: float, imports: float
) -> RunTime:
    """Seconds of a whole run.

    Args:
        params: epochs, replay, validations.
        images: split -> how many.
        forward: seconds an image of prediction.
        training: seconds an image of training.
        imports: seconds that the imports of a stage take in a fresh process.
    """
    finetune = params.finetune
    replayed = finetune.replay if "replay" in images else 0.0
    a_step = training + (forward if finetune.distill else 0.0)
    epochs = finetune.epochs * images.get("train", 0) / (1 - replayed) * a_step
    validations = finetune.epochs // finetune.validate_every if finetune.validate_every else 0
    if finetune.interpolation == "validation" and finetune.protect == "weights":
        validations += TRIED_ALPHAS
    measured = 0.0
    if finetune.by_retention and finetune.epochs:  # once before, then share by share
        half = finetune.protect == "weights" and finetune.replay
        measured = (1 + TRIED_ALPHAS) * images.get("replay", 0) * (0.5 if half else 1)
    held_out = sum(images.get(name, 0) for name in HELD_OUT)
    return RunTime(
        training=epochs + (validations * images.get("val", 0) + measured) * forward,
        prediction=(3 * held_out + images.get("train", 0)) * forward,
        starts=STAGES * STARTS * imports,
    )


def _import_s() -> float:
    before = os.times()
    subprocess.run([sys.executable, "-c", "import topwork.stages.predict"], check=False)
    after = os.times()
    return after.children_user + after.children_system - before[2] - before[3]


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, the shortest of some. On the CPU its processor time over the threads, on
    which other programs have little influence.
    """
    taken: list[float] = []
    while len(taken) < 1 + ROUNDS:
        begin = _clock(device)
        work()
        taken.append(_clock(device) - begin)
        if len(taken) > 1 and taken[-1] > LONG_S:
            break
    return min(taken[1:])


def _clock(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time() / torch.get_num_threads()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def spoken(seconds: float) -> str:
    """A duration as one says it.

    Example:
        >>> spoken(40), spoken(500), spoken(9000)
        ('under a minute', '8 minutes', '2.5 hours')
    """
    if seconds < 60:
        return "under a minute"
    if seconds < 5400:
        minutes = round(seconds / 60)
        return f"{minutes} minute{'s' if minutes > 1 else ''}"
    return f"{seconds / 3600:.1f} hours"
