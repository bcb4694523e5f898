"""A detector that isn't torchvision's is distilled and served from the feature bank once its
builder declares a family; what the family lacks is in a message.
"""

from collections.abc import Callable
from contextlib import chdir
from dataclasses import replace
from math import isfinite
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from detectors import efficient, tiny
from topwork.dataset.tables import Tables
from topwork.detectors.builders import build
from topwork.detectors.families import UNDECLARED, family_of, feature_maps
from topwork.errors import SurgeryError
from topwork.params.finetune import FinetuneParams
from topwork.params.runtime import RuntimeParams
from topwork.project.unlabelled import BOXES
from topwork.surgery.branch import branch
from topwork.surgery.graft import graft
from topwork.training.device import training_device
from topwork.training.distillation import Teacher
from topwork.training.features import FeatureBank
from topwork.training.frozen_norm import fold_frozen_norms
from topwork.training.loop import Job, fine_tune
from topwork.training.outcome import Outcome
from topwork.training.setup import training_set
from topwork.weights.format import Weights
from training.tiny import make_project

COLUMNS = ("__background__", "person", "car", "tree", "dog")
EFFICIENT = str(Path(efficient.__file__).resolve())
TINY = str(Path(tiny.__file__).resolve())
MakeJob = Callable[..., Job]


@pytest.fixture(scope="module")
def make_job(tmp_path_factory: pytest.TempPathFactory) -> MakeJob:
    folder = tmp_path_factory.mktemp("own")
    base = make_project(folder, train=4)
    tables = Tables.read(folder / "out/validate")

    def make(
        builder: str = f"{EFFICIENT}:detector",
        builder_args: dict[str, object] | None = None,
        **options: object,
    ) -> Job:
        finetune = FinetuneParams.model_validate(
            {
                **base.finetune.model_dump(),
                "ema": None,
                "early_stop": None,
                "augmentation": "hflip",
                "interpolation": "off",
                "validate_every": 0,
                "epochs": 3,
                "lr": 1e-3,
                "replay": 0.0,
                **options,
            }
        )
        params = base.model_copy(update={"finetune": finetune})
        plan = params.surgery.plan()
        torch.manual_seed(0)
        source = build(builder, len(COLUMNS), builder_args).state_dict()
        pretrained = Weights(source, COLUMNS, builder, builder_args or {})
        cut = finetune.branch.cut
        branched = finetune.protect == "branch"
        weights = branch(pretrained, plan, cut=cut) if branched else graft(pretrained, plan).weights
        with chdir(folder):
            dataset, train = training_set(params, plan, tables, weights, pd.read_parquet(BOXES))
            dataset.preload()
        device = training_device(finetune, "cpu")
        runtime = RuntimeParams(device="cpu", workers=0)
        return Job(weights, tuple(plan.kept), dataset, train, finetune, device, runtime)

    return make


def _losses(outcome: Outcome) -> torch.Tensor:
    terms = sorted(name for name in outcome.record.history[0] if name.startswith("train/"))
    return torch.tensor([[row[name] for name in terms] for row in outcome.record.history])


def test_an_efficientdet_is_distilled(make_job: MakeJob) -> None:
    outcome = fine_tune(make_job(head_epochs=1, epochs=2))
    assert not outcome.record.notes
    for row in outcome.record.history:
        assert isfinite(row["train/loss"])
        assert isfinite(row["train/distill_classes"])
        assert isfinite(row["train/distill_boxes"])
    last = outcome.record.history[-1]
    assert last["train/distill_classes"] > 0
    assert last["train/distill_boxes"] > 0


def test_its_teacher_starts_at_nothing_and_pulls_back(make_job: MakeJob) -> None:
    def drift(distill: float) -> list[float]:
        record = fine_tune(make_job(head_epochs=0, epochs=4, distill=distill)).record
        return [row["train/distill_classes"] / distill for row in record.history]

    barely, firmly = drift(1e-6), drift(20.0)
    assert barely[0] < barely[-1]
    assert firmly[-1] < 0.7 * barely[-1]


@pytest.mark.parametrize(
    "builder", [f"{EFFICIENT}:detector", f"{TINY}:ssd"], ids=["efficientdet", "ssd"]
)
def test_a_frozen_trunk_is_served_from_the_bank_with_the_same_losses(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, builder: str
) -> None:
    mounted: list[int] = []
    plain = FeatureBank.mounted
    monkeypatch.setattr(
        FeatureBank,
        "mounted",
        lambda bank, targets: mounted.append(len(targets)) or plain(bank, targets),  # type: ignore[func-returns-value]
    )
    without = fine_tune(make_job(builder, trunk_lr=0.0, feature_cache_mib=0))
    assert not mounted
    served = fine_tune(make_job(builder, trunk_lr=0.0, feature_cache_mib=256))
    assert sum(mounted) == 3 * 4
    torch.testing.assert_close(_losses(served), _losses(without), rtol=1e-3, atol=1e-6)
    assert served.record.notes == without.record.notes == ()


def test_a_run_goes_on_from_the_bank_to_a_thawed_trunk(make_job: MakeJob) -> None:
    banked, loaded = (
        fine_tune(
            make_job(f"{TINY}:ssd", head_epochs=3, epochs=5, replay=0.25, feature_cache_mib=mib)
        )
        for mib in (256, 0)
    )
    assert banked.record.epochs == 5
    torch.testing.assert_close(_losses(banked), _losses(loaded), rtol=1e-3, atol=1e-6)
    trunk = [name for name in banked.weights.state_dict if name.startswith("backbone.")]
    start = make_job(f"{TINY}:ssd").weights.state_dict
    assert not any(torch.equal(banked.weights.state_dict[name], start[name]) for name in trunk)


@pytest.mark.parametrize(
    ("builder", "builder_args", "message"),
    [
        (f"{EFFICIENT}:detector", {"drop_path": 0.9}, "its trunk draws random numbers"),
        (f"{TINY}:retinanet", {}, "it doesn't resize every image to one size"),
    ],
    ids=["random trunk", "images of any size"],
)
def test_a_bank_that_the_detector_rules_out_is_named(
    make_job: MakeJob,
    capsys: pytest.CaptureFixture[str],
    builder: str,
    builder_args: dict[str, object],
    message: str,
) -> None:
    fine_tune(make_job(builder, builder_args, trunk_lr=0.0, feature_cache_mib=256))
    assert message in capsys.readouterr().out


def test_a_bank_refuses_a_trunk_that_learns(make_job: MakeJob) -> None:
    job = make_job(trunk_lr=0.0)
    model = efficient.detector(3)
    family = replace(family_of(model, efficient.detector), trunk=("trunk.backbone.",))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(family.trunk))
    bank, message = FeatureBank.where_it_pays(model, family, job.dataset, job.device, job.params)
    assert bank is None
    assert message is not None
    assert "parameters of its 'trunk' don't belong to the trunk" in message


def test_a_family_whose_trunk_has_another_name_has_no_bank(make_job: MakeJob) -> None:
    job = make_job(trunk_lr=0.0)
    model = efficient.detector(3)
    family = replace(
        family_of(model, efficient.detector), input_size=None, backbone="elsewhere", trunk=()
    )
    bank, message = FeatureBank.where_it_pays(model, family, job.dataset, job.device, job.params)
    assert bank is None
    assert message is not None
    assert message.endswith("declares no `input_size`")


def test_what_a_family_does_not_declare_is_named_in_the_record(make_job: MakeJob) -> None:
    notes = fine_tune(make_job(f"{EFFICIENT}:without_boxes", epochs=1)).record.notes
    assert notes[0] == (
        "distillation left out: the detector's family 'efficientdet-whole' doesn't declare"
        " box_head, anchors (docs/surgery.md)"
    )
    assert UNDECLARED.missing_for_distillation() == ["score_head", "box_head", "anchors"]


def test_a_declared_path_that_leads_nowhere_is_an_error() -> None:
    model = efficient.detector(3)
    family = replace(family_of(model, efficient.detector), box_head="boxes_net")
    with pytest.raises(
        SurgeryError, match=r"family 'efficientdet-whole': Detector has no module 'boxes_net'"
    ):
        Teacher(model, model, family, [1], softmax=False)


def test_a_trunk_gives_a_tensor_or_a_dict() -> None:
    one = torch.zeros(1)
    assert feature_maps(UNDECLARED, one) == {"0": one}
    assert feature_maps(UNDECLARED, {"low": one}) == {"low": one}
    with pytest.raises(SurgeryError, match=r"'undeclared': its backbone 'backbone' gives list"):
        feature_maps(UNDECLARED, [one])


def test_a_norm_with_an_activation_of_its_own_is_not_folded() -> None:
    """timm's batch norms are subclasses that apply an activation, too."""

    class NormAndReLU(nn.BatchNorm2d):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return super().forward(features).relu()

    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), NormAndReLU(4)).eval()
    pixels = torch.randn(1, 3, 5, 5)
    expected = model(pixels)
    assert fold_frozen_norms(model) == 0
    assert torch.equal(model(pixels), expected)
