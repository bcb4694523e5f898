"""The loop as a whole, on a tiny detector."""

import math
from collections.abc import Callable
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from topwork.dataset.split_images import SplitImages
from topwork.dataset.tables import Tables
from topwork.errors import TrainingError
from topwork.params.finetune import FinetuneParams
from topwork.params.runtime import RuntimeParams
from topwork.project.unlabelled import BOXES
from topwork.training import loop
from topwork.training.checkpoint import Checkpoints
from topwork.training.device import training_device
from topwork.training.loop import Job, _Run, fine_tune
from topwork.training.measuring import validation
from topwork.training.objective import Objective
from topwork.training.protection import row_masks
from topwork.training.setup import training_set
from topwork.weights.format import read_weights
from training.tiny import make_project

MakeJob = Callable[..., Job]


@pytest.fixture(scope="module")
def make_job(tmp_path_factory: pytest.TempPathFactory) -> MakeJob:
    folder = tmp_path_factory.mktemp("loop")
    base = make_project(folder)

    def make(runtime: RuntimeParams = base.runtime, **options: object) -> Job:
        finetune = FinetuneParams.model_validate(
            {
                **base.finetune.model_dump(),
                "ema": None,
                "early_stop": None,
                "augmentation": "hflip",
                "interpolation": "off",
                **options,
            }
        )
        params = base.model_copy(update={"finetune": finetune, "runtime": runtime})
        plan = params.surgery.plan()
        tables = Tables.read(folder / "out/validate")
        weights = read_weights(folder / "out/surgery/grafted.safetensors", trust=True)
        with chdir(folder):
            dataset, train = training_set(params, plan, tables, weights, pd.read_parquet(BOXES))
            device = training_device(finetune, runtime.device)
            validate = validation(
                tables, weights, SplitImages(tables, folder), params.predict, device
            )
            dataset.preload()
        return Job(
            weights,
            tuple(plan.kept),
            dataset,
            train,
            finetune,
            device,
            runtime,
            validate,
            shown=False,
        )

    return make


def _flat(job: Job) -> torch.Tensor:
    return torch.cat(
        [tensor.flatten().double() for tensor in fine_tune(job).weights.state_dict.values()]
    )


def test_the_loss_falls(make_job: MakeJob) -> None:
    history = fine_tune(make_job(epochs=8, validate_every=0, distill=0.0)).record.history
    assert history[-1]["train/loss"] < 0.95 * history[0]["train/loss"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_absorbed_rows_end_as_they_began(make_job: MakeJob, optimizer: str) -> None:
    job = make_job(optimizer=optimizer, lr=0.01, weight_decay=0.5, epochs=1)
    after, before = fine_tune(job).weights.state_dict, job.weights.state_dict
    for name, mask in row_masks(job.weights, job.kept).items():
        rows = mask.absorbed.expand_as(before[name])
        assert torch.equal(after[name][rows], before[name][rows]), name
        assert rows.any() == ("classification" in name), name
        assert not torch.equal(after[name][~rows], before[name][~rows]), name


@pytest.mark.parametrize("head_epochs", [0, 1])
def test_no_epoch_changes_nothing(make_job: MakeJob, head_epochs: int) -> None:
    """0 epochs need no second key, though head_epochs is 1 unless it's given."""
    job = make_job(epochs=0, head_epochs=head_epochs)
    outcome = fine_tune(job)
    assert all(
        torch.equal(tensor, job.weights.state_dict[name])
        for name, tensor in outcome.weights.state_dict.items()
    )


def test_a_frozen_trunk_is_bit_identical_and_the_head_is_not(make_job: MakeJob) -> None:
    job = make_job(epochs=1, head_epochs=1)
    found = fine_tune(job).weights.state_dict
    same = {
        name for name, tensor in found.items() if torch.equal(tensor, job.weights.state_dict[name])
    }
    assert {name for name in found if name.startswith("backbone.")} <= same
    assert {name for name in found if name.startswith("head.")}.isdisjoint(same)


def test_micro_batches_give_the_same_step_where_losses_are_means_of_images(
    make_job: MakeJob,
) -> None:
    record = fine_tune(make_job(epochs=1, head_epochs=0, accumulate=2)).record
    assert record.accumulate == 2


def test_teacher_boxes_are_added(make_job: MakeJob) -> None:
    with_boxes, without = make_job(), make_job(teacher_boxes=False)
    assert len(with_boxes.dataset.items[0].labels) == len(without.dataset.items[0].labels) + 1
    assert len(make_job(teacher_min_score=0.95).dataset.items[0].labels) == len(
        without.dataset.items[0].labels
    )


def test_distillation_starts_at_nothing_and_keeps_pretrained_classes_closer(
    make_job: MakeJob,
) -> None:
    def drift(distill: float) -> list[float]:
        record = fine_tune(
            make_job(epochs=4, distill=distill, distill_boxes=0.0, head_epochs=0, validate_every=0)
        ).record
        return [row["train/distill_classes"] / distill for row in record.history]

    barely, firmly = drift(1e-6), drift(20.0)
    assert firmly[-1] < 0.7 * barely[-1]
    assert barely[0] < barely[-1]


@pytest.mark.parametrize(
    ("finetune", "count"),
    [({"distill": 0.0, "replay": 0.0}, 1), ({"distill": 0.0}, 0), ({"replay": 0.0}, 0)],
)
def test_a_run_that_holds_nothing_says_so(
    make_job: MakeJob, capsys: pytest.CaptureFixture[str], finetune: dict, count: int
) -> None:
    job = replace(make_job(epochs=1, **finetune), shown=True)
    notes = fine_tune(job).record.notes
    assert len(notes) == count
    assert all(note.startswith("person may be forgotten: no images to replay") for note in notes)
    assert capsys.readouterr().out.count("person may be forgotten") == count


def test_a_non_finite_loss_names_epoch_step_images_and_terms(make_job: MakeJob) -> None:
    job = make_job(clip_norm=None, epochs=3, head_epochs=0)
    broken = {name: tensor.clone() for name, tensor in job.weights.state_dict.items()}
    broken["head.regression_head.module_list.0.bias"][0] = float("nan")
    with pytest.raises(
        TrainingError,
        match=(
            r"isn't finite at epoch 1, step 1: .*bbox_regression nan.*images: train \d+, train \d+"
        ),
    ):
        fine_tune(replace(job, weights=replace(job.weights, state_dict=broken)))


def test_a_non_finite_loss_names_its_micro_batch_and_leaves_no_checkpoint(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(
        make_job(epochs=1, head_epochs=0, accumulate=4, clip_norm=None),
        scratch=tmp_path,
        runtime=RuntimeParams(workers=0, checkpoint_steps=1),
    )
    run = _Run(job)
    keys = run._batches(0)[1]
    plain = Objective.forward
    calls = iter(range(1000))

    def broken(self: Objective, images, targets):
        terms = plain(self, images, targets)
        return {n: t * float("nan") for n, t in terms.items()} if next(calls) == 4 + 2 else terms

    monkeypatch.setattr(Objective, "forward", broken)
    size = math.ceil(len(keys) / 4)
    named = ", ".join(job.dataset.name(index) for _, index in keys[2 * size : 3 * size])
    with pytest.raises(TrainingError, match=rf"epoch 1, step 2: .*; images: {named}\. Lower"):
        run.to_end()
    saved = Checkpoints(tmp_path).latest()
    assert saved is not None
    assert saved["step"] == 1
    assert all(bool(t.isfinite().all()) for t in saved["model"].values() if t.is_floating_point())


def test_out_of_memory_halves_the_micro_batch_says_so_and_goes_on(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loop.gradients

    def small(module, images, targets, state, *rest):
        if len(images) / state.accumulate > 2:
            raise torch.OutOfMemoryError("pretended")
        return plain(module, images, targets, state, *rest)

    monkeypatch.setattr(loop, "gradients", small)
    record = fine_tune(make_job(epochs=1, head_epochs=0)).record
    assert record.accumulate == 2
    assert list(record.notes) == [
        "out of memory at epoch 1, step 1: from there on each step is made of 2 micro-batches"
    ]


def test_out_of_memory_with_one_image_is_an_error(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise torch.OutOfMemoryError("pretended")

    monkeypatch.setattr(loop, "gradients", never)
    with pytest.raises(TrainingError, match="out of memory with 1 images at a time"):
        fine_tune(make_job(epochs=1, head_epochs=0))


def test_early_stop_keeps_the_best(make_job: MakeJob) -> None:
    job = make_job(epochs=6, head_epochs=0, early_stop=2, validate_every=1)
    figures = iter([0.1, 0.5, 0.4, 0.3, 0.9, 0.9])
    record = fine_tune(replace(job, validate=lambda _: {"map": next(figures)})).record
    assert record.stopped_early
    assert record.epochs == 4


def test_replayed_images_are_counted(make_job: MakeJob) -> None:
    assert fine_tune(make_job(epochs=1)).record.images == {"train": 12, "replay": 4}


def test_curves_are_written(make_job: MakeJob, tmp_path: Path) -> None:
    fine_tune(replace(make_job(epochs=2, validate_every=1), curves=tmp_path / "curves"))
    lines = (tmp_path / "curves/plots/metrics/train/loss.tsv").read_text().splitlines()
    assert lines[0] == "step\tloss"
    assert [line.split("\t")[0] for line in lines[1:]] == ["1", "2"]
    assert (tmp_path / "curves/plots/metrics/val/map.tsv").exists()
