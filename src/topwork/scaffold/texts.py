"""The files of a project with data of its own, as text."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from topwork.scaffold.detector import Source
from topwork.scaffold.rules import Rule, kept_as, scalar, written

ENOUGH = 20
"""Objects of a kept class in a held-out set from which a contract is written: an AP of fewer says
little.
"""
MIN_RETENTION = 0.9

GITIGNORE = """\
/.venv/
/.topwork/
__pycache__/
*.pyc
# weights and what the pipeline makes: DVC keeps them, and the data (data/.gitignore, by `dvc add`)
*.pth
*.pt
*.onnx
*.safetensors
/out/*/*
!/out/validate/summary.json
/predictions/
"""

MAKEFILE = """\
# The commands of README.md, by name.
.PHONY: run doctor summary

run:  ## the whole pipeline, then its table
\tdvc repro
\ttopwork summary

doctor:  ## what would stop a run, and how long one takes
\ttopwork doctor

summary:  ## the last run's table
\ttopwork summary
"""


@dataclass(frozen=True)
class Choices:
    """What a project is made of.

    Attributes:
        name: of the project.
        dataset: section `dataset`.
        source: of the weights.
        rules: class -> rule.
        boxes: class -> boxes by split, of which comments and contracts are made.
        epochs: finetune.epochs, None for the default.
    """

    name: str
    dataset: Mapping[str, Any]
    source: Source
    rules: Mapping[str, Rule]
    boxes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    epochs: int | None = None

    def contracts(self) -> dict[str, str]:
        """Kept class -> its line, of those with enough objects in the source set, or else in the
        test set.
        """
        found = {}
        for name, rule in self.rules.items():
            boxes = self.boxes.get(name, {}) if kept_as(name, rule) else {}
            on = next((split for split in ("source", "test") if boxes.get(split, 0) >= ENOUGH), "")
            if on:
                found[name] = f"{{min: {MIN_RETENTION:g}, on: {on}}}"
        return found


def params_text(choices: Choices) -> str:
    """params.yaml: what was chosen, and an empty section for every stage whose defaults serve."""
    lines = [
        "# What you want of the pipeline. A key that is left out takes its default; every key is",
        "# explained in topwork's docs/params.md. Change one thing and `dvc repro` runs again just",
        "# what depends on it.",
        "",
        "dataset:",
        *_block(choices.dataset, "  "),
        "",
        "fetch:",
        *_block(choices.source.params, "  "),
        "",
        "surgery:",
        "  classes:                 # in order: labels 1, 2, 3...",
        *_class_lines(choices),
        "",
        "finetune:" if choices.epochs else "finetune: {}               # 12 epochs",
        *([f"  epochs: {choices.epochs}"] if choices.epochs else []),
        "",
        *_contract_lines(choices),
        "",
        "report:",
        f"  title: {scalar(choices.name)}",
        "",
        "# DVC asks for these sections; empty ones take the defaults",
        "unlabelled: {}",
        "predict: {}",
        "evaluate: {}",
        "runtime: {}                # device, workers: no result becomes stale by a change here",
    ]
    return "\n".join(lines) + "\n"


def _block(values: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{key}:", *_block(value, f"{indent}  ")]
        elif isinstance(value, int | float):
            lines.append(f"{indent}{key}: {value}")
        else:
            lines.append(f"{indent}{key}: {scalar(value)}")
    return lines


def _class_lines(choices: Choices) -> list[str]:
    lines = []
    for name, rule in choices.rules.items():
        text = f"    {scalar(name)}: {written(rule)}"
        counts = choices.boxes.get(name)
        if counts is not None:
            found = ", ".join(f"{count} {split}" for split, count in counts.items())
            text = f"{text:<26} # boxes: {found}"
        lines.append(text)
    return lines


def _contract_lines(choices: Choices) -> list[str]:
    contracts = choices.contracts()
    new = next((name for name in choices.rules if name not in contracts), "NAME")
    lines = (
        ["retention:                 # fine-tuned AP over pretrained AP, or the stage `gate` fails"]
        + [f"  {scalar(name)}: {line}" for name, line in contracts.items()]
        if contracts
        else ["retention: {}              # no kept class has enough objects in a held-out set"]
    )
    return [
        *lines,
        f"learned: {{}}                # such as `{new}: {{min: 0.3}}`: the AP to reach",
    ]


def readme_text(choices: Choices, requirements: str) -> str:
    """README.md: the next commands."""
    return f"""# {choices.name}

A detector for {", ".join(choices.rules)}, made by topwork: head rows of the pretrained detector
for kept classes, bit for bit, new ones next to them, fine-tuned under protection.

```console
$ pip install -r {requirements}
$ topwork doctor        # what would stop a run, and about how long one takes
$ dvc repro             # check, fetch, graft, fine-tune, evaluate, report
$ topwork summary       # the table; the page is out/report/report.html
```

`params.yaml` says what becomes of each class, what has to be kept (`retention`) and what has to be
reached (`learned`); a breach fails the stage `gate`. After a run, commit `dvc.lock` and
`out/metrics.json`: git keeps the record; DVC keeps data, weights and results
(`dvc remote add --default storage URL`, then `dvc push`).

```python
import topwork

model = topwork.load("out/finetune/weights.safetensors")
found = topwork.predict(model, ["image.jpg"])[0]  # boxes, scores, labels, names
```
"""
