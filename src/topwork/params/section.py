"""What every section of params.yaml is made of, and how the file is read: as DVC reads it (YAML
1.2), all faults named at once.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from topwork.errors import ParamsError

PARAMS_FILE = Path("params.yaml")
NOTHING: Mapping[str, str] = MappingProxyType({})


class Section(BaseModel):
    """A section of params.yaml; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Sections(BaseModel):
    """The sections that one stage reads; the file's others are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


Model = TypeVar("Model", bound=BaseModel)


def read_document(path: Path = PARAMS_FILE) -> dict[str, Any]:
    """Read params.yaml; its keys aren't checked yet.

    Raises:
        ParamsError: the file is missing, isn't YAML, or has no sections.
    """
    if not path.exists():
        raise ParamsError(
            f"{path}: no such file. Run inside a topwork project, or make one: topwork init"
            " FOLDER --data PATH"
        )
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        with path.open(encoding="utf-8") as stream:
            raw = YAML(typ="safe", pure=True).load(stream)
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        raise ParamsError(
            f"{path}: not readable as YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(raw, dict):
        raise ParamsError(
            f"{path}: found {type(raw).__name__}, expected sections such as `dataset:` and"
            " `surgery:`."
        )
    return raw


def parse(
    model: type[Model],
    raw: dict[str, Any],
    path: Path = PARAMS_FILE,
    renamed: Mapping[str, str] = NOTHING,
) -> Model:
    """Check sections that are already read.

    Args:
        model: what they should be.
        raw: the document.
        path: for messages.
        renamed: keys of earlier versions -> what they are called now, for messages.

    Raises:
        ParamsError: a key or value is at fault; all faults are named together.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        faults = "; ".join(_fault(model, dict(item), renamed) for item in error.errors())
        pronoun = "it" if error.error_count() == 1 else "them"
        raise ParamsError(f"{path}: {faults}. Mend {pronoun} and run again.") from error


def _fault(model: type[BaseModel], item: dict[str, Any], renamed: Mapping[str, str]) -> str:
    where = ".".join(str(key) for key in item["loc"])
    if item["type"] == "extra_forbidden":
        if where in renamed:
            return f"`{where}`: is now `{renamed[where]}`"
        known = _known_keys(model, item["loc"][:-1])
        nearest = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.0)
        hint = f", did you mean `{nearest[0]}`?" if nearest else ""
        return f"`{where}`: unknown key{hint} (known: {', '.join(known)})"
    if item["type"] == "missing":
        return f"`{where}`: missing"
    return f"`{where}`: found {item['input']!r}, {item['msg'][:1].lower()}{item['msg'][1:]}"


def _known_keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Field names of the section at `location` (a section that is a dict or optional is looked
    through).
    """
    section = model
    for key in location:
        field = section.model_fields.get(str(key))
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        section = next(
            (c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), section
        )
    return list(section.model_fields)
