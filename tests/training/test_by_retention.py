"""A share chosen by what it keeps on images to replay that nothing was trained on."""

import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from topwork.classes import ClassPlan
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
from topwork.training.held_out import held_truth, replay_halves
from topwork.training.interpolation import ALPHAS, MIXES, largest_that_keeps
from topwork.training.measuring import kept_measure
from topwork.training.setup import training_set
from topwork.weights.format import read_weights
from training.test_branch_stage import PLAIN, planned
from training.tiny import make_project

PLAN: dict[str, Any] = {"person": "keep", "box": "new"}


def test_the_largest_that_keeps_enough_by_hand() -> None:
    found = {0.9: (0.75, 1.1), 0.6: (0.975, 1.0), 0.3: (1.0, 0.98)}

    def measure(share: float) -> dict[str, float]:
        return dict(zip(("person", "dog"), found[share], strict=True))

    assert largest_that_keeps((0.3, 0.6, 0.9), measure, 0.95) == (0.6, [(0.9, 0.75), (0.6, 0.975)])
    assert largest_that_keeps((0.6, 0.9), measure, 0.99) == (0.6, [(0.9, 0.75), (0.6, 0.975)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """A project whose pretrained detector finds persons."""
    folder = tmp_path_factory.mktemp("trained")
    first = {"epochs": 25, "validate_every": 0, "interpolation": "off", "distill": 0.0, "lr": 0.01}
    params = make_project(folder, to_replay=24, **{**PLAIN, **first})
    with chdir(folder):
        finetune.run(params)
        FINETUNED.rename(PRETRAINED)
        params = planned(params, PLAN, epochs=4, lr=0.02, validate_every=0, replay=0.5)
    return folder, params


def kept_in(params: Params, path: Path) -> float:
    """Retention of person on the images that the share is chosen on, by the files alone."""
    tables, weights = Tables.read(Path("out/validate")), read_weights(path, trust=True)
    pretrained = read_weights(PRETRAINED, trust=True)
    measure = kept_measure(
        params.surgery.plan(),
        tables,
        weights,
        pretrained,
        SplitImages(tables),
        params.finetune,
        params.predict,
        training_device(params.finetune, "cpu"),
    ).measure
    assert measure is not None
    return float(measure(load(weights))["person"])


def with_finetune(params: Params, **settings: Any) -> Params:
    made = FinetuneParams.model_validate({**params.finetune.model_dump(), **settings})
    return params.model_copy(update={"finetune": made})


def test_alpha_is_the_largest_that_keeps_enough(trained: tuple[Path, Params]) -> None:
    folder, params = trained
    with chdir(folder):
        asked = with_finetune(params, interpolation="retention", least_retention=0.9)
        finetune.run(asked)
        record = RunRecord.read(RECORD)
        kept = record.interpolation
        assert record.images == {"train": 12, "replay": 12}, "the other half is measured on"
        assert [row["alpha"] for row in kept.tried] == [
            share for share in sorted((*ALPHAS, 1.0), reverse=True) if share >= kept.alpha
        ]
        assert all(row["retention"] < 0.9 for row in kept.tried[:-1])
        assert kept.tried[-1]["retention"] >= 0.9 or kept.alpha == min(ALPHAS)
        assert kept_in(asked, FINETUNED) == pytest.approx(kept.tried[-1]["retention"])
        provenance = read_weights(FINETUNED, trust=True).provenance
        assert provenance["finetune"]["share"] == kept.alpha

        again = FINETUNED.read_bytes()
        finetune.run(asked)
        assert FINETUNED.read_bytes() == again


def test_none_keeps_enough_is_noted(trained: tuple[Path, Params]) -> None:
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
        assert kept_in(asked, FINETUNED) == pytest.approx(kept.tried[-1]["retention"])

        nothing = with_finetune(asked, epochs=0, head_epochs=0)
        finetune.run(nothing)
        weights = read_weights(FINETUNED, trust=True)
        assert weights.branches is not None
        assert weights.branches.mix == 0.0, "of a branch that learned nothing"


def test_images_that_are_measured_on_are_not_trained_on(trained: tuple[Path, Params]) -> None:
    folder, params = trained
    with chdir(folder):
        tables = Tables.read(Path("out/validate"))
        grafted = read_weights(Path("out/surgery/grafted.safetensors"), trust=True)
        asked = with_finetune(params, interpolation="retention")
        data, train = training_set(asked, asked.surgery.plan(), tables, grafted)  # type: ignore[arg-type]
    halves = frozenset(range(12)), frozenset(range(12, 24))
    assert replay_halves(tables, asked.finetune) == halves
    names = [data.name(index) for index in range(train, len(data))]
    assert names == [f"replay {number}" for number in range(12)]
    every, none = frozenset(range(24)), frozenset[int]()
    assert replay_halves(tables, params.finetune) == (every, none)
    assert replay_halves(tables, with_finetune(asked, replay=0.0).finetune) == (none, every)


def test_a_held_out_picture_that_is_trained_on_is_not_measured_on(
    trained: tuple[Path, Params], tmp_path: Path
) -> None:
    """20 is the same picture as one of train, 22 as one that is replayed, in an archive."""
    folder, params = trained
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    with chdir(tmp_path):
        shutil.copyfile("data/train/5.png", "data/replay/20.png")
        shutil.copyfile("data/replay/3.png", "data/replay/22.png")
        shutil.make_archive("packed", "zip", "data/replay")
        shutil.rmtree("data/replay")
        Path("packed.zip").rename("data/replay")
        finetune.run(with_finetune(params, interpolation="retention", epochs=1))
        record = RunRecord.read(RECORD)
    assert record.images == {"train": 12, "replay": 12}
    assert record.notes == (
        "2 of the 12 images of dataset.replay that are held out are copies of images that are"
        " trained on, and what is kept isn't measured on them: 20.png, 22.png",
    )


def test_what_is_missing_is_reported_before_training(trained: tuple[Path, Params]) -> None:
    _, params = trained
    raw = params.model_dump(mode="json")
    raw["finetune"]["interpolation"] = "retention"
    raw["dataset"]["replay"] = None
    with pytest.raises(ParamsError, match=r"finetune\.interpolation: retention needs annotated"):
        parse_params(raw)
    raw["finetune"] |= {
        "protect": "branch",
        "branch": {"kept": "mix", "mix": "retention"},
        "interpolation": "validation",
    }
    with pytest.raises(ParamsError, match=r"finetune\.branch\.mix: retention needs annotated"):
        parse_params(raw)
    raw["surgery"]["classes"] = {"person": {"like": "person"}, "box": "new"}
    with pytest.raises(ParamsError, match=r"surgery\.classes keeps none"):
        parse_params(raw)
    with pytest.raises(ParamsError, match=r"mix: retention chooses a share; write `kept: mix`"):
        parse_params({**raw, "finetune": {"branch": {"mix": "retention"}}})
    with pytest.raises(ParamsError, match=r"mix is 0.0, must lie between 0 and 1"):
        parse_params({**raw, "finetune": {"branch": {"mix": 0}}})


def test_a_choice_that_the_other_way_of_protecting_makes_is_refused(
    trained: tuple[Path, Params],
) -> None:
    """Asked for, and never made: what is kept would be whatever it is."""
    _, params = trained
    raw = params.model_dump(mode="json")
    raw["dataset"]["replay"] = raw["dataset"]["train"]
    mixed = {"kept": "mix", "mix": "retention"}
    raw["finetune"] = {"protect": "branch", "interpolation": "retention"}
    with pytest.raises(ParamsError, match=r"interpolation: retention .*protect: branch.*mix: rete"):
        parse_params(raw)
    raw["finetune"]["branch"] = mixed
    with pytest.raises(ParamsError, match=r"interpolation: retention .*protect: branch"):
        parse_params(raw)
    raw["finetune"] = {"protect": "weights", "branch": mixed}
    with pytest.raises(ParamsError, match=r"mix: retention .*protect: weights.*interpolation: ret"):
        parse_params(raw)
    for fine in (
        {"protect": "branch", "branch": mixed, "interpolation": 0.5},
        {"protect": "weights", "branch": {"kept": "mix", "mix": 0.1}},
    ):
        assert parse_params({**raw, "finetune": fine}).finetune.protect == fine["protect"]


def test_classes_with_too_few_objects_are_left_out_or_refused(
    trained: tuple[Path, Params],
) -> None:
    folder, params = trained
    tables = Tables.read(folder / "out/validate")
    asked = with_finetune(params, interpolation="retention").finetune
    plan = ClassPlan.parse({"person": "keep", "dog": "keep", "box": "new"})
    truth, notes = held_truth(plan, tables, asked)
    assert truth.classes == ("person",)
    assert truth.objects == {"person": 12}
    assert notes == (
        "what is kept isn't measured for dog (0): fewer than 10 objects in the 12 images of"
        " dataset.replay that are held out",
    )
    persons = tables.annotations["category_id"] == 1
    few = tables.annotations[~persons | (tables.annotations["image_id"] < 21)]
    with pytest.raises(TrainingError, match=r"none has 10 objects there: person \(9\), dog \(0\)"):
        held_truth(plan, Tables(tables.images, few, tables.categories), asked)


def test_one_image_is_not_replayed_and_measured_on_at_once(tmp_path: Path) -> None:
    params = make_project(tmp_path, to_replay=1, **PLAIN)
    asked = with_finetune(params, interpolation="retention")
    message = (
        r"dataset\.replay: 1 image, expected 2 or more: .* half .* is replayed .* other half"
        r".*`replay: 0`"
    )
    with chdir(tmp_path):
        with pytest.raises(TrainingError, match=message):
            finetune.run(asked)
        tables = Tables.read(Path("out/validate"))
        with pytest.raises(TrainingError, match=message):
            held_truth(asked.surgery.plan(), tables, asked.finetune)
    assert not (tmp_path / FINETUNED).exists()
    alone = with_finetune(asked, replay=0.0).finetune
    assert replay_halves(tables, alone) == (frozenset(), frozenset({0}))
    untrained = with_finetune(asked, epochs=0, head_epochs=0).finetune
    assert replay_halves(tables, untrained) == (frozenset({0}), frozenset()), "nothing is chosen"


def test_a_pretrained_detector_that_hardly_finds_any_is_reported(
    tmp_path: Path,
) -> None:
    """Its weights are random, so that no box is where a person is."""
    params = make_project(tmp_path, to_replay=24, **PLAIN)
    hardly = r"hardly finds kept classes in the 24 images .*AP of person 0\.0"
    with chdir(tmp_path), pytest.raises(TrainingError, match=hardly):
        finetune.run(with_finetune(params, interpolation="retention", replay=0.0))
    assert not (tmp_path / FINETUNED).exists()


def test_a_class_that_is_hardly_found_is_left_out(trained: tuple[Path, Params]) -> None:
    """Boxes are annotated where none is."""
    folder, params = trained
    with chdir(folder):
        tables = Tables.read(Path("out/validate"))
        moved = tables.annotations.copy()
        moved.loc[moved["category_id"] == 2, ["width", "height"]] = 2.0
        pretrained = read_weights(PRETRAINED, trust=True)
        kept = kept_measure(
            ClassPlan.parse({"person": "keep", "box": "keep", "thing": "new"}),
            Tables(tables.images, moved, tables.categories),
            pretrained,
            pretrained,
            SplitImages(tables),
            with_finetune(params, interpolation="retention").finetune,
            params.predict,
            training_device(params.finetune, "cpu"),
        )
        assert kept.measure is not None
        assert kept.measure(load(pretrained)) == {"person": 1.0}
    (note,) = kept.notes
    assert note.startswith("what is kept isn't measured of classes that the pretrained detector")
    assert "AP of box 0.0" in note
