"""The model card: Hugging Face's own reader finds every figure; other weights get none."""

from pathlib import Path

import pytest

from topwork.files import write_json
from topwork.params import load_params
from topwork.report.card import FINETUNED, model_card
from topwork.report.run import Run, WorkingFiles

hub = pytest.importorskip("huggingface_hub", reason="the extra `hub` isn't installed")

COLUMNS = ("__background__", "person", "helmet", "forklift")


def card_of(folder: Path, weights: bytes | None = None) -> str:
    run = Run(WorkingFiles(folder), load_params(folder / "params.yaml"))
    content = (folder / FINETUNED).read_bytes() if weights is None else weights
    return model_card("yard", content, COLUMNS, "ssdlite320_mobilenet_v3_large", run).lstrip()


def test_hugging_face_reads_it(finished: Path) -> None:
    card = hub.ModelCard(card_of(finished))
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "object-detection"
    assert {"person", "helmet", "forklift"} <= set(card.data.tags)
    figures = {(result.dataset_split, result.metric_name): result.metric_value for result in card.data.eval_results}
    rows = Run(WorkingFiles(finished)).json("out/evaluate/classes.json")
    for row in rows:
        if row["ap_finetuned"] is not None:
            assert figures[row["set"], f"AP of {row['class']}"] == round(row["ap_finetuned"], 4)
    assert {split for split, _ in figures} == {"test", "source"}
    assert "Retention contract, " in card.text
    assert "- **Their licence**: Apache-2.0" in card.text


def test_other_weights_get_no_figures(finished: Path) -> None:
    text = card_of(finished, b"other weights")
    assert "this card has no figures" in text
    assert "model-index" not in text
    assert "Average precision" not in text


def test_a_licence_in_words_is_other(project: Path) -> None:
    """Hugging Face takes identifiers alone; torchvision's weights come with a sentence."""
    write_json(project / "out/fetch/provenance.json", {"source": "torchvision:x/COCO_V1", "licence": "not stated by torchvision; ask"})
    card = hub.ModelCard(card_of(project))
    assert card.data.license == "other"
    assert "- **Their licence**: not stated by torchvision; ask" in card.text
