"""Categories: names, COCO's id traps, and how classes are spread over the splits."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from topwork.classes import BACKGROUND, UNUSED, category_set
from topwork.project.names import CUSTOM_SPLITS
from topwork.validation.raw_split import RawSplit

COCO_91 = {
    name: number
    for number, name in enumerate(category_set("coco-91"))
    if name not in (BACKGROUND, UNUSED)
}
"""COCO's 80 classes with the ids 1..90 that its own files give them (ten are skipped)."""
COCO_80 = {name: index for index, name in enumerate(COCO_91)}
PLACEHOLDERS = ("_background_", "__ignore__", "_ignore_")
"""Names that LabelMe's converters write for what is no class."""
RARE = 10
IMBALANCE = 100


def leave_out_placeholders(raw: RawSplit) -> None:
    """LabelMe's `_background_` and `__ignore__` without an annotation aren't categories."""
    used = set(np.unique(raw.category).tolist())
    out = [
        name in PLACEHOLDERS and key not in used
        for key, name in zip(raw.category_id.tolist(), raw.category_name, strict=True)
    ]
    if any(out):
        names = [name for name, gone in zip(raw.category_name, out, strict=True) if gone]
        raw.find("category-placeholder", f"{', '.join(names)}: no class; left out")
        raw.category_id = raw.category_id[~np.array(out)]
        raw.category_name = [
            name for name, gone in zip(raw.category_name, out, strict=True) if not gone
        ]


def check_yolo_names(raw_splits: Sequence[RawSplit]) -> None:
    """Label files have numbers alone: YOLO sets of one data set must name them alike."""
    named: dict[int, tuple[str, RawSplit]] = {}
    for raw in raw_splits:
        if raw.format != "yolo" or raw.split not in CUSTOM_SPLITS:
            continue
        faults = []
        for key, name in zip(raw.category_id.tolist(), raw.category_name, strict=True):
            other, where = named.setdefault(key, (name, raw))
            if other != name:
                faults.append(f"{key} is {name!r} here and {other!r} in {where.file}")
        if faults:
            raw.find("yolo-names-differ", "; ".join(faults[:20]))


def check_categories(raw: RawSplit) -> None:
    """All rules on the categories of one split."""
    for name, count in Counter(raw.category_name).items():
        if count > 1:
            ids = [
                int(key)
                for key, other in zip(raw.category_id, raw.category_name, strict=True)
                if other == name
            ]
            raw.find(
                "category-name-twice",
                f"the name {name!r} is used by the categories {', '.join(map(str, ids))}",
            )
    for key, name in zip(raw.category_id.tolist(), raw.category_name, strict=True):
        if not name.strip():
            raw.find("category-name-blank", f"category {key} has no name")
        elif name in (BACKGROUND, UNUSED):
            raw.find(
                "category-name-reserved",
                f"category {key} is named {name!r}, which means a column without a class",
            )
        elif name in PLACEHOLDERS:
            rows = np.flatnonzero(raw.category == key)
            shown = ", ".join(f'"{raw.split}:{raw.annotation_id[row]}"' for row in rows[:20])
            raw.find(
                "category-name-reserved",
                f"category {key} is named {name!r}, which is no class, and has {len(rows)}"
                f" annotations: name it by dataset.aliases if it is one, else write"
                f" `dataset.drop: [{shown}{', ...' if len(rows) > 20 else ''}]`",
            )
        if key == 0:
            raw.find(
                "category-id-zero",
                f"category 0 is {name!r}; torchvision's detectors use label 0 for background",
            )
    _check_twins(raw)
    _check_coco_ids(raw)
    used = set(np.unique(raw.category).tolist())
    for key, name in zip(raw.category_id.tolist(), raw.category_name, strict=True):
        if key not in used and len(raw.annotation_id):
            raw.find("category-unused", f"category {key} ({name!r}) has no annotation")


def check_aliases(raw_splits: Sequence[RawSplit], aliases: Mapping[str, str]) -> None:
    """Names that dataset.aliases wants to change must be there."""
    known = {name for raw in raw_splits for name in raw.category_name}
    for name in aliases:
        if name not in known and raw_splits:
            raw_splits[0].find(
                "category-alias-unknown",
                f"dataset.aliases names {name!r}, which no split has; they have:"
                f" {', '.join(sorted(known)[:40])}",
            )


def check_across(raw_splits: Sequence[RawSplit]) -> None:
    """Rules that compare train, val and test."""
    of_set = {raw.split: raw for raw in raw_splits if raw.split in CUSTOM_SPLITS and raw.readable}
    counts = {split: _counts(raw) for split, raw in of_set.items()}
    everything = sorted({name for raw in of_set.values() for name in raw.category_name})
    for split, raw in of_set.items():
        lacking = [name for name in everything if name not in raw.category_name]
        if lacking:
            raw.find(
                "category-sets-differ",
                f"{split} doesn't list {', '.join(map(repr, lacking[:20]))}, which another split"
                " does",
            )
        for name in everything:
            elsewhere = {other: number[name] for other, number in counts.items() if number[name]}
            if elsewhere and not counts[split][name]:
                others = ", ".join(f"{number} in {other}" for other, number in elsewhere.items())
                raw.find(
                    "category-missing-from-split",
                    f"class {name!r} has no box in {split} ({others})",
                )
    _check_ids_differ(of_set)
    if "train" in of_set:
        _check_balance(of_set["train"], counts["train"])


def _check_twins(raw: RawSplit) -> None:
    plain: dict[str, list[str]] = {}
    for name in dict.fromkeys(raw.category_name):
        plain.setdefault(re.sub(r"[\s_\-]+", "", name).casefold(), []).append(name)
    for names in plain.values():
        if len(names) > 1 and names[0].strip():
            raw.find(
                "category-name-case",
                f"the names {', '.join(map(repr, names))} differ only in case, spaces, hyphens or"
                " underscores",
            )


def _check_coco_ids(raw: RawSplit) -> None:
    shared = {
        name: key
        for key, name in zip(raw.category_id.tolist(), raw.category_name, strict=True)
        if name in COCO_91
    }
    if len(shared) < 3 or all(COCO_91[name] == key for name, key in shared.items()):
        return
    for numbering, description in (
        (COCO_91, "COCO's own ids (1 to 90)"),
        (COCO_80, "COCO's index (0 to 79)"),
    ):
        for shift in (-1, 1):
            if numbering is COCO_80 and shift == 1:
                continue  # 1 to 80: a numbering of its own, see below
            if all(numbering[name] + shift == key for name, key in shared.items()):
                raw.find(
                    "category-off-by-one",
                    f"the ids of {len(shared)} COCO classes are {description}"
                    f" {'plus' if shift > 0 else 'minus'} one",
                )
                return
    for start in (0, 1):
        if all(COCO_80[name] + start == key for name, key in shared.items()):
            raw.find(
                "category-coco80-ids",
                f"{len(shared)} COCO classes have the ids {start} to {start + 79}; COCO's own files"
                " skip some up to 90",
            )
            return


def _check_ids_differ(raw_splits: Mapping[str, RawSplit]) -> None:
    seen: dict[str, tuple[int, str]] = {}
    for split, raw in raw_splits.items():
        for key, name in zip(raw.category_id.tolist(), raw.category_name, strict=True):
            if name in seen and seen[name][0] != key and seen[name][1] != split:
                raw.find(
                    "category-ids-differ",
                    f"class {name!r} is {key} here and {seen[name][0]} in {seen[name][1]}",
                )
            seen.setdefault(name, (key, split))


def _check_balance(raw: RawSplit, counts: Counter[str]) -> None:
    if not counts:
        return
    for name, count in counts.items():
        if 0 < count < RARE:
            raw.find("category-rare", f"class {name!r} has {count} boxes to learn from")
    (most, high), (least, low) = counts.most_common()[0], counts.most_common()[-1]
    if high > IMBALANCE * low:
        raw.find("category-imbalance", f"{most!r} has {high} boxes, {least!r} has {low}")


def _counts(raw: RawSplit) -> Counter[str]:
    names = dict(zip(raw.category_id.tolist(), raw.category_name, strict=True))
    keys, numbers = np.unique(raw.category, return_counts=True)
    counts: Counter[str] = Counter()
    for key, number in zip(keys.tolist(), numbers.tolist(), strict=True):
        if key in names:
            counts[names[key]] += number
    return counts
