"""Stage `finetune`: learn the new classes, protect the kept ones.

Reads params `finetune` and `surgery`, the tables of `validate` with the images of train, val and replay, the pretrained and the grafted
weights, and the boxes of `unlabelled`. Writes out/finetune: weights.safetensors, record.json (determinism level and reasons, epochs,
interpolation, history) and curves/ (DVCLive, while it runs). On the CPU of one kind of machine it repeats to the bit, also when it's killed at
any moment and started again: checkpoints lie in .topwork/scratch, in a folder named after the hash of all that decides the result. Stopped by a
loss that isn't finite, by a device that can't be used, and by inputs that change meanwhile.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from topwork.classes import ClassPlan, label_of
from topwork.coco.tables import Tables
from topwork.errors import TrainingError
from topwork.evaluation.metrics import score
from topwork.evaluation.predict import predict
from topwork.evaluation.sets import Pictures
from topwork.evaluation.truth import detections_of, truth_of
from topwork.files import HeldInputs, sha256_path, write_json
from topwork.params import Params
from topwork.stages import main_of
from topwork.training.checkpoint import SCRATCH, scratch_key
from topwork.training.dataset import DetectionDataset, Example, examples
from topwork.training.device import Device, choose_device, keep_freed_memory, machine
from topwork.training.distributed import launch, local_rank, process_group, share_of_environment
from topwork.training.loop import Job, fine_tune
from topwork.weights.weights import Weights, read_weights, write_weights

FOLDER = Path("out/finetune")
GRAFTED = Path("out/surgery/grafted.safetensors")
PRETRAINED = Path("out/fetch/pretrained.safetensors")
TABLES = Path("out/validate")
BOXES = Path("out/unlabelled/boxes.parquet")
READ_SPLITS = ("train", "val", "replay")
BITLESS = {"workers", "image_cache_mib", "checkpoint_steps", "device"}
"""Params that don't touch a bit of the result (the device does, but stands among the machine's facts)."""
SCRATCH_DAYS = 14.0
KEY = re.compile("[0-9a-f]{32}")


def run(params: Params, root: Path = Path()) -> None:
    """Fine-tune the grafted weights, in one process or several."""
    if params.finetune.processes > 1 and "RANK" not in os.environ:
        from topwork.stages import finetune  # by its name, so that new processes find it

        launch(finetune.work, params.finetune.processes, params, root)
    else:
        work(params, root)


def work(params: Params, root: Path = Path()) -> None:
    """Fine-tune as one process of those that the environment tells of."""
    share = share_of_environment()
    device = choose_device(params.finetune, local_rank())
    if not device.on_gpu:
        keep_freed_memory()
    inputs = HeldInputs(
        {name: root / path for name, path in (("grafted", GRAFTED), ("pretrained", PRETRAINED), ("tables", TABLES), ("boxes", BOXES))}
    )
    plan = ClassPlan.parse(params.surgery.classes)
    tables = Tables.read(root / TABLES)
    stamps = _stamps(tables, root)
    weights = read_weights(root / GRAFTED, trust=True)
    dataset, train = training_set(params, plan, tables, weights, root)
    scratch = root / SCRATCH / scratch_key(inputs_of(params, inputs.hashes, stamps, device))
    _sweep(root / SCRATCH)
    job = Job(
        weights, tuple(plan.kept), dataset, train, params.finetune, device,
        validate=validation(tables, weights, root, params, device), scratch=scratch, curves=root / FOLDER / "curves", share=share,
    )  # fmt: skip
    with process_group(share, device.device):
        outcome = fine_tune(job)
    if share.rank:
        return
    inputs.check()
    if _stamps(tables, root) != stamps:
        raise TrainingError("finetune: images changed while the stage was reading them. Nothing was written; run the stage again.")
    write_weights(root / FOLDER / "weights.safetensors", outcome.weights)
    write_json(root / FOLDER / "record.json", outcome.record)
    shutil.rmtree(scratch, ignore_errors=True)


def training_set(
    params: Params, plan: ClassPlan, tables: Tables, weights: Weights, root: Path, boxes: pd.DataFrame | None = None
) -> tuple[DetectionDataset, int]:
    """Training images, then those to replay; and how many of them are for training.

    Args:
        params: all of them.
        plan: the class plan.
        tables: from the validate stage.
        weights: the grafted ones.
        root: the project's folder.
        boxes: what the unlabelled stage found; read from its file where left out.

    Raises:
        TrainingError: there is no training image, or none with an object of a target class.
    """
    finetune = params.finetune
    labels = label_of(weights.columns)
    train = examples(tables, "train", labels, _teacher_boxes(params, root, boxes))
    if not any(len(item.labels) for item in train):
        raise TrainingError(
            f"finetune: none of the {len(train)} training images has an object of {', '.join(labels)}. Mend dataset.train, dataset.aliases or surgery.classes."
        )
    replay: list[Example] = []
    if finetune.replay and "replay" in tables.splits:
        known = set(tables.names("replay").values())
        replay = examples(tables, "replay", {target if target in known else source: labels[target] for target, source in plan.kept.items()})
    dataset = DetectionDataset(
        [*train, *replay], root=root, preset=finetune.augmentation, seed=finetune.seed, cache_mib=finetune.image_cache_mib,
        masks=any("mask_predictor" in name for name in weights.state_dict),
    )  # fmt: skip
    return dataset, len(train)


def _teacher_boxes(params: Params, root: Path, boxes: pd.DataFrame | None) -> pd.DataFrame | None:
    """Confident boxes of kept classes that the annotations lack."""
    if not params.finetune.teacher_boxes:
        return None
    boxes = pd.read_parquet(root / BOXES) if boxes is None else boxes
    return boxes[boxes["score"] >= params.finetune.teacher_min_score]


def validation(
    tables: Tables, weights: Weights, root: Path, params: Params, device: Device
) -> Callable[[nn.Module], Mapping[str, float]] | None:
    """COCO figures of a detector on the validation images, or None where there are none."""
    if "val" not in tables.splits:
        return None
    names = [name for name in label_of(weights.columns) if name in set(tables.names("val").values())]
    if not names or not len(tables.split("val").images):
        return None
    truth = truth_of(tables, "val", names)
    pictures = Pictures(root).of(tables, "val")

    def validate(model: nn.Module) -> dict[str, float]:
        table = predict(model, pictures, batch_size=params.evaluate.batch_size, device=device.device, columns=weights.columns)
        scores = score(truth, detections_of(table[table["name"].isin(names)], truth))
        by_class = {f"ap/{name}": found for name in names if (found := scores.ap(name)) is not None}
        return {"map": scores.ap() or 0.0, **by_class}

    return validate


def inputs_of(params: Params, hashes: Mapping[str, str], stamps: Any, device: Device) -> dict[str, Any]:
    """All that decides the result's bits."""
    return {
        "params": params.finetune.model_dump(mode="json", exclude=BITLESS),
        "surgery": params.surgery.model_dump(mode="json"),
        "inputs": dict(hashes),
        "images": stamps,
        "code": sha256_path(Path(__file__).parents[1] / "training"),
        "machine": machine(params.finetune, device),
    }


def _stamps(tables: Tables, root: Path) -> dict[str, Any]:
    """Size and modification time of every image that is read."""
    pictures = Pictures(root)
    return {
        split: [list(stamp) if stamp else None for stamp in pictures.stamps(tables, split)]
        for split in READ_SPLITS
        if split in tables.splits
    }


def _sweep(scratch: Path) -> None:
    """Remove scratch folders of runs that nobody went on with."""
    for folder in scratch.iterdir() if scratch.is_dir() else ():
        if KEY.fullmatch(folder.name) and time.time() - folder.stat().st_mtime > SCRATCH_DAYS * 86400:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Run the stage alone."""
    return main_of(run)


if __name__ == "__main__":
    raise SystemExit(main())
