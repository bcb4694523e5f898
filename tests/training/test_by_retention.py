"""A share chosen by what it keeps on images to replay that nothing was trained on."""

from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from topwork.dataset.split_images import SplitImages
from topwork.dataset.tables import Tables
from topwork.detectors.builders import load
from topwork.errors import ParamsError, TrainingError
from topwork.params.document import Params, parse_params
from topwork.params.finetune import FinetuneParams
from topwork.project.fetch import PRETRAINED
from topwork.project.finetune import FINETUNED, RECEIPT, RECORD, KeepingReceipt, RunRecord
from topwork.stages import finetune
from topwork.training.device import training_device
from topwork.training.interpolation import ALPHAS, MIXES, largest_that_keeps
from topwork.training.setup import held_replay, retention, training_set
from topwork.weights.format import read_weights
from training.test_branch_stage import PLAIN, planned
from training.tiny import make_project

PLAN: dict[str, Any] = {"person": "keep", "box": "new"}


def test_the_largest_that_keeps_enough_by_hand() -> None:
    found = {0.9: (0.30, 0.8), 0.6: (0.39, 0.7), 0.3: (0.40, 0.6)}

    def measure(share: float) -> dict[str, float]:
        return dict(zip(("person", "dog", "cat"), (*found[share], 0.0), strict=True))

    before = {"person": 0.4, "dog": 0.6, "cat": 0.0}
    assert largest_that_keeps((0.3, 0.6, 0.9), measure, before, 0.95) == (
        0.6,
        [(0.9, pytest.approx(0.75)), (0.6, pytest.approx(0.975))],
    )
    share, tried = largest_that_keeps((0.6, 0.9), measure, before, 0.99)
    assert (share, len(tried)) == (0.6, 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """A project whose pretrained detector finds persons."""
    folder = tmp_path_factory.mktemp("trained")
    first = {"epochs": 25, "validate_every": 0, "interpolation": "off", "distill": 0.0, "lr": 0.01}
    params = make_project(folder, **{**PLAIN, **first})
    with chdir(folder):
        finetune.run(params)
        FINETUNED.rename(PRETRAINED)
        params = planned(params, PLAN, epochs=4, lr=0.02, validate_every=0, replay=0.5)
    return folder, params


def held_ap(params: Params, path: Path) -> float:
    """AP of person on the images that the share is chosen on, by the file alone."""
    tables, weights = Tables.read(Path("out/validate")), read_weights(path, trust=True)
    device = training_device(params.finetune, "cpu")
    plan, images = params.surgery.plan(), SplitImages(tables)
    measure = retention(params, plan, tables, weights, images, device)  # type: ignore[arg-type]
    assert measure is not None
    return float(measure(load(weights))["person"])


def with_finetune(params: Params, **settings: Any) -> Params:
    made = FinetuneParams.model_validate({**params.finetune.model_dump(), **settings})
    return params.model_copy(update={"finetune": made})


def test_alpha_is_the_largest_that_keeps_enough(trained: tuple[Path, Params]) -> None:
    folder, params = trained
    with chdir(folder):
        asked = with_finetune(params, interpolation="retention", least_retention=0.9)
        before = held_ap(asked, PRETRAINED)
        assert before > 0.1
        finetune.run(asked)
        record = RunRecord.read(RECORD)
        kept = record.interpolation
        assert record.images == {"train": 12, "replay": 2}, "the other two are measured on"
        assert [row["alpha"] for row in kept.tried] == [
            share for share in sorted((*ALPHAS, 1.0), reverse=True) if share >= kept.alpha
        ]
        assert all(row["retention"] < 0.9 for row in kept.tried[:-1])
        assert kept.tried[-1]["retention"] >= 0.9 or kept.alpha == min(ALPHAS)
        # of the grafted detector, whose new rows may take a detection or two
        assert held_ap(asked, FINETUNED) / before == pytest.approx(
            kept.tried[-1]["retention"], abs=0.1
        )
        provenance = read_weights(FINETUNED, trust=True).provenance
        assert provenance["finetune"]["share"] == kept.alpha

        again = FINETUNED.read_bytes()
        finetune.run(asked)
        assert FINETUNED.read_bytes() == again


def test_none_keeps_enough_is_said(trained: tuple[Path, Params]) -> None:
    folder, params = trained
    with chdir(folder):
        finetune.run(
            with_finetune(params, interpolation="retention", least_retention=1.0, lr=0.5, epochs=3)
        )
        record = RunRecord.read(RECORD)
    assert record.interpolation.alpha == min(ALPHAS)
    assert any(
        "no share keeps 100% of every kept class" in note
        and "the smallest that is tried, 0.3" in note
        for note in record.notes
    )


def test_a_branchs_share_is_chosen(trained: tuple[Path, Params]) -> None:
    folder, params = trained
    with chdir(folder):
        asked = with_finetune(
            params,
            protect="branch",
            branch={"kept": "mix", "mix": "retention"},
            least_retention=0.95,
        )
        finetune.run(asked)
        weights = read_weights(FINETUNED, trust=True)
        assert weights.branches is not None
        kept = RunRecord.read(RECORD).interpolation
        assert kept.alpha == 1.0
        assert kept.tried[-1]["mix"] == weights.branches.mix
        assert weights.branches.mix in MIXES
        assert KeepingReceipt.read(RECEIPT).mix == weights.branches.mix
        assert RunRecord.read(RECORD).images == {"train": 12, "replay": 0}
        # the file alone gives what was measured
        assert held_ap(asked, FINETUNED) / held_ap(asked, PRETRAINED) == pytest.approx(
            kept.tried[-1]["retention"]
        )


def test_images_that_are_measured_on_are_not_trained_on(trained: tuple[Path, Params]) -> None:
    folder, params = trained
    with chdir(folder):
        tables = Tables.read(Path("out/validate"))
        grafted = read_weights(Path("out/surgery/grafted.safetensors"), trust=True)
        asked = with_finetune(params, interpolation="retention")
        data, train = training_set(asked, asked.surgery.plan(), tables, grafted)  # type: ignore[arg-type]
    held = held_replay(tables, asked.finetune)
    assert held == {0, 2}
    assert [data.name(index) for index in range(train, len(data))] == ["replay 1", "replay 3"]
    assert not held_replay(tables, params.finetune)
    assert held_replay(tables, with_finetune(asked, replay=0.0).finetune) == {0, 1, 2, 3}


def test_what_is_missing_is_said_before_training(trained: tuple[Path, Params]) -> None:
    folder, params = trained
    raw = params.model_dump(mode="json")
    raw["finetune"]["interpolation"] = "retention"
    raw["dataset"]["replay"] = None
    with pytest.raises(ParamsError, match=r"finetune\.interpolation: retention needs annotated"):
        parse_params(raw)
    raw["finetune"] |= {"protect": "branch", "branch": {"kept": "mix", "mix": "retention"}}
    with pytest.raises(ParamsError, match=r"finetune\.branch\.mix: retention needs annotated"):
        parse_params(raw)
    with chdir(folder):
        tables = Tables.read(Path("out/validate"))
        lacking = Tables(
            tables.images,
            tables.annotations[
                (tables.annotations["split"] != "replay") | (tables.annotations["category_id"] != 1)
            ],
            tables.categories,
        )
        asked = with_finetune(params, interpolation="retention")
        weights = read_weights(Path("out/surgery/grafted.safetensors"), trust=True)
        with pytest.raises(TrainingError, match=r"no object of person in the 2 images that"):
            retention(
                asked,  # type: ignore[arg-type]
                asked.surgery.plan(),
                lacking,
                weights,
                SplitImages(lacking),
                training_device(asked.finetune, "cpu"),
            )
