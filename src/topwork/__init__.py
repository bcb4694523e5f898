"""topwork: reproducible head surgery for object detectors, and proof of what was kept.

The public names are loaded when they are first used, so that `import topwork` costs next to
nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "ClassPlan": "topwork.classes",
    "Weights": "topwork.weights.format",
    "read_weights": "topwork.weights.format",
    "write_weights": "topwork.weights.format",
    "demo_weights": "topwork.download.shipped",
    "build": "topwork.detectors.builders",
    "graft": "topwork.surgery.graft",
    "branch": "topwork.surgery.branch",
    "load": "topwork.detectors.builders",
    "stock": "topwork.detectors.builders",
    "predict": "topwork.inference.detections",
    "inspect": "topwork.surgery.inspection",
    "diff": "topwork.surgery.inspection",
    "verify_graft": "topwork.surgery.verification",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'topwork' has no attribute {name!r}")
    try:
        return getattr(import_module(_PUBLIC[name]), name)
    except ModuleNotFoundError as error:
        # imported by name: what it says can't change what a stage writes
        message = import_module("topwork.extras").missing_extra(error)
        if message is None:
            raise
        raise ImportError(f"topwork.{name}: {message}") from error


def __dir__() -> list[str]:
    return sorted(__all__)
