"""The fix list: findings turned into the ids that dataset.drop and dataset.drop_images take."""

from collections.abc import Sequence

from topwork.validation.findings import Findings


def fix_list(findings: Findings, severities: Sequence[str]) -> str:
    """YAML for the section dataset: annotations and images with findings of these severities, by
    split and id.

    An image's annotations go with it. Faults that have no id can't be left out; they're listed as
    comments.
    """
    images: dict[tuple[str, int], set[str]] = {}
    annotations: dict[tuple[str, int], set[str]] = {}
    rest: list[str] = []
    for row in findings.sorted():
        if row.severity not in severities:
            continue
        if row.annotation_id is not None:
            annotations.setdefault((row.split, row.annotation_id), set()).add(row.rule)
        elif row.image_id is not None:
            images.setdefault((row.split, row.image_id), set()).add(row.rule)
        else:
            rest.append(f"# to mend by hand: {row.rule}: {' '.join(row.text().split())}\n")
    lines = ["dataset:\n", *_section("drop", annotations), *_section("drop_images", images)]
    return "".join([*lines, *rest])


def _section(name: str, entries: dict[tuple[str, int], set[str]]) -> list[str]:
    if not entries:
        return [f"  {name}: []\n"]
    return [
        f"  {name}:\n",
        *(
            f'    - "{split}:{key}"  # {", ".join(sorted(rules))}\n'
            for (split, key), rules in sorted(entries.items())
        ),
    ]
