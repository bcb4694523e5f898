"""Every detection enum of the installed torchvision: address, names, columns, builder.

No network.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torchvision.models import detection, get_model_builder, get_model_weights, list_models

from download.misbehaving import Misbehaving, Reply
from topwork.classes import BACKGROUND, category_set
from topwork.download import locate
from topwork.download.sources import fetch
from topwork.download.torchvision_enums import ZERO_EPS, entries, entry_of
from topwork.errors import ChecksumError, WeightsError
from topwork.params.fetch import FetchParams

ALL = [
    f"{builder}/{entry.name}"
    for builder in list_models(module=detection)
    for entry in get_model_weights(builder)
]


def test_all_are_listed() -> None:
    assert entries() == ALL
    assert len(ALL) >= 13
    assert len({name.partition("/")[0] for name in ALL}) >= 12


@pytest.mark.parametrize("name", ALL)
def test_every_enum(name: str) -> None:
    builder, _, member = name.partition("/")
    weights = get_model_weights(builder)[member]
    entry = entry_of(name)
    assert entry.builder == builder
    assert entry.url == weights.url
    assert re.fullmatch(
        rf"https://download\.pytorch\.org/models/[a-z0-9_]+-{entry.digits}\.pth", entry.url
    )
    assert re.fullmatch("[0-9a-f]{8}", entry.digits)
    expected = (BACKGROUND, "person") if builder.startswith("keypoint") else category_set("coco-91")
    assert entry.columns == expected
    assert len(entry.columns) == len(weights.meta["categories"])
    assert entry.facts["recipe"] == weights.meta["recipe"]
    assert entry.facts["published"]["COCO-val2017"]["box_map"] > 20
    with torch.device("meta"):
        model = get_model_builder(builder)(
            weights=None, weights_backbone=None, num_classes=len(entry.columns)
        )
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(
        entry.facts["parameters"], rel=0.01
    ), "the builder and its columns make the published size"


def test_zero_eps_is_what_torchvision_says() -> None:
    """Its builders' own source: `if weights == ...: overwrite_eps(model, 0.0)`."""
    found = set()
    for name in ALL:
        builder, _, _ = name.partition("/")
        source = inspect.getsource(inspect.unwrap(get_model_builder(builder)))
        for condition in re.findall(
            r"if weights (?:== |in \()([^:]*):\s+overwrite_eps\(model, 0\.0\)", source
        ):
            found |= {f"{builder}/{named}" for named in re.findall(r"_Weights\.(\w+)", condition)}
    assert found == ZERO_EPS


def test_aliases() -> None:
    assert entry_of("ssd300_vgg16").name == "ssd300_vgg16/COCO_V1"
    assert entry_of("keypointrcnn_resnet50_fpn/DEFAULT").name == "keypointrcnn_resnet50_fpn/COCO_V1"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "fasterrcnn_resnet50/COCO_V1",
            r"found builder 'fasterrcnn_resnet50'.*near: fasterrcnn_resnet50_fpn",
        ),
        ("resnet50/IMAGENET1K_V1", "'resnet50', which isn't one of torchvision's detectors"),
        ("ssd300_vgg16/COCO_V2", "found entry 'COCO_V2', ssd300_vgg16 has COCO_V1"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        entry_of(name)


@pytest.fixture
def published(
    server: Misbehaving, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> Callable[[], FetchParams]:
    """A mirror that holds random weights under torchvision's path."""
    import io

    name = "ssdlite320_mobilenet_v3_large/COCO_V1"
    entry = entry_of(name)
    model = detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=91
    )
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    server.plan["/pub" + entry.url.removeprefix("https://download.pytorch.org")] = Reply(
        stream.getvalue()
    )

    def forge() -> FetchParams:
        import hashlib

        digits = hashlib.sha256(stream.getvalue()).hexdigest()[:8]
        monkeypatch.setattr(locate, "entry_of", lambda rest: replace(entry_of(rest), digits=digits))
        return FetchParams(source=f"torchvision:{name}", mirror=f"{server.url}/pub/")

    return forge


def test_from_a_mirror(published: Callable[[], FetchParams], server: Misbehaving) -> None:
    messages: list[str] = []
    params = published()
    weights = fetch(params, notify=messages.append)
    assert weights.builder == "ssdlite320_mobilenet_v3_large"
    assert weights.columns == category_set("coco-91")
    assert weights.provenance["source"] == "torchvision:ssdlite320_mobilenet_v3_large/COCO_V1"
    assert weights.provenance["published"] == {"COCO-val2017": {"box_map": 21.3}}
    assert server.url not in str(weights.provenance), "the mirror leaves no trace"
    assert "seen for the first time, SHA-256 " + weights.provenance["sha256"] in messages[-1]
    again = fetch(
        params.model_copy(update={"offline": True, "mirror": None}), notify=messages.append
    )
    assert again.provenance == weights.provenance
    assert len(messages) == 1
    assert len(server.seen) == 1


def test_a_mirror_that_lies(
    published: Callable[[], FetchParams], server: Misbehaving, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = published()
    monkeypatch.setattr(locate, "entry_of", entry_of)  # torchvision's own eight digits again
    with pytest.raises(
        ChecksumError,
        match=r"expected it to begin with a79551df .*this isn't the source's own file",
    ):
        fetch(params)
