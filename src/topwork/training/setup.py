"""From tables to a job: what the stage `finetune` trains on, how it is validated, and under which
key it is resumed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from topwork.classes import ClassPlan, label_of
from topwork.dataset.split_images import SplitImages
from topwork.dataset.tables import Tables
from topwork.detectors.axes import head_spec_of
from topwork.errors import TrainingError
from topwork.files import HeldInputs
from topwork.metrics.sets import classes_of
from topwork.params.finetune import FinetuneParams
from topwork.params.predict import PredictParams
from topwork.params.runtime import RuntimeParams
from topwork.params.section import Sections
from topwork.params.surgery import SurgeryParams
from topwork.project.fetch import PRETRAINED
from topwork.project.surgery import GRAFTED
from topwork.surgery.branch import branched
from topwork.training.batches import ProcessRank
from topwork.training.checkpoint import SCRATCH, scratch_key, sweep
from topwork.training.dataset import DetectionDataset, Example, examples
from topwork.training.device import Device, machine
from topwork.training.held_out import replay_halves
from topwork.training.imports import code_hash
from topwork.training.loop import Job
from topwork.training.measuring import kept_measure, validation
from topwork.weights.branches import learning_weights
from topwork.weights.format import Weights, read_weights

READ_SPLITS = ("train", "val", "replay")


class TrainingParams(Sections):
    """What training reads of params.yaml."""

    surgery: SurgeryParams
    finetune: FinetuneParams = FinetuneParams()
    predict: PredictParams = PredictParams()
    runtime: RuntimeParams = RuntimeParams()


def read_splits(tables: Tables) -> list[str]:
    """The splits whose images training reads."""
    return [split for split in READ_SPLITS if split in tables.splits]


def starting_weights(params: TrainingParams) -> Weights:
    """The grafted weights, or both branches, by the params.

    Raises:
        SurgeryError: the detector can't be branched, or not at the cut.
        TrainingError: nothing is new in the plan, or a detector with branches is to be trained as
            a single one.
    """
    grafted, source = (read_weights(path, trust=True) for path in (GRAFTED, PRETRAINED))
    finetune, plan = params.finetune, params.surgery.plan()
    if finetune.protect == "weights":
        if source.branches is not None:
            raise TrainingError(
                f"{PRETRAINED}: holds a detector with branches on it, and finetune.protect: weights"
                " trains a single one. Write `protect: branch`."
            )
        return grafted
    both = branched(source, grafted, plan, cut=finetune.branch.cut, mix=finetune.branch.share)
    earlier = 0 if source.branches is None else len(source.branches.scions)
    if finetune.epochs and both.branches is not None and len(both.branches.scions) == earlier:
        raise TrainingError(
            f"finetune: the plan ({', '.join(plan.names)}) keeps every class, so that no branch has"
            " anything to learn. Name a new class in surgery.classes, or write `epochs: 0` to hand"
            " on what is there."
        )
    return both


def prepare(
    params: TrainingParams,
    tables: Tables,
    weights: Weights,
    boxes: pd.DataFrame | None,
    *,
    pretrained: Weights,
    device: Device,
    inputs: HeldInputs,
    process: ProcessRank,
    curves: Path | None = None,
) -> Job:
    """Put a job together.

    Args:
        params: finetune, surgery.classes, predict, runtime.
        tables: from the stage `validate`.
        weights: the grafted ones.
        boxes: kept-class objects that the annotations lack (stage `unlabelled`), or None.
        pretrained: what the weights were grafted from.
        device: where to train.
        inputs: what is read, held before it was: its hashes are part of the resume key.
        process: which process this is.
        curves: folder for DVCLive, or None.

    Raises:
        TrainingError: there is no training image with an object of a target class, or a share is
            to be chosen by what kept classes keep, and there is nothing to measure that on.
    """
    plan = params.surgery.plan()
    images = SplitImages(tables)
    dataset, train = training_set(params, plan, tables, weights, boxes)
    key = scratch_key(
        deciding(params, inputs.hashes, images.content_hash(read_splits(tables)), device)
    )
    sweep(SCRATCH)
    kept = kept_measure(
        plan,
        tables,
        weights,
        pretrained,
        images,
        params.finetune,
        params.predict,
        device,
        first=process.rank == 0,
    )
    return Job(
        weights=weights,
        kept=tuple(plan.kept),
        dataset=dataset,
        train=train,
        params=params.finetune,
        device=device,
        runtime=params.runtime,
        validate=validation(tables, weights, images, params.predict, device),
        measure_kept=kept.measure,
        notes=kept.notes,
        scratch=SCRATCH / key,
        check_images=inputs.check_watched,
        curves=curves,
        process=process,
    )


def training_set(
    params: TrainingParams,
    plan: ClassPlan,
    tables: Tables,
    weights: Weights,
    boxes: pd.DataFrame | None = None,
) -> tuple[DetectionDataset, int]:
    """Training images, then those to replay; and how many of them are for training.

    Raises:
        TrainingError: there is no training image, or none with an object of a target class.
    """
    finetune = params.finetune
    learning = learning_weights(weights)
    labels = label_of(learning.columns)
    confident = None
    if finetune.teacher_boxes and boxes is not None:
        confident = boxes[boxes["score"] >= finetune.teacher_min_score]
    train = examples(tables, "train", labels, confident)
    if not any(len(item.labels) for item in train):
        raise TrainingError(
            f"finetune: none of the {len(train)} training images has an object of"
            f" {', '.join(labels)}. Mend dataset.train, dataset.aliases or surgery.classes."
        )
    replay: list[Example] = []
    if finetune.replay and weights.branches is None and "replay" in tables.splits:
        named = classes_of(plan, tables, "replay").items()
        names = {name: labels[target] for target, own in named for name in own}
        replayed, _ = replay_halves(tables, finetune)
        replay = [item for item in examples(tables, "replay", names) if item.image_id in replayed]
    mask_head = head_spec_of(learning).family.mask_head
    dataset = DetectionDataset(
        [*train, *replay],
        preset=finetune.augmentation,
        seed=finetune.seed,
        cache_mib=params.runtime.image_cache_mib,
        masks=mask_head is not None
        and any(name.startswith(mask_head) for name in learning.state_dict),
    )
    return dataset, len(train)


def deciding(
    params: TrainingParams, hashes: Mapping[str, str], images: str, device: Device
) -> dict[str, Any]:
    """All that decides the result's bits: what a checkpoint is resumed by.

    Args:
        params: finetune, the class plan, the batch size of validation; nothing of `runtime`.
        hashes: of the input files; the grafted weights' metadata hold the hash of an own builder's
            file.
        images: hash of the images' content.
        device: where it is computed; the machine's facts hold the versions of torch and
            torchvision.
    """
    return {
        "finetune": params.finetune.model_dump(mode="json"),
        "surgery": params.surgery.model_dump(mode="json"),
        "predict": params.predict.model_dump(mode="json"),
        "inputs": dict(hashes),
        "images": images,
        "code": code_hash(__name__),
        "machine": machine(params.finetune, device),
    }
