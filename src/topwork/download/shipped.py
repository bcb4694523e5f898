"""The detector that topwork ships for its demo: torchvision's SSDLite320, trained from scratch on
the drawn street (`pretrain/`).
"""

from dataclasses import replace
from pathlib import Path

from topwork.errors import ChecksumError, WeightsError
from topwork.files import read_json, sha256_file
from topwork.weights.format import Weights, read_weights

NAME = "ssdlite320_street"
WEIGHTS = Path(__file__).with_name("shipped_weights") / f"{NAME}.safetensors"
"""Its weights, in half precision."""
RECORD = WEIGHTS.with_suffix(".json")
"""Its record: SHA-256, classes, recipe, figures."""


def demo_weights() -> Weights:
    """The demo's pretrained detector, stored in half precision.

    Raises:
        WeightsError: the file isn't in the installed package.
        ChecksumError: the installed file isn't the one that was shipped.
    """
    if not WEIGHTS.is_file():
        raise WeightsError(f"{WEIGHTS.name}: not in the installed package; install topwork again.")
    expected, found = str(read_json(RECORD)["sha256"]), sha256_file(WEIGHTS)
    if found != expected:
        raise ChecksumError(
            f"{WEIGHTS}: SHA-256 found {found}, expected {expected} (from {RECORD.name}). Install"
            " topwork again."
        )
    return read_weights(WEIGHTS)


def demo_source() -> Weights:
    """The same as `fetch.source: demo` gives it: its provenance names source, hash and file."""
    weights = demo_weights()
    facts = {"source": "demo", "sha256": str(read_json(RECORD)["sha256"]), "file": WEIGHTS.name}
    return replace(weights, provenance={**weights.provenance, **facts})
