"""What training measures: figures on validation images, and what kept classes keep on images to
replay that nothing is trained on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from topwork.classes import ClassPlan, label_of
from topwork.dataset.split_images import Picture, SplitImages
from topwork.dataset.tables import Tables
from topwork.detectors.builders import load
from topwork.errors import TrainingError
from topwork.inference.prediction import predict
from topwork.metrics.coco import Scores, score
from topwork.metrics.sets import rename_kept
from topwork.metrics.truth import Truth, detections_of, truth_of
from topwork.params.finetune import FinetuneParams
from topwork.params.predict import PredictParams
from topwork.training.device import Device
from topwork.training.held_out import held_truth
from topwork.weights.format import Weights

LEAST_AP = 0.05
"""Of the pretrained detector on held-out images: what is kept of less is luck."""

MeasureDetector = Callable[[nn.Module], Mapping[str, float]]
"""Detector in evaluation mode -> figures."""


@dataclass(frozen=True)
class KeptMeasure:
    """How it's measured what kept classes keep.

    Attributes:
        measure: detector in evaluation mode -> kept class -> AP over the pretrained detector's;
            None where no share is chosen by it.
        notes: which kept classes are left out, and why.
    """

    measure: MeasureDetector | None = None
    notes: tuple[str, ...] = ()


def validation(
    tables: Tables, weights: Weights, images: SplitImages, params: PredictParams, device: Device
) -> MeasureDetector | None:
    """COCO figures of a detector on the validation images, or None where there are none."""
    if "val" not in tables.splits:
        return None
    names = [
        name for name in label_of(weights.columns) if name in set(tables.names("val").values())
    ]
    if not names or not len(tables.split("val").images):
        return None
    truth, pictures = truth_of(tables, "val", names), images.openers("val")

    def validate(model: nn.Module) -> dict[str, float]:
        scores = _scores(truth, pictures, model, weights.columns, params, device)
        by_class = {f"ap/{name}": found for name in names if (found := scores.ap(name)) is not None}
        return {"map": scores.ap() or 0.0, **by_class}

    return validate


def kept_measure(
    plan: ClassPlan,
    tables: Tables,
    weights: Weights,
    pretrained: Weights,
    images: SplitImages,
    finetune: FinetuneParams,
    prediction: PredictParams,
    device: Device,
    *,
    first: bool = True,
) -> KeptMeasure:
    """How it's measured what kept classes keep, the pretrained detector being measured at once.

    Args:
        plan: which classes are kept, and what the pretrained detector calls them.
        tables: the data set.
        weights: what is trained.
        pretrained: what it was made of.
        images: of the data set.
        finetune: whether and how.
        prediction: batch size and precision.
        device: where to predict.
        first: whether this process measures; others receive the figures.

    Raises:
        TrainingError: no kept class has enough objects, or the pretrained detector hardly finds
            any.
    """
    if not finetune.by_retention or not finetune.epochs:
        return KeptMeasure()
    truth, notes = held_truth(plan, tables, finetune, images)
    held = set(truth.image_ids.tolist())
    pictures = [picture for picture in images.openers("replay") if picture[0] in held]
    if not first:
        return KeptMeasure(lambda _: {}, notes)

    def ap(model: nn.Module, columns: Sequence[str], own_names: bool) -> dict[str, float]:
        renamed = None if own_names else plan
        scores = _scores(truth, pictures, model, columns, prediction, device, renamed)
        return {name: scores.ap(name) or 0.0 for name in truth.classes}

    if weights.branches is None:
        before = ap(load(pretrained, device.device), pretrained.columns, own_names=False)
    else:  # its stock is the pretrained detector, and hands classes on under the plan's names
        stock = replace(weights, branches=replace(weights.branches, mix=0.0))
        before = ap(load(stock, device.device), weights.columns, own_names=True)
    hardly = [f"{name} {found:.3f}" for name, found in before.items() if found < LEAST_AP]
    before = {name: found for name, found in before.items() if found >= LEAST_AP}
    if not before:
        raise TrainingError(
            f"dataset.replay: the pretrained detector hardly finds kept classes in the {len(held)}"
            f" images that are held out (AP of {', '.join(hardly)}), so that it can't be measured"
            " what is kept. Are they of its own domain, and their classes what it means by these"
            " names? Else write a number in place of `retention` in finetune."
        )
    if hardly:
        notes += (
            "what is kept isn't measured of classes that the pretrained detector hardly finds in"
            f" the held-out images of dataset.replay: AP of {', '.join(hardly)}",
        )

    def measure(model: nn.Module) -> dict[str, float]:
        after = ap(model, weights.columns, own_names=True)
        return {name: after[name] / found for name, found in before.items()}

    return KeptMeasure(measure, notes)


def _scores(
    truth: Truth,
    pictures: Sequence[Picture],
    model: nn.Module,
    columns: Sequence[str],
    params: PredictParams,
    device: Device,
    plan: ClassPlan | None = None,
) -> Scores:
    """COCO's figures of a detector; with a plan, of its kept classes under the plan's names."""
    table = predict(
        model,
        pictures,
        batch_size=params.batch_size,
        device=device.device,
        columns=columns,
        precision=params.precision,
    )
    table = table if plan is None else rename_kept(table, plan)
    return score(truth, detections_of(table[table["name"].isin(truth.classes)], truth))
