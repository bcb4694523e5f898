"""What the gate writes: tables, findings as JSON and Parquet, a flat summary."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from topwork.files import atomic_path, write_json, write_text
from topwork.project.validate import (
    FINDINGS,
    FINDINGS_TABLE,
    SPLITS_TABLE,
    SUMMARY,
    FindingCounts,
    FindingRecord,
    FindingsRecord,
    RuleRecord,
)
from topwork.validation.findings import Findings
from topwork.validation.gate import Validation
from topwork.validation.rules import RULES

LISTED = 1000  # findings of one rule that the JSON lists; the Parquet file has all


def write_findings(findings: Findings, dropped: list[dict[str, Any]], folder: Path) -> None:
    """findings.json (at most 1000 a rule, with full counts) and findings.parquet (all)."""
    findings_record(findings, dropped).write(folder / FINDINGS.name)
    with atomic_path(folder / FINDINGS_TABLE.name) as temporary:
        table = pa.Table.from_pandas(findings.frame(), preserve_index=False)
        pq.write_table(table, temporary, compression="zstd")


def findings_record(findings: Findings, dropped: list[dict[str, Any]]) -> FindingsRecord:
    """Findings, counts by rule and severity, what was dropped, and the rules that were broken."""
    listed: Counter[str] = Counter()
    rows = []
    for row in findings:
        listed[row.rule] += 1
        if listed[row.rule] <= LISTED:
            rows.append(FindingRecord.model_validate(row.as_dict()))
    counts = findings.by_rule()
    return FindingsRecord(
        findings=tuple(rows),
        counts=FindingCounts(
            by_rule=counts, by_severity=findings.by_severity(), total=len(findings)
        ),
        left_out={rule: count - LISTED for rule, count in counts.items() if count > LISTED},
        dropped=tuple(dropped),
        rules={
            name: RuleRecord(
                severity=RULES[name].severity,
                group=RULES[name].group,
                explains=RULES[name].explains,
            )
            for name in counts
        },
    )


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
    """Write every output of the stage."""
    found.tables.write(folder)
    write_findings(found.findings, found.dropped, folder)
    write_json(folder / SUMMARY.name, summary(found))
    rows = "".join(
        f"{_quoted(group)},{split},{_quoted(name)}\n" for group, split, name in found.places
    )
    write_text(folder / SPLITS_TABLE.name, f"group,split,file_name\n{rows}")


def _quoted(text: str) -> str:
    return (
        '"' + text.replace('"', '""') + '"'
        if any(character in text for character in ',"\n\r')
        else text
    )
