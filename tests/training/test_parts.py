"""The parts of training, one by one."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

from topwork.detectors.families import family_of
from topwork.errors import DeviceError, TopworkError
from topwork.files import atomic_path
from topwork.params.finetune import FinetuneParams
from topwork.surgery.graft import graft
from topwork.training.augmentation import PRESETS, augmentation
from topwork.training.batches import ProcessRank, epoch_batches
from topwork.training.checkpoint import Checkpoints, restore_rng, rng_states, scratch_key
from topwork.training.device import (
    Device,
    determinism,
    loader_processes,
    training_device,
)
from topwork.training.distillation import Teacher
from topwork.training.interpolation import choose_alpha, interpolate
from topwork.training.masks import masks_of
from topwork.training.objective import Objective
from topwork.training.protection import Protection, RowMasks, row_masks
from topwork.training.schedule import Schedule
from training.tiny import SIDE, build, make_project, pretrained

CPU = Device(torch.device("cpu"), torch.float32, False)


# -- batches -----------------------------------------------------------------------------------


def test_an_epoch_shows_every_training_image_once() -> None:
    batches = epoch_batches(3, train=10, batch_size=4, seed=1)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(index for batch in batches for _, index in batch) == list(range(10))
    assert batches != epoch_batches(4, train=10, batch_size=4, seed=1)
    assert batches == epoch_batches(3, train=10, batch_size=4, seed=1)


def test_processes_share_an_epoch() -> None:
    processes = [ProcessRank(rank, 3) for rank in range(3)]
    taken = [epoch_batches(0, train=13, batch_size=2, process=process) for process in processes]
    assert len({len(batches) for batches in taken}) == 1
    seen = [index for batches in taken for batch in batches for _, index in batch]
    # the thirteenth would leave two processes without an image
    assert len(seen) == len(set(seen)) == 12


def test_replayed_images_take_their_fraction_and_all_get_their_turn() -> None:
    batches = [
        batch
        for epoch in range(2)
        for batch in epoch_batches(
            epoch, train=12, replay=5, replay_fraction=0.25, batch_size=8, seed=0
        )
    ]
    replayed = [[index for _, index in batch if index >= 12] for batch in batches]
    assert [len(batch) for batch in replayed] == [2, 2, 2, 2]
    assert {index for batch in replayed for index in batch} == {12, 13, 14, 15, 16}


# -- augmentation ------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_keep_boxes_valid(preset: str) -> None:
    from torchvision import tv_tensors

    transform = augmentation(preset)
    for seed in range(20):
        torch.manual_seed(seed)
        boxes = tv_tensors.BoundingBoxes(
            torch.tensor([[5.0, 5, 40, 60], [0, 0, 3, 3], [50, 10, 64, 20]]),
            format="XYXY",
            canvas_size=(SIDE, SIDE),
        )
        target = {"boxes": boxes, "labels": torch.tensor([1, 2, 3]), "image_id": 7}
        image, changed = transform(
            tv_tensors.Image(torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)), target
        )
        found = changed["boxes"]
        height, width = image.shape[-2:]
        assert len(found) == len(changed["labels"])
        assert (found[:, 2:] > found[:, :2]).all()
        assert found.numel() == 0 or (
            found.min() >= 0 and found[:, 0::2].max() <= width and found[:, 1::2].max() <= height
        )
        assert changed["image_id"] == 7


def test_masks_come_from_polygons_run_lengths_and_boxes() -> None:
    polygon = json.dumps([[1, 1, 5, 1, 5, 4, 1, 4]])
    runs = json.dumps({"size": [6, 8], "counts": [0, 6, 42]})  # the first column
    masks = masks_of(
        [polygon, runs, None],
        np.array([[1, 1, 5, 4], [0, 0, 1, 6], [2, 2, 4, 3]], dtype=float),
        (6, 8),
    )
    assert masks[0].sum() == 12
    assert masks[0][1:4, 1:5].all()
    assert masks[1].sum() == 6
    assert masks[1][:, 0].all()
    assert masks[2].sum() == 2
    assert masks[2][2, 2:4].all()


# -- protection --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def masks() -> dict[str, RowMasks]:
    weights = graft(pretrained(), {"person": "keep", "box": "new"}, dropped="absorb").weights
    return row_masks(weights, ["person"])


def test_row_masks_name_new_and_absorbed_rows(masks: dict[str, RowMasks]) -> None:
    for name, mask in masks.items():
        # columns: background, person, box, and car, tree, dog absorbed; 4 anchors... each
        if "classification_head" in name:
            anchors = mask.new.numel() // 6
            assert mask.new.flatten().int().tolist() == [0, 0, 1, 0, 0, 0] * anchors
            assert mask.absorbed.flatten().int().tolist() == [0, 0, 0, 1, 1, 1] * anchors


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_absorbed_rows_stay_to_the_bit_and_others_move(optimizer: str, fused: bool) -> None:
    layer = nn.Linear(3, 4)  # rows: background, kept, new, absorbed
    new, absorbed = (torch.arange(4) == kind for kind in (2, 3))
    masks = {
        "weight": RowMasks(new.reshape(4, 1), absorbed.reshape(4, 1)),
        "bias": RowMasks(new, absorbed),
    }
    before = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()
    protection = Protection(FinetuneParams(optimizer=optimizer, lr=0.1, weight_decay=0.1), masks)
    descent = protection.optimizer(layer, fused=fused)
    for _ in range(3):
        descent.zero_grad()
        layer(torch.ones(2, 3)).square().sum().backward()
        protection.before_step(layer)
        descent.step()
    after = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()
    assert (after == before).all(1).tolist() == [False, False, False, True]
    assert not (after == before)[:3].any()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_class_rows_get_no_weight_decay(optimizer: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 4))
    before = [layer.weight.detach().clone() for layer in model]
    masks = {"1.weight": RowMasks(*torch.zeros(2, 4, 1, dtype=torch.bool))}
    protection = Protection(FinetuneParams(optimizer=optimizer, lr=0.5, weight_decay=0.5), masks)
    descent = protection.optimizer(model, fused=False)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    protection.before_step(model)
    descent.step()
    torch.testing.assert_close(model[0].weight, 0.75 * before[0])
    assert torch.equal(model[1].weight, before[1])


def test_freezing_names_what_learns_and_what_does_not() -> None:
    model = nn.ModuleDict(
        {"backbone": nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), "head": nn.Linear(1, 1)}
    )
    protection = Protection(FinetuneParams(), {})
    model.train()
    protection.freeze(model, trunk=False)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "head.weight",
        "head.bias",
    }
    protection.freeze(model, trunk=True)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {
        "backbone.1.weight",
        "backbone.1.bias",
    }
    assert not model["backbone"][1].training


def test_learning_rates_by_hand() -> None:
    schedule = Schedule(
        FinetuneParams(epochs=4, head_epochs=1, lr=1.0, trunk_lr=0.5, warmup_steps=2), steps=10
    )
    assert schedule.head(0) == 0.5
    assert schedule.head(20) == pytest.approx(0.5)  # half of the cosine
    assert schedule.trunk(9) == 0.0
    assert schedule.trunk(10) == pytest.approx(0.5 * 0.5 * 0.5 * (1 + np.cos(np.pi / 4)))
    assert schedule.trunk(20) == pytest.approx(0.25)


# -- interpolation -----------------------------------------------------------------------------


def test_interpolation_by_hand() -> None:
    start = {"trunk": torch.zeros(2), "head": torch.zeros(3), "count": torch.tensor(1)}
    end = {"trunk": torch.ones(2), "head": torch.ones(3), "count": torch.tensor(9)}
    masks = {
        "head": RowMasks(torch.tensor([False, True, False]), torch.tensor([False, False, True]))
    }
    mixed = interpolate(start, end, 0.25, masks)
    assert mixed["trunk"].tolist() == [0.25, 0.25]
    assert mixed["head"].tolist() == [0.25, 1.0, 0.25]
    assert mixed["count"] == 9
    assert all(
        torch.equal(value, end[name]) for name, value in interpolate(start, end, 1.0, masks).items()
    )


def test_the_smallest_alpha_that_costs_nothing_is_chosen() -> None:
    start, end = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    worth = {1.0: 0.5, 0.9: 0.52, 0.8: 0.53, 0.7: 0.52, 0.6: 0.515, 0.5: 0.4}
    alpha, tried = choose_alpha(
        start,
        end,
        {},
        FinetuneParams(),
        lambda tensors: {"map": worth[round(float(tensors["w"]), 6)]},
    )
    assert alpha == 0.7
    # below that it only falls
    assert [row["alpha"] for row in tried] == [
        1.0,
        0.9,
        0.8,
        0.7,
        0.6,
        0.5,
    ]
    assert choose_alpha(start, end, {}, FinetuneParams(interpolation=0.3), None) == (0.3, [])
    assert choose_alpha(start, end, {}, FinetuneParams(interpolation="off"), None) == (1.0, [])


# -- checkpoints -------------------------------------------------------------------------------


def test_a_run_of_the_same_key_that_ends_meanwhile_takes_nothing_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It removes the folder that both write to, at the worst moments."""
    folder = tmp_path / "key"
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, {"step": 1})
    ended = []

    @contextmanager
    def ends_meanwhile(path: Path) -> Iterator[Path]:
        with atomic_path(path) as temporary:
            if not ended:
                ended.append(path)
                shutil.rmtree(folder)
            yield temporary

    monkeypatch.setattr("topwork.training.checkpoint.atomic_path", ends_meanwhile)
    checkpoints.save(2, {"step": 2})
    assert ended
    assert checkpoints.latest() == {"step": 2}
    listed = checkpoints.files()
    shutil.rmtree(folder)
    monkeypatch.setattr(Checkpoints, "files", lambda _: listed)
    assert checkpoints.latest() is None


def test_generators_go_on_where_they_were() -> None:
    import random

    states = rng_states()
    first = (torch.rand(2).tolist(), random.random(), np.random.rand())
    restore_rng(states)
    assert (torch.rand(2).tolist(), random.random(), np.random.rand()) == first


def test_a_checkpoint_comes_back_whole_and_the_last_two_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    for step in (1, 2, 3):
        checkpoints.save(step, {"step": step, "rng": rng_states()})
    assert [path.name for path in checkpoints.files()] == [
        "000000002.checkpoint",
        "000000003.checkpoint",
    ]
    assert checkpoints.latest()["step"] == 3
    checkpoints.files()[-1].write_bytes(b"")
    assert checkpoints.latest()["step"] == 2


def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"step": 1})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("topwork.files.os.fsync", full)
    with pytest.raises(
        TopworkError, match=r"000000002.checkpoint: can't be written \(No space left on device\)"
    ):
        checkpoints.save(2, {"step": 2})
    assert checkpoints.latest() == {"step": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_the_scratch_key_knows_every_input() -> None:
    assert (
        scratch_key({"a": 1, "b": 2})
        == scratch_key({"b": 2, "a": 1})
        != scratch_key({"a": 1, "b": 3})
    )


# -- device ------------------------------------------------------------------------------------


def test_half_precision_on_a_cpu_is_refused() -> None:
    with pytest.raises(DeviceError, match="float16 on a CPU"):
        training_device(FinetuneParams(precision="float16"), "cpu")


def test_levels_of_determinism() -> None:
    assert determinism(FinetuneParams(), CPU)[0] == "bit-exact"
    assert determinism(FinetuneParams(deterministic=False), CPU)[0] == "statistical"
    assert (
        determinism(FinetuneParams(), Device(torch.device("cuda"), torch.bfloat16, False))[0]
        == "same-device"
    )


def test_project_fixture_is_what_the_stage_reads(tmp_path: Path) -> None:
    assert make_project(tmp_path).finetune.epochs == 4


# -- distillation ------------------------------------------------------------------------------


def _gradients(
    label: int, columns: list[int], teacher: nn.Module
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the distillation with one annotated box: the logits' gradient at each anchor, which
    anchors lie on the box, what the teacher sees there.
    """
    torch.manual_seed(0)
    student = build(4).train()
    objective = Objective(
        student,
        FinetuneParams(),
        Teacher(teacher, student, family_of(student), columns, softmax=True),
    )
    recorded: dict[str, torch.Tensor] = {}

    def record(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        recorded["logits"] = output

    student.head.classification_head.register_forward_hook(record, prepend=True)
    student.anchor_generator.register_forward_hook(
        lambda module, inputs, output: recorded.update(anchors=output[0])
    )
    handle = teacher.head.classification_head.register_forward_hook(
        lambda module, inputs, output: recorded.update(teacher=output), prepend=True
    )
    box = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
    objective([torch.rand(3, SIDE, SIDE)], [{"boxes": box, "labels": torch.tensor([label])}])[
        "distill_classes"
    ].backward()
    handle.remove()
    return (
        recorded["logits"].grad[0].abs().sum(-1),
        box_iou(recorded["anchors"], box)[:, 0] >= 0.4,
        recorded["teacher"][0][:, columns].softmax(-1),
    )


def test_on_a_new_classs_object_the_teacher_has_no_weight() -> None:
    torch.manual_seed(1)
    gradients, annotated, _ = _gradients(2, [0, 1, 3], build(4))
    assert 0 < annotated.sum() < len(annotated)
    assert torch.equal(gradients > 0, ~annotated)


def test_on_a_kept_classs_object_the_teacher_counts_as_far_as_it_sees_that_class() -> None:
    def teacher(bias: float) -> nn.Module:
        torch.manual_seed(1)
        model = build(4)
        with torch.no_grad():
            for _, parameter in model.head.classification_head.named_parameters():
                if parameter.dim() == 1:
                    parameter.view(-1, 4)[:, 1] += bias
        return model

    blind, annotated, seen = _gradients(1, [0, 1, 3], teacher(-30.0))
    assert seen[annotated, 1].max() < 1e-6
    assert blind[annotated].max() < 1e-6 * blind[~annotated].max()
    sure, annotated, seen = _gradients(1, [0, 1, 3], teacher(+30.0))
    assert seen[annotated, 1].min() > 0.999
    assert sure[annotated].min() > 0


def test_loader_processes_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = Device(torch.device("cpu"), torch.float32, False)
    gpu = Device(torch.device("cuda"), torch.bfloat16, False)
    monkeypatch.setattr("topwork.training.device.usable_cores", lambda: 16)
    assert [loader_processes("auto", cpu), loader_processes(3, cpu)] == [1, 3]
    assert [loader_processes("auto", gpu, n) for n in (1, 2, 4, 32)] == [12, 8, 4, 1]
    assert loader_processes(0, gpu, 2) == 0
