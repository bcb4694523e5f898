"""Write the table of class axes into docs/surgery.md: `python docs/surgery_table.py`.

A test holds the two together.
"""

import re
from pathlib import Path

from topwork.detectors.axes import PROBE_COLUMNS, HeadSpec, head_spec
from topwork.detectors.builders import torchvision_builders

BEGIN, END = "<!-- table: written by docs/surgery_table.py -->\n", "<!-- end of table -->\n"
PAGE = Path(__file__).with_name("surgery.md")


def table() -> str:
    """The table of torchvision's detectors, as Markdown."""
    lines = [
        "| builder | class-dependent tensors | layout (rows a class) | proof | head |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [line for name in torchvision_builders() for line in _lines(name, head_spec(name, 91))]
    return "\n".join(lines) + "\n"


def _lines(builder: str, found: HeadSpec) -> list[str]:
    groups: dict[tuple[str, str, str], list[int]] = {}
    for axis in found.axes:
        module = re.sub(r"\.\d+\b", ".*", axis.tensor.rpartition(".")[0], count=1)
        groups.setdefault((module, axis.layout, axis.role), []).append(axis.multiplicity)
    lines = []
    for number, ((module, layout, role), rows) in enumerate(groups.items()):
        proof = f"gradient of each class's {role}, {PROBE_COLUMNS} columns"
        counts = ", ".join(str(count) for count in (rows[::2] if len(set(rows)) > 1 else rows[:1]))
        head = ("softmax" if found.softmax else "sigmoid") if number == 0 else ""
        lines.append(
            f"| {f'`{builder}`' if number == 0 else ''} | `{module}.{{weight,bias}}` | {layout}"
            f" ({counts}) | {proof} | {head} |"
        )
    return lines


def page(text: str) -> str:
    """The page with a fresh table."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
