"""torchvision's weight enums by name: `torchvision:fasterrcnn_resnet50_fpn/COCO_V1`.

No network is used here.
"""

import difflib
import re
from dataclasses import dataclass
from typing import Any

from topwork.classes import BACKGROUND
from topwork.errors import WeightsError

# torchvision loads these with a batch-norm epsilon of 0 (`overwrite_eps` in its builders): they
# were trained with an older default.
ZERO_EPS = frozenset(
    {
        "fasterrcnn_resnet50_fpn/COCO_V1",
        "maskrcnn_resnet50_fpn/COCO_V1",
        "keypointrcnn_resnet50_fpn/COCO_V1",
        "retinanet_resnet50_fpn/COCO_V1",
    }
)


@dataclass(frozen=True)
class Entry:
    """One entry of a weight enum.

    Attributes:
        name: `BUILDER/ENTRY`, aliases such as DEFAULT resolved.
        builder: torchvision's builder name.
        url: where torchvision keeps the file.
        digits: the leading hex digits of its SHA-256, as the file name has them.
        columns: names of the class columns, background first.
        facts: the enum's own metadata, for the provenance.
    """

    name: str
    builder: str
    url: str
    digits: str
    columns: tuple[str, ...]
    facts: dict[str, Any]


def entries() -> list[str]:
    """`BUILDER/ENTRY` for every detection builder of the installed torchvision.

    Example:
        >>> "fasterrcnn_resnet50_fpn/COCO_V1" in entries()
        True
    """
    from torchvision.models import detection, get_model_weights, list_models

    return [
        f"{builder}/{entry.name}"
        for builder in list_models(module=detection)
        for entry in get_model_weights(builder)
    ]


def entry_of(name: str) -> Entry:
    """The enum entry `BUILDER/ENTRY` (`BUILDER` alone means DEFAULT).

    Raises:
        WeightsError: the installed torchvision doesn't have it; the nearest names are shown.

    Example:
        >>> entry_of("ssdlite320_mobilenet_v3_large/COCO_V1").digits
        'a79551df'
    """
    from torchvision.models import detection, get_model_weights, list_models

    builder, _, entry = name.partition("/")
    known = list_models(module=detection)
    if builder not in known:
        near = difflib.get_close_matches(builder, known, n=3, cutoff=0.3) or known
        raise WeightsError(
            f"torchvision:{name}: found builder {builder!r}, which isn't one of torchvision's"
            f" detectors; near: {', '.join(near)}. Mend fetch.source."
        )
    enum = get_model_weights(builder)
    members = enum.__members__
    if (entry or "DEFAULT") not in members:
        raise WeightsError(
            f"torchvision:{name}: found entry {entry!r}, {builder} has {', '.join(members)}. Mend"
            " fetch.source in params.yaml."
        )
    weights = members[entry or "DEFAULT"]
    match = re.search(r"-([0-9a-f]{8,})\.[a-z]+$", weights.url)
    if match is None:
        raise WeightsError(
            f"torchvision:{name}: {weights.url} has no hash in its name, expected eight hex digits."
            " Give its address and fetch.sha256 instead."
        )
    meta = weights.meta
    # Keypoint R-CNN's first category is "no person": the background column by another name.
    columns = (BACKGROUND, *meta["categories"][1:])
    full = f"{builder}/{weights.name}"
    facts = {
        "url": weights.url,
        "recipe": meta.get("recipe"),
        "published": meta.get("_metrics"),
        "parameters": meta.get("num_params"),
        "note": " ".join(meta.get("_docs", "").split()),
        "licence": (
            "not stated by torchvision; its README refers to the terms of the data the weights were"
            " trained on"
        ),
        "frozen_batch_norm_eps": 0.0 if full in ZERO_EPS else None,
    }
    return Entry(
        full,
        builder,
        weights.url,
        match[1],
        columns,
        {key: value for key, value in facts.items() if value is not None},
    )
