"""Section `fetch`: the pretrained weights."""

from typing import Any

from pydantic import Field

from topwork.params.section import Section


class FetchParams(Section):
    """The pretrained weights: read by `fetch`."""

    source: str = "demo"
    """`demo`, `torchvision:BUILDER/ENUM`, a URL, a local file, `dvc:REPO#PATH@REV`, or
    `hf:REPO/FILE@REVISION`.
    """
    sha256: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$")
    """Pinned SHA-256 (64 hex digits); without it weights.lock holds the one seen first."""
    builder: str | None = None
    """torchvision builder name, `module:function` or `path/to/file.py:function`; left out where the
    source declares it.
    """
    builder_args: dict[str, Any] = {}
    """Further keyword arguments of the builder."""
    classes: list[str] | str | None = None
    """Names of the class columns, or a category set (`coco-91`, `coco-80`, `voc-21`,
    `open-images-601`) or a text file; left out where the source declares it.
    """
    prefix: str | None = None
    """Prefix to strip from tensor names (`module.`), or the key of a nested state_dict
    (`state_dict`): never done by default.
    """
    mirror: str | None = None
    """Prefix put in place of the source's scheme and host (also: TOPWORK_MIRROR)."""
    offline: bool = False
    """Use only what the cache holds (also: TOPWORK_OFFLINE=1)."""
    max_gib: float = Field(default=16, gt=0, allow_inf_nan=False)
    """Largest file, and largest sum of its tensors, in GiB: a limit against bombs."""
    timeout_s: float = Field(default=30, gt=0, allow_inf_nan=False)
    """Seconds without a byte that count as a stall."""
    tries: int = Field(default=6, ge=1)
    """Tries in a row without progress before a download gives up."""
