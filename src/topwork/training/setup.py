"""From tables to a job: what the stage `finetune` trains on, how it is validated, and under which
key it is resumed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from topwork.classes import ClassPlan, label_of
from topwork.dataset.split_images import SplitImages
from topwork.dataset.tables import Tables
from topwork.detectors.axes import head_spec_of
from topwork.errors import TrainingError
from topwork.files import HeldInputs
from topwork.inference.prediction import predict
from topwork.metrics.coco import score
from topwork.metrics.truth import detections_of, truth_of
from topwork.params.finetune import FinetuneParams
from topwork.params.predict import PredictParams
from topwork.params.runtime import RuntimeParams
from topwork.params.section import Sections
from topwork.params.surgery import SurgeryParams
from topwork.training.batches import ProcessRank
from topwork.training.checkpoint import SCRATCH, scratch_key, sweep
from topwork.training.dataset import DetectionDataset, Example, examples
from topwork.training.device import Device, machine
from topwork.training.imports import code_hash
from topwork.training.loop import Job
from topwork.weights.branches import learning_weights
from topwork.weights.format import Weights

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


def prepare(
    params: TrainingParams,
    tables: Tables,
    weights: Weights,
    boxes: pd.DataFrame | None,
    *,
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
        device: where to train.
        inputs: what is read, held before it was: its hashes are part of the resume key.
        process: which process this is.
        curves: folder for DVCLive, or None.

    Raises:
        TrainingError: there is no training image with an object of a target class.
    """
    plan = params.surgery.plan()
    images = SplitImages(tables)
    dataset, train = training_set(params, plan, tables, weights, boxes)
    key = scratch_key(
        deciding(params, inputs.hashes, images.content_hash(read_splits(tables)), device)
    )
    sweep(SCRATCH)
    return Job(
        weights=weights,
        kept=tuple(plan.kept),
        dataset=dataset,
        train=train,
        params=params.finetune,
        device=device,
        runtime=params.runtime,
        validate=validation(tables, weights, images, params.predict, device),
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
        known = set(tables.names("replay").values())
        names = {
            target if target in known else source: labels[target]
            for target, source in plan.kept.items()
        }
        replay = examples(tables, "replay", names)
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


def validation(
    tables: Tables, weights: Weights, images: SplitImages, params: PredictParams, device: Device
) -> Callable[[nn.Module], Mapping[str, float]] | None:
    """COCO figures of a detector on the validation images, or None where there are none."""
    if "val" not in tables.splits:
        return None
    names = [
        name for name in label_of(weights.columns) if name in set(tables.names("val").values())
    ]
    if not names or not len(tables.split("val").images):
        return None
    truth = truth_of(tables, "val", names)
    pictures = images.openers("val")

    def validate(model: nn.Module) -> dict[str, float]:
        table = predict(
            model,
            pictures,
            batch_size=params.batch_size,
            device=device.device,
            columns=weights.columns,
            precision=params.precision,
        )
        scores = score(truth, detections_of(table[table["name"].isin(names)], truth))
        by_class = {f"ap/{name}": found for name in names if (found := scores.ap(name)) is not None}
        return {"map": scores.ap() or 0.0, **by_class}

    return validate


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
