"""The model card: Hugging Face's own reader finds every figure; other weights get none."""

from pathlib import Path

import pytest

from topwork.params.document import load_params
from topwork.project.evaluate import TABLE, TableRecord
from topwork.project.fetch import PROVENANCE, ProvenanceRecord
from topwork.project.finetune import FINETUNED
from topwork.project.names import HELD_OUT
from topwork.report.card import model_card
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
    figures = {
        (result.dataset_split, result.metric_name): result.metric_value
        for result in card.data.eval_results
    }
    rows = Run(WorkingFiles(finished)).classes.classes
    for row in rows:
        if (ap := row.models["finetuned"].ap) is not None:
            assert figures[row.split, f"AP of {row.name}"] == round(ap, 4)
    assert {split for split, _ in figures} == set(HELD_OUT)
    table = TableRecord.read(finished / TABLE)
    for split in HELD_OUT:
        mean = table.sets[split]["finetuned"].map
        assert mean is not None
        assert figures[split, "mAP, IoU 0.50 to 0.95"] == round(mean, 4)
    assert "Retention contract, " in card.text
    assert "- **Their licence**: Apache-2.0" in card.text


def test_other_weights_get_no_figures(finished: Path) -> None:
    text = card_of(finished, b"other weights")
    assert "this card has no figures" in text
    assert "model-index" not in text
    assert "Average precision" not in text


def test_a_licence_in_words_is_other(project: Path) -> None:
    """Hugging Face takes identifiers alone; torchvision's weights come with a sentence."""
    record = ProvenanceRecord.read(project / PROVENANCE)
    record.model_copy(update={"licence": "not stated by torchvision; ask"}).write(
        project / PROVENANCE
    )
    card = hub.ModelCard(card_of(project))
    assert card.data.license == "other"
    assert "- **Their licence**: not stated by torchvision; ask" in card.text
