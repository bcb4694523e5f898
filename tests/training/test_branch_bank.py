"""Features below a branch's cut are computed once, where the samples, the detector and memory allow
it; nothing else changes.
"""

from pathlib import Path

import pytest
import torch

from detectors import branching
from topwork.detectors.branches import Branched
from topwork.training.features import FeatureBank
from topwork.training.loop import fine_tune
from training.test_own_family import MakeJob, _losses, make_job

__all__ = ["make_job"]  # a fixture
BRANCHING = str(Path(branching.__file__).resolve())
SSD = f"{BRANCHING}:ssd"
EPOCHS, IMAGES = 4, 4


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that went through a lower trunk."""
    sizes: list[int] = []
    plain = Branched.below_cut

    def counted(self: Branched, pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        return plain(self, pixels)

    monkeypatch.setattr(Branched, "below_cut", counted)
    return sizes


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("head_epochs", [0, 1])
def test_a_kept_lower_trunk_gives_the_same_run(
    make_job: MakeJob, computed: list[int], batch_size: int, head_epochs: int
) -> None:
    options = {
        "protect": "branch",
        "epochs": EPOCHS,
        "head_epochs": head_epochs,
        "batch_size": batch_size,
        "freeze_batch_norm": False,  # the stock's rest whatever this says
    }
    without = fine_tune(make_job(SSD, **options, feature_cache_mib=0))
    assert computed == [1] + [batch_size] * (EPOCHS * IMAGES // batch_size)  # one to see its size
    computed.clear()
    served = fine_tune(make_job(SSD, **options, feature_cache_mib=64))
    assert computed == [1] * len(computed)
    assert IMAGES < len(computed) <= 2 * IMAGES  # pictures, mirrored or not
    exact = {"rtol": 0, "atol": 0} if batch_size == 1 else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(_losses(served), _losses(without), **exact)
    for name, tensor in without.weights.state_dict.items():
        torch.testing.assert_close(served.weights.state_dict[name], tensor, **exact)
    assert served.record.notes == without.record.notes == ()


@pytest.mark.parametrize(
    "options",
    [{"augmentation": "multiscale"}, {"branch": {"cut": "none"}}, {"epochs": 2}],
    ids=["every sample is new", "nothing is shared", "too few epochs"],
)
def test_nothing_is_kept_where_it_cannot_pay(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a bank is used")

    monkeypatch.setattr(FeatureBank, "mounted", never)
    job = make_job(SSD, **{"protect": "branch", "epochs": EPOCHS, "head_epochs": 0, **options})
    assert fine_tune(job).record.epochs == job.params.epochs


def test_a_detector_of_any_size_is_named(
    make_job: MakeJob, capsys: pytest.CaptureFixture[str]
) -> None:
    fine_tune(make_job(f"{BRANCHING}:fcos", protect="branch", epochs=3, head_epochs=1))
    message = "the frozen lower trunk's features aren't kept between epochs"
    assert capsys.readouterr().out.count(message) == 1
