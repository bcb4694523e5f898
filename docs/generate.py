"""Write the reference: docs/params.md from the docstrings of topwork.params, docs/cli.md from the
commands' help, docs/python.md from the public names, docs/receipt.schema.json from the receipt's
record.

`python docs/generate.py`; a test holds all of it to the code.
"""

import contextlib
import inspect
import io
import json
import os
import typing
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import topwork
from topwork.cli import COMMANDS, main
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


def commands() -> str:
    """The reference of the command line, as Markdown."""
    parts = [
        "# The command `topwork`\n\nWritten by `python docs/generate.py` from the commands' help."
        " Exit codes: 0 fine, 1 an error that a message explains, 2 wrong usage.\n"
    ]
    width = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "88"
    try:
        for command in COMMANDS:
            stream = io.StringIO()
            with contextlib.redirect_stdout(stream), contextlib.suppress(SystemExit):
                main([command, "--help"])
            parts.append(f"## topwork {command}\n\n```text\n{stream.getvalue().strip()}\n```\n")
    finally:
        os.environ.pop("COLUMNS")
        if width is not None:
            os.environ["COLUMNS"] = width
    return "\n".join(parts)


def public_names() -> str:
    """The reference of the Python API, as Markdown."""
    parts = [
        "# Python\n\nWritten by `python docs/generate.py` from the docstrings of `topwork`'s public"
        " names. All but `topwork.inspect(...).frame()` works with the base install.\n"
    ]
    for name in topwork.__all__:
        found = getattr(topwork, name)
        if name == "__version__":
            continue
        kind = "class" if inspect.isclass(found) else "def"
        signature = inspect.signature(found, eval_str=False)
        lines = [f"    {parameter}," for parameter in map(str, signature.parameters.values())]
        returns = signature.return_annotation
        arrow = (
            ""
            if kind == "class" or returns is inspect.Signature.empty
            else f" -> {_named(returns)}"
        )
        shown = "\n".join([f"{kind} {name}(", *lines, f"){arrow}"])
        text = inspect.getdoc(found) or ""
        parts.append(f"## {name}\n\n```python\n{shown}\n```\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def _named(annotation: object) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return text or str(annotation)


def pages() -> dict[str, str]:
    """File name -> text, of all that is generated."""
    return {
        "params.md": reference(),
        "cli.md": commands(),
        "python.md": public_names(),
        "receipt.schema.json": receipt_schema(),
    }


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
    for name, text in pages().items():
        Path(__file__).with_name(name).write_text(text, encoding="utf-8")
