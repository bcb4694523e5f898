"""The stage `finetune` with a second branch, and with a further one on its result."""

from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch

from topwork import verify_graft
from topwork.classes import ClassPlan
from topwork.detectors.builders import load
from topwork.errors import TopworkError
from topwork.params.document import Params
from topwork.project.fetch import PRETRAINED
from topwork.project.finetune import FINETUNED, RECEIPT, RECORD, RunRecord
from topwork.project.surgery import GRAFTED
from topwork.stages import finetune
from topwork.surgery.graft import graft
from topwork.weights.branches import own_plan, stock_of
from topwork.weights.format import read_weights, write_weights
from training.tiny import make_project

PLAIN = {"ema": None, "early_stop": None, "epochs": 2, "augmentation": "hflip"}


def planned(params: Params, classes: dict[str, Any], **settings: Any) -> Params:
    """The params with other classes, and the surgery done by them."""
    source = read_weights(PRETRAINED, trust=True)
    plan = ClassPlan.parse(classes, dropped="absorb")
    write_weights(GRAFTED, graft(stock_of(source), own_plan(source, plan)).weights)
    return params.model_copy(
        update={
            "surgery": params.surgery.model_copy(update={"classes": classes}),
            "finetune": params.finetune.model_copy(update=settings),
        }
    )


def seen(path: Path, name: str) -> list[dict[str, torch.Tensor]]:
    """Detections of one class on two pictures."""
    model = load(read_weights(path, trust=True))
    label = model.columns.index(name)
    made = torch.Generator().manual_seed(3)
    with torch.no_grad():
        found = model([torch.rand(3, 64, 64, generator=made) for _ in range(2)])
    return [
        {key: item[key][item["labels"] == label] for key in ("boxes", "scores")} for item in found
    ]


def same(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a[key], b[key]) for a, b in pairs for key in a)


def test_a_branch_and_a_further_one_on_its_result(tmp_path: Path) -> None:
    params = make_project(tmp_path, protect="branch", distill=1.0, replay=0.5, **PLAIN)
    with chdir(tmp_path):
        finetune.run(params)
        first = read_weights(FINETUNED, trust=True)
        assert first.branches is not None
        assert first.provenance["finetune"]["share"] == 1.0
        assert same(seen(FINETUNED, "person"), seen(PRETRAINED, "person"))
        record = RunRecord.read(RECORD)
        assert record.images == {"train": 12, "replay": 0}
        assert not any("forgotten" in note or "distill" in note for note in record.notes)
        held = verify_graft(PRETRAINED, FINETUNED, RECEIPT, trust=True)
        assert "kept exactly: person" in held

        FINETUNED.rename(PRETRAINED)
        further = planned(params, {"person": "keep", "box": "keep", "thing": "new", "dog": "keep"})
        finetune.run(further)
        second = read_weights(FINETUNED, trust=True)
        assert second.branches is not None
        assert [scion.learned for scion in second.branches.scions] == [("box",), ("thing",)]
        for name in ("person", "box"):
            assert same(seen(FINETUNED, name), seen(PRETRAINED, name)), name
        held = verify_graft(PRETRAINED, FINETUNED, RECEIPT, trust=True)
        assert "kept exactly: person, box, dog" in held

        # without anything new: handed on as it is, or refused
        keeps = {"box": "keep", "person": "keep"}
        with pytest.raises(TopworkError, match=r"keeps every class, so that no branch"):
            finetune.run(planned(params, keeps))
        finetune.run(planned(params, keeps, epochs=0, head_epochs=0))
        assert same(seen(FINETUNED, "box"), seen(PRETRAINED, "box"))
        assert "kept exactly: box, person" in verify_graft(
            PRETRAINED, FINETUNED, RECEIPT, trust=True
        )


def test_a_branch_trains_under_autocast_and_with_a_frozen_trunk(tmp_path: Path) -> None:
    for number, settings in enumerate(({"precision": "bfloat16"}, {"trunk_lr": 0.0, "epochs": 4})):
        folder = tmp_path / str(number)
        params = make_project(folder, protect="branch", **{**PLAIN, **settings})
        with chdir(folder):
            finetune.run(params)
            assert same(seen(FINETUNED, "person"), seen(PRETRAINED, "person"))
            before = load(read_weights(PRETRAINED, trust=True)).state_dict()
            scion = load(read_weights(FINETUNED, trust=True)).scion.state_dict()
            high = "backbone.high.0.weight"
            assert torch.equal(scion[high], before[high]) == (number == 1)


def test_branches_are_not_trained_as_one(tmp_path: Path) -> None:
    params = make_project(tmp_path, protect="branch", **PLAIN)
    with chdir(tmp_path):
        finetune.run(params)
        FINETUNED.rename(PRETRAINED)
        alone = params.model_copy(
            update={"finetune": params.finetune.model_copy(update={"protect": "weights"})}
        )
        with pytest.raises(TopworkError, match=r"holds a detector with branches on it"):
            finetune.run(alone)
