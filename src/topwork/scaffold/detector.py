"""The detector that a project starts from: what is in the cache, and the classes of a source."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from topwork.classes import BACKGROUND, UNUSED
from topwork.download.cache import Cache
from topwork.download.shipped import demo_weights
from topwork.download.sources import fetch
from topwork.download.torchvision_enums import entries, entry_of
from topwork.errors import TopworkError, WeightsError
from topwork.files import read_json
from topwork.params.fetch import FetchParams
from topwork.project.fetch import WEIGHTS_LOCK

SUGGESTED = (
    "torchvision:fasterrcnn_resnet50_fpn_v2/COCO_V1",
    "torchvision:fasterrcnn_mobilenet_v3_large_fpn/COCO_V1",
    "torchvision:ssdlite320_mobilenet_v3_large/COCO_V1",
)
"""What is offered where nothing is in the cache: from accurate to fast."""


@dataclass(frozen=True)
class Source:
    """A source of weights.

    Attributes:
        params: section `fetch`, as it goes into params.yaml.
        columns: its class columns, background first; empty where nothing is known before it is
            fetched.
        files: files of this machine that it names, which go into the project's weights/.
    """

    params: dict[str, str]
    columns: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Its classes by name."""
        return tuple(name for name in self.columns if name not in (BACKGROUND, UNUSED))


def cached() -> list[str]:
    """Sources whose weights are in the cache already, by name."""
    found = []
    for record in sorted((Cache.default().root / "sources").glob("*.json")):
        try:
            found.append(str(read_json(record)["source"]))
        except (TopworkError, KeyError, TypeError):
            continue
    return sorted(set(found))


def offered() -> list[str]:
    """What a user can choose from: cached sources first, then suggestions."""
    return list(dict.fromkeys([*cached(), *SUGGESTED, "demo"]))


def source_of(name: str, builder: str | None = None, classes: str | None = None) -> Source:
    """A source, and its class columns where they are known without a download.

    Args:
        name: as `fetch.source` takes it; a local file may lie anywhere.
        builder: fetch.builder, where the source doesn't name its own.
        classes: fetch.classes.

    Raises:
        WeightsError: no such file or entry; a local file isn't readable weights.
    """
    params = {"source": name}
    params |= {key: text for key, text in (("builder", builder), ("classes", classes)) if text}
    if name == "demo":
        return Source(params, demo_weights().columns)
    kind, colon, rest = name.partition(":")
    if colon and kind.lower() == "torchvision":
        return Source(params, entry_of(rest).columns)
    if not colon or Path(name).is_file():
        return _local(params)
    if colon and kind.lower() in ("http", "https", "dvc", "hf"):
        return Source(params)
    raise WeightsError(
        f"init: --source {name}: expected demo, torchvision:BUILDER/ENTRY (such as"
        f" {entries()[0]}), a file, https://..., dvc:REPO#PATH@REV or hf:REPO/FILE@REVISION."
    )


def _local(params: dict[str, str]) -> Source:
    with tempfile.TemporaryDirectory() as scratch:
        weights = fetch(
            FetchParams.model_validate(params),
            lock=Path(scratch) / WEIGHTS_LOCK.name,
            notify=lambda _: None,
        )
    files = [Path(params["source"])]
    inside = {**params, "source": f"weights/{files[0].name}"}
    place, _, function = params.get("builder", "").rpartition(":")
    if place.endswith(".py"):
        files.append(Path(place))
        inside["builder"] = f"weights/{files[-1].name}:{function}"
    if Path(params.get("classes", "")).is_file():
        files.append(Path(params["classes"]))
        inside["classes"] = f"weights/{files[-1].name}"
    return Source(inside, weights.columns, tuple(files))
