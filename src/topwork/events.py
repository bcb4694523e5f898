"""Events: what a running stage says to a program that watches it.

With `TOPWORK_EVENTS=1` in its environment a stage prints, besides what it prints for people, lines
of the form `@topwork JSON`, such as

    @topwork {"done": 3, "kind": "progress", "text": "loss 1.2", "total": 30, "unit": "epoch"}
    @topwork {"kind": "error", "message": "params.yaml: no such file. ..."}

Nothing that a stage writes depends on it, so that no stage has it among its deps.
"""

import json
import os
from dataclasses import asdict, dataclass
from typing import Literal

PREFIX = "@topwork "
VARIABLE = "TOPWORK_EVENTS"


@dataclass(frozen=True, kw_only=True)
class ProgressEvent:
    """So many of so many units (epochs, splits...) are done."""

    kind: Literal["progress"] = "progress"
    done: int
    total: int
    unit: str
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class ErrorEvent:
    """The error that ends the stage."""

    kind: Literal["error"] = "error"
    message: str


def emit(event: ProgressEvent | ErrorEvent) -> None:
    """Print an event, where somebody asked for them."""
    if os.environ.get(VARIABLE, "") not in ("", "0"):
        print(PREFIX + json.dumps(asdict(event), sort_keys=True), flush=True)
