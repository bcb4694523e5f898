"""Write docs/params.md from the docstrings of topwork.params, and docs/receipt.schema.json from the
receipt's record.

`python docs/generate.py`; a test holds both to the code.
"""

import inspect
import json
import typing
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from topwork.params.document import Params
from topwork.project.surgery import ReceiptRecord

HEAD = """# params.yaml

Written by `python docs/generate.py` from `src/topwork/params/`. An unknown or misspelt key is an
error that names the nearest one.
"""


def reference() -> str:
    """The reference of params.yaml, as Markdown."""
    parts = [HEAD]
    for name, field in Params.model_fields.items():
        section = _section(field.annotation)
        if section is not None:
            parts.append(_table(f"`{name}`", section))
    return "\n".join(parts)


def receipt_schema() -> str:
    """The JSON Schema of a surgery's receipt."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **ReceiptRecord.model_json_schema(),
    }
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def _table(title: str, section: type[BaseModel]) -> str:
    lines = [
        f"## {title}",
        "",
        inspect.cleandoc(section.__doc__ or ""),
        "",
        "| key | default | what |",
        "| --- | --- | --- |",
    ]
    nested = {}
    for name, field in section.model_fields.items():
        default = "required" if field.is_required() else _default(field)
        inner = _section(field.annotation)
        lines.append(
            f"| `{name}` | {default} |"
            f" {' '.join((field.description or '').split()).replace('|', chr(92) + '|')} |"
        )
        if inner is not None:
            nested[inner.__name__] = (f"{title}, {name}", inner)
    text = "\n".join(lines) + "\n"
    return text + "".join(
        f"\n{_table(*item).replace('## ', '### ', 1)}" for item in nested.values()
    )


def _default(field: typing.Any) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return "see below"
    return "none" if value is None else f"`{value}`"


def _section(annotation: typing.Any) -> type[BaseModel] | None:
    candidates = (annotation, *typing.get_args(annotation))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


if __name__ == "__main__":
    folder = Path(__file__).parent
    (folder / "params.md").write_text(reference(), encoding="utf-8")
    (folder / "receipt.schema.json").write_text(receipt_schema(), encoding="utf-8")
