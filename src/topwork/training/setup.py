"""From tables to a job: what the stage `finetune` trains on, how it is validated, and under which
key it is resumed.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from topwork.classes import ClassPlan, label_of
from topwork.dataset.split_images import Picture, SplitImages
from topwork.dataset.tables import Tables
from topwork.detectors.axes import head_spec_of
from topwork.errors import TrainingError
from topwork.files import HeldInputs
from topwork.inference.prediction import predict
from topwork.metrics.coco import Scores, score
from topwork.metrics.truth import Truth, detections_of, truth_of
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
        TrainingError: there is no training image with an object of a target class, or a share is
            to be chosen by retention and can't be.
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
        measure_kept=retention(params, plan, tables, weights, images, device),
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
        names = {name: labels[target] for target, name in _in_replay(plan, tables).items()}
        held = held_replay(tables, finetune)
        replay = [item for item in examples(tables, "replay", names) if item.image_id not in held]
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
    measure = _scorer(
        truth_of(tables, "val", names), images.openers("val"), weights, params, device
    )

    def validate(model: nn.Module) -> dict[str, float]:
        scores = measure(model)
        by_class = {f"ap/{name}": found for name in names if (found := scores.ap(name)) is not None}
        return {"map": scores.ap() or 0.0, **by_class}

    return validate


def held_replay(tables: Tables, params: FinetuneParams) -> frozenset[int]:
    """Ids of the images of `replay` that nothing is trained on, since a share is chosen on them:
    every second one where the others are replayed.
    """
    if not params.by_retention:
        return frozenset()
    ids = sorted(int(number) for number in tables.split("replay").images["image_id"])
    return frozenset(ids[::2] if params.protect == "weights" and params.replay else ids)


def retention(
    params: TrainingParams,
    plan: ClassPlan,
    tables: Tables,
    weights: Weights,
    images: SplitImages,
    device: Device,
) -> Callable[[nn.Module], Mapping[str, float]] | None:
    """AP of each kept class on the held-out images of `replay`, or None where no share is chosen by
    it.

    Raises:
        TrainingError: no class is kept, or those images have no object of a kept class.
    """
    held = held_replay(tables, params.finetune)
    if not params.finetune.by_retention:
        return None
    if not plan.kept:
        raise TrainingError(
            "finetune: a share is to be chosen by retention, and the plan keeps no class. Write"
            " `interpolation: validation`."
        )
    split = tables.split("replay")
    part = Tables(
        split.images[split.images["image_id"].isin(held)],
        split.annotations[split.annotations["image_id"].isin(held)],
        split.categories,
    )
    names = {target: (name,) for target, name in _in_replay(plan, tables).items()}
    truth = truth_of(part, "replay", names)
    if missing := [name for name, count in truth.objects.items() if not count]:
        raise TrainingError(
            f"dataset.replay: no object of {', '.join(missing)} in the {len(held)} images that a"
            " share is chosen on. Name images that have some, or write a number in place of"
            " `retention` in finetune."
        )
    pictures = [picture for picture in images.openers("replay") if picture[0] in held]
    measure = _scorer(truth, pictures, weights, params.predict, device)

    def measure_kept(model: nn.Module) -> dict[str, float]:
        scores = measure(model)
        return {name: scores.ap(name) or 0.0 for name in names}

    return measure_kept


def _in_replay(plan: ClassPlan, tables: Tables) -> dict[str, str]:
    """Kept class -> what the images to replay call it: as the plan does, or as the pretrained
    detector does.
    """
    known = set(tables.names("replay").values())
    return {target: target if target in known else source for target, source in plan.kept.items()}


def _scorer(
    truth: Truth,
    pictures: Sequence[Picture],
    weights: Weights,
    params: PredictParams,
    device: Device,
) -> Callable[[nn.Module], Scores]:
    def measure(model: nn.Module) -> Scores:
        table = predict(
            model,
            pictures,
            batch_size=params.batch_size,
            device=device.device,
            columns=weights.columns,
            precision=params.precision,
        )
        return score(truth, detections_of(table[table["name"].isin(truth.classes)], truth))

    return measure


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
