"""What the gate writes: tables, findings as JSON and Parquet, a flat summary for `dvc metrics`."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from topwork.coco.findings import Findings
from topwork.coco.rules import RULES
from topwork.coco.validation import Validation
from topwork.files import atomic_path, write_json, write_text

LISTED = 1000  # findings of one rule that the JSON lists; the Parquet file has all


def write_findings(findings: Findings, dropped: list[dict[str, Any]], folder: Path) -> None:
    """findings.json (at most 1000 a rule, with full counts) and findings.parquet (all)."""
    write_json(folder / "findings.json", findings_json(findings, dropped))
    with atomic_path(folder / "findings.parquet") as temporary:
        pq.write_table(pa.Table.from_pandas(findings.frame(), preserve_index=False), temporary, compression="zstd")


def findings_json(findings: Findings, dropped: list[dict[str, Any]]) -> dict[str, Any]:
    """Findings, counts by rule and severity, what was dropped, and the rules that were found."""
    listed: Counter[str] = Counter()
    rows = []
    for row in findings:
        listed[row.rule] += 1
        if listed[row.rule] <= LISTED:
            rows.append(row.as_dict())
    counts = findings.by_rule()
    return {
        "findings": rows,
        "counts": {"by_rule": counts, "by_severity": findings.by_severity(), "total": len(findings)},
        "left_out": {rule: count - LISTED for rule, count in counts.items() if count > LISTED},
        "dropped": dropped,
        "rules": {
            name: {"severity": RULES[name].severity, "group": RULES[name].group, "explains": RULES[name].explains} for name in counts
        },
    }


def summary(found: Validation) -> dict[str, int]:
    """Flat numbers: findings by severity, images and annotations by split, classes, dropped."""
    tables = found.tables
    numbers = {f"{severity}s": count for severity, count in found.findings.by_severity().items()}
    numbers["dropped"] = len(found.dropped)
    numbers["classes"] = int(tables.categories["name"].nunique())
    for split in tables.splits:
        numbers[f"images_{split}"] = int((tables.images["split"] == split).sum())
        numbers[f"annotations_{split}"] = int((tables.annotations["split"] == split).sum())
    return numbers


def write_all(found: Validation, folder: Path) -> None:
    """Everything that the stage hands on."""
    found.tables.write(folder)
    write_findings(found.findings, found.dropped, folder)
    write_json(folder / "summary.json", summary(found))
    rows = "".join(f"{_quoted(group)},{split},{_quoted(name)}\n" for group, split, name in found.places)
    write_text(folder / "splits.csv", f"group,split,file_name\n{rows}")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(character in text for character in ',"\n\r') else text
