"""Local files that params `fetch` name: a file of the project has to be where DVC watches it."""

import os
from pathlib import Path

from topwork.errors import WeightsError
from topwork.params.fetch import FetchParams
from topwork.project.fetch import OWN_WEIGHTS
from topwork.weights.builder_files import builder_files


def files_named(params: FetchParams) -> dict[str, Path]:
    """Key -> file, for each file of this machine that a key of params `fetch` names: source,
    classes, the builder's and those that it imports.
    """
    texts = {"fetch.source": params.source, "fetch.classes": params.classes}
    named = {
        key: Path(text)
        for key, text in texts.items()
        if isinstance(text, str) and Path(text).is_file()
    }
    for file in builder_files(params.builder or ""):
        named["fetch.builder" if "fetch.builder" not in named else f"import of {file.stem}"] = file
    return named


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
            raise WeightsError(
                f"{key}: {path}: is in the project where DVC doesn't watch it, so DVC wouldn't see"
                f" a change of it. Move it to {OWN_WEIGHTS}/ and write"
                f" `{OWN_WEIGHTS / path.name}`."
            )


def _check_copied(params: FetchParams) -> None:
    """DVC runs queued and temporary experiments in a copy of what git and DVC track; DVC_ROOT names
    the project it is a copy of.
    """
    parent = Path(os.environ.get("DVC_ROOT", ".")).resolve()
    if parent == Path.cwd():
        return
    texts = {
        "fetch.source": params.source,
        "fetch.builder": (params.builder or "").rpartition(":")[0],
        "fetch.classes": params.classes,
    }
    for key, text in texts.items():
        if not isinstance(text, str) or not text or Path(text).is_absolute():
            continue
        original = Path(os.path.normpath(parent / text))
        if Path(text).exists() or not original.is_file():
            continue
        if original.is_relative_to(parent):
            raise WeightsError(
                f"{key}: {text}: is in the project but not in this experiment's copy of it, which"
                f" has what git and DVC track. Run `dvc add {text}` (or commit it) first, or run"
                " the experiment in the workspace: dvc exp run without --queue and --temp."
            )
        raise WeightsError(
            f"{key}: {text}: is relative to the project's folder, but this experiment runs in a"
            f" copy of it elsewhere. Write `{original}`."
        )
