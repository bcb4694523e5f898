"""The model card: Hugging Face's form (YAML front matter, then Markdown), filled from the run's own record.

Figures stand in it only where the run evaluated these very weights; otherwise the card says that it knows none.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from topwork import __version__
from topwork.classes import BACKGROUND, UNUSED
from topwork.report.figures import ClassFigures, class_figures, clauses, mean_ap, percent
from topwork.report.headline import headline
from topwork.report.page import render
from topwork.report.run import Run

FINETUNED = "out/finetune/weights.safetensors"


def model_card(
    name: str, weights: bytes, columns: Sequence[str], builder: str, run: Run | None, parity: Mapping[str, Any] | None = None
) -> str:
    """Write the card.

    Args:
        name: the model's name.
        weights: content of the weights file, to tell whether the run is about it.
        columns: class columns, background first.
        builder: the detector's builder.
        run: the project's run, or None.
        parity: what the ONNX check found: `images`, `detections`, `boxes_px`, `scores`; None where no ONNX goes with the card.
    """
    digest = hashlib.sha256(weights).hexdigest()
    known = run is not None and FINETUNED in run.paths and hashlib.sha256(run.files.read_bytes(FINETUNED)).hexdigest() == digest
    figures = class_figures(run) if run is not None and known else []
    contract = clauses(run) if run is not None and known else []
    names = [(label, column) for label, column in enumerate(columns) if column not in (BACKGROUND, UNUSED)]
    provenance = run.provenance if run is not None and known else {}
    return render(
        "card.md.j2",
        front=front_matter(name, names, figures, provenance),
        name=name,
        builder=builder,
        names=names,
        figures=figures,
        percent=percent,
        headline=headline(figures, contract) if figures else None,
        contract=contract,
        provenance=provenance,
        record=run.record if run is not None and known else {},
        splits=_splits(run) if run is not None and known else [],
        parity=parity,
        digest=digest,
        version=__version__,
    )


def front_matter(name: str, names: Sequence[tuple[int, str]], figures: Sequence[ClassFigures], provenance: Mapping[str, Any]) -> str:
    """The YAML head: licence, tags, and the figures as Hugging Face's `model-index`."""
    from ruamel.yaml import YAML

    head: dict[str, Any] = {
        "library_name": "topwork",
        "pipeline_tag": "object-detection",
        "tags": ["object-detection", "head-surgery", "torchvision", *(str(label_name) for _, label_name in names)],
    }
    if provenance.get("license"):
        head = {"license": str(provenance["license"]).lower(), **head}
    metrics = [
        {"type": "mean_average_precision", "name": f"{title} mAP, IoU 0.50 to 0.95", "value": round(value, 4)}
        for on, title in (("test", "test set"), ("source", "source set"))
        if (value := mean_ap([figure for figure in figures if figure.on == on], "finetuned")) is not None
    ]
    metrics += [
        {"type": "average_precision", "name": f"AP of {figure.name}, {figure.on} set", "value": round(found.value, 4)}
        for figure in figures
        if (found := figure.ap["finetuned"]) is not None
    ]
    if metrics:
        task = {"type": "object-detection"}
        head["model-index"] = [
            {"name": name, "results": [{"task": task, "dataset": {"name": "custom", "type": "custom"}, "metrics": metrics}]}
        ]
    stream = io.StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.dump(head, stream)
    return stream.getvalue().strip()


def _splits(run: Run) -> list[tuple[str, int, int]]:
    """(split, images, boxes)."""
    tables = run.tables
    return [(split, len(tables.split(split).images), len(tables.split(split).annotations)) for split in tables.splits]
