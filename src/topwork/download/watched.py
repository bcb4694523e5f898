"""Local files that params `fetch` name: a file of the project has to be where DVC watches it."""

import os
from importlib.util import find_spec
from pathlib import Path

from topwork.errors import WeightsError
from topwork.params.fetch import FetchParams
from topwork.project.fetch import OWN_WEIGHTS


def files_named(params: FetchParams) -> dict[str, Path]:
    """Key -> file, for each key of params `fetch` that names a file of this machine: source,
    builder, classes.
    """
    named = {
        "fetch.source": params.source,
        "fetch.builder": _builder_file(params.builder or ""),
        "fetch.classes": params.classes if isinstance(params.classes, str) else "",
    }
    return {key: Path(text) for key, text in named.items() if text and Path(text).is_file()}


def check_watched(params: FetchParams, root: Path = Path()) -> None:
    """Refuse a file of the project whose change DVC wouldn't see, and one that is missing from an
    experiment's copy of the project.

    Raises:
        WeightsError: a file is in the project but not in `weights/`, or isn't tracked and so
            isn't in this copy.
    """
    _check_copied(params)
    inside = root.resolve()
    for key, path in files_named(params).items():
        place = path.resolve()
        if place.is_relative_to(inside) and not place.is_relative_to(inside / OWN_WEIGHTS):
            name = path.name
            raise WeightsError(
                f"{key}: {path}: is in the project where DVC doesn't watch it, so DVC wouldn't see"
                f" a change of it. Move it to {OWN_WEIGHTS}/ and write"
                f" `{OWN_WEIGHTS / name}`."
            )


def _check_copied(params: FetchParams) -> None:
    """DVC runs queued and temporary experiments in a copy of what git and DVC track; DVC_ROOT names
    the project it is a copy of.
    """
    parent = Path(os.environ.get("DVC_ROOT", "."))
    if parent.resolve() == Path.cwd():
        return
    named = {
        "fetch.source": params.source,
        "fetch.builder": (params.builder or "").rpartition(":")[0],
    }
    for key, text in named.items():
        if (
            text
            and not Path(text).is_absolute()
            and not Path(text).exists()
            and (parent / text).is_file()
        ):
            raise WeightsError(
                f"{key}: {text}: is in the project but not in this experiment's copy of it, which"
                f" has what git and DVC track. Run `dvc add {text}` (or commit it) first, or run"
                " the experiment in the workspace: dvc exp run without --queue and --temp."
            )


def _builder_file(builder: str) -> str:
    place, _, _ = builder.rpartition(":")
    if not place or place.endswith(".py"):
        return place
    try:
        spec = find_spec(place)
    except (ImportError, ValueError):
        return ""
    return (spec.origin or "") if spec is not None else ""
