"""How commands read weights: a file may name the builder that `--builder` or the project's
params.yaml names, or one of torchvision's.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from topwork.weights.format import Weights


def trusted(builder: str | None) -> bool | str:
    """The builder beyond torchvision's that a file may name: any where one is given, else
    `fetch.builder` of params.yaml here.
    """
    from topwork.errors import ParamsError
    from topwork.params.document import load_params

    if builder is not None:
        return True
    try:
        return load_params().fetch.builder or False
    except (ParamsError, ModuleNotFoundError):
        return False  # the base install reads no params.yaml


def read(path: Path, builder: str | None) -> "Weights":
    """Weights that topwork wrote; see `weights.format.read_weights`."""
    from topwork.weights.format import read_weights

    return read_weights(path, trust=trusted(builder))
