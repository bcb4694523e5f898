"""The model card: Hugging Face's form (YAML front matter, then Markdown), filled from the run's own
record.

It has figures only where the run evaluated exactly these weights; otherwise it says that there are
none.
"""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from topwork import __version__
from topwork.classes import BACKGROUND, UNUSED
from topwork.project.finetune import FINETUNED
from topwork.project.names import HELD_OUT
from topwork.report.figures import ClassFigures, class_figures, clauses, percent
from topwork.report.headline import headline
from topwork.report.page import render
from topwork.report.run import Run


def model_card(
    name: str,
    weights: bytes,
    columns: Sequence[str],
    builder: str,
    run: Run | None,
    parity: Mapping[str, Any] | None = None,
) -> str:
    """Write the card.

    Args:
        name: the model's name.
        weights: content of the weights file, to see whether the run is about it.
        columns: class columns, background first.
        builder: the detector's builder.
        run: the project's run, or None.
        parity: what the ONNX check found: `images`, `detections`, `boxes_px`, `scores`; None where
            no ONNX goes with the card.
    """
    digest = _sha256(weights)
    known = (
        run
        if run is not None and run.has(FINETUNED) and _sha256(run.read_bytes(FINETUNED)) == digest
        else None
    )
    figures, contract = (class_figures(known), clauses(known)) if known else ([], [])
    names = [
        (label, column)
        for label, column in enumerate(columns)
        if column not in (BACKGROUND, UNUSED)
    ]
    means = {split: known.mean_ap("finetuned", split) if known else None for split in HELD_OUT}
    provenance = known.provenance.document() if known and known.provenance else {}
    return render(
        "card.md.j2",
        front=front_matter(name, names, figures, means, provenance),
        name=name,
        builder=builder,
        names=names,
        figures=figures,
        percent=percent,
        headline=headline(figures, contract, means["test"]) if known and figures else None,
        contract=contract,
        provenance=provenance,
        record=known.training if known else None,
        splits=_splits(known) if known else [],
        parity=parity,
        digest=digest,
        version=__version__,
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def front_matter(
    name: str,
    names: Sequence[tuple[int, str]],
    figures: Sequence[ClassFigures],
    means: Mapping[str, float | None],
    provenance: Mapping[str, Any],
) -> str:
    """The YAML head: licence, tags, and the figures as Hugging Face's `model-index`.

    Args:
        name: the model's name.
        names: (label, class name).
        figures: the class table; empty where the weights weren't evaluated.
        means: set -> mAP of the model, None where undefined.
        provenance: where the pretrained weights come from.
    """
    from ruamel.yaml import YAML

    head: dict[str, Any] = {
        "library_name": "topwork",
        "pipeline_tag": "object-detection",
        "tags": [
            "object-detection",
            "head-surgery",
            "torchvision",
            *(str(label_name) for _, label_name in names),
        ],
    }
    if licence := provenance.get("licence"):
        # an identifier, such as Apache-2.0; a sentence is part of the text
        known = re.fullmatch(r"[A-Za-z0-9.+-]+", str(licence))
        head = {"license": str(licence).lower() if known else "other", **head}
    results = [
        found
        for on in dict.fromkeys(figure.on for figure in figures)
        if (found := _result(figures, on, means[on]))
    ]
    if results:
        head["model-index"] = [{"name": name, "results": results}]
    stream = io.StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.dump(head, stream)
    return stream.getvalue().strip()


def _result(figures: Sequence[ClassFigures], on: str, mean: float | None) -> dict[str, Any] | None:
    """One set's figures; None where no class has an AP there."""
    here = [
        (figure.name, found)
        for figure in figures
        if figure.on == on and (found := figure.ap["finetuned"]) is not None
    ]
    if mean is None:
        return None
    metrics = [
        {"type": "mean_average_precision", "name": "mAP, IoU 0.50 to 0.95", "value": round(mean, 4)}
    ]
    metrics += [
        {"type": "average_precision", "name": f"AP of {name}", "value": round(found.value, 4)}
        for name, found in here
    ]
    return {
        "task": {"type": "object-detection"},
        "dataset": {"name": f"{on} set", "type": "custom", "split": on},
        "metrics": metrics,
    }


def _splits(run: Run) -> list[tuple[str, int, int]]:
    """(split, images, boxes)."""
    tables = run.tables
    return [
        (split, len(tables.split(split).images), len(tables.split(split).annotations))
        for split in tables.splits
    ]
