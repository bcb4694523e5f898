"""A class that is kept exactly: what proves it, what contradicts it, and what is refused before
anything trains.
"""

import hashlib
from typing import Any

import pandas as pd
import pytest

from topwork.errors import ParamsError
from topwork.evaluation.exactness import prove
from topwork.evaluation.retention import contract_record
from topwork.params.document import parse_params
from topwork.params.retention import KeepParams
from topwork.project.finetune import FileHashes, KeepingReceipt, KeptTensor
from topwork.project.predictions import PredictionRecord

HASH = hashlib.sha256(b"").hexdigest()


def receipt(*exact: str) -> KeepingReceipt:
    hashes = FileHashes(sha256=HASH, file_sha256=HASH)
    kept = {
        part: KeptTensor(name=part, dtype="float32", shape=(1,), sha256=HASH, part=part)
        for part in ("stock", "scion")
    }
    return KeepingReceipt(
        topwork_keeping_receipt=1,
        protect="branch",
        builder="ssd300_vgg16",
        builder_args={},
        source=hashes,
        result=hashes,
        columns=("__background__", "person", "helmet"),
        kept={"person": "person"},
        exact=exact,
        mix=0.0,
        shared=1,
        scions=(),
        tensors=tuple(kept.values()),
        sha256=HASH,
    )


def record(batch_size: int = 8, threads: int = 2) -> PredictionRecord:
    return PredictionRecord(
        machine={"device": "cpu", "threads": threads}, batch_size=batch_size, weights={}, splits={}
    )


def boxes(*scores: float, name: str = "person") -> pd.DataFrame:
    rows = [
        {"image_id": 7, "name": name, "score": s, "x": 1.0, "y": 2.0, "width": 3.0, "height": 4.0}
        for s in scores
    ]
    return pd.DataFrame(rows)


BOTH = {"pretrained": record(), "finetuned": record()}


def test_a_class_is_proved_by_the_receipt_and_its_detections_agree() -> None:
    theirs = pd.concat([boxes(0.9, 0.5), boxes(0.7, name="helmet")], ignore_index=True)
    found = prove("person", receipt("person"), BOTH, {"test": (boxes(0.9, 0.5), theirs)})
    assert found.holds
    assert found.sentence == (
        "exact: proved, all 1 tensors that give it are the pretrained detector's; detections equal"
        " on all held-out images (1 with the class)"
    )


def test_a_last_digit_that_differs_is_a_breach_that_names_the_set() -> None:
    off = boxes(0.9, 0.5 + 1e-12)
    found = prove("person", receipt("person"), BOTH, {"source": (boxes(0.9, 0.5), off)})
    assert not found.holds
    assert "but detections of 1 images on source differ" in found.sentence


@pytest.mark.parametrize("other", [record(batch_size=1), record(threads=4)])
def test_detections_of_another_machine_are_not_compared(other: PredictionRecord) -> None:
    records = {"pretrained": record(), "finetuned": other}
    found = prove("person", receipt("person"), records, {"test": (boxes(0.9), boxes(0.8))})
    assert found.holds
    assert "detections not compared, since" in found.sentence


def test_without_proof_nothing_holds() -> None:
    found = prove("person", receipt(), BOTH, {"test": (boxes(0.9), boxes(0.9))})
    assert not found.holds
    assert "doesn't prove it (it proves no class)" in found.sentence
    contract = contract_record(
        "person", KeepParams(exact=True), 0.31, 0.31, None, None, proof=found
    )
    assert (contract.holds, contract.min, contract.by) == (False, 1.0, "exact")


@pytest.mark.parametrize(
    ("finetune", "message"),
    [
        ({}, r"person: exact, and finetune\.protect: weights changes .*`protect: branch`"),
        (
            {"protect": "branch", "branch": {"kept": "mix"}},
            r"person: exact, and finetune\.branch: \{kept: mix\} changes .*`kept: exact`",
        ),
    ],
)
def test_what_cannot_be_kept_exactly_is_refused(finetune: dict[str, Any], message: str) -> None:
    def parsed(contract: dict[str, Any], finetune: dict[str, Any]) -> None:
        raw = {
            "dataset": {"root": "data", "train": {"annotations": "train.json"}},
            "surgery": {"classes": {"person": "keep", "dog": "keep", "helmet": "new"}},
        }
        parse_params({**raw, "retention": contract, "finetune": finetune})

    contract = {"person": {"exact": True}, "dog": {"min": 0.9}}
    with pytest.raises(ParamsError, match=message):
        parsed(contract, finetune)
    parsed({"dog": {"min": 0.9}}, finetune)
    parsed(contract, {"protect": "branch"})


@pytest.mark.parametrize("asked", [{}, {"min": 0.9, "exact": True}, {"on": "test"}])
def test_a_contract_names_one_measure(asked: dict[str, Any]) -> None:
    raw = {
        "dataset": {"root": "data", "train": {"annotations": "train.json"}},
        "surgery": {"classes": {"person": "keep"}},
        "retention": {"person": asked},
    }
    with pytest.raises(ParamsError, match=r"`retention\.person`.* needs one of `min`"):
        parse_params(raw)
