"""Categories: names, COCO's id traps, and how classes are spread over the splits."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from topwork.classes import BACKGROUND, UNUSED, category_set
from topwork.validation.raw_split import Part

COCO_91 = {
    name: number
    for number, name in enumerate(category_set("coco-91"))
    if name not in (BACKGROUND, UNUSED)
}
"""COCO's 80 classes with the ids 1..90 that its own files give them (ten are skipped)."""
COCO_80 = {name: index for index, name in enumerate(COCO_91)}
TRAINING_SPLITS = ("train", "val", "test")
RARE = 10
IMBALANCE = 100


def check_categories(part: Part) -> None:
    """All rules on the categories of one split."""
    for name, count in Counter(part.category_name).items():
        if count > 1:
            ids = [
                int(key)
                for key, other in zip(part.category_id, part.category_name, strict=True)
                if other == name
            ]
            part.find(
                "category-name-twice",
                f"the name {name!r} is borne by the categories {', '.join(map(str, ids))}",
            )
    for key, name in zip(part.category_id.tolist(), part.category_name, strict=True):
        if not name.strip():
            part.find("category-name-blank", f"category {key} has no name")
        elif name in (BACKGROUND, UNUSED):
            part.find(
                "category-name-reserved",
                f"category {key} is named {name!r}, which means a column without a class",
            )
        if key == 0:
            part.find(
                "category-id-zero",
                f"category 0 is {name!r}; torchvision's detectors use label 0 for background",
            )
    _check_twins(part)
    _check_coco_ids(part)
    used = set(np.unique(part.category).tolist())
    for key, name in zip(part.category_id.tolist(), part.category_name, strict=True):
        if key not in used and len(part.annotation_id):
            part.find("category-unused", f"category {key} ({name!r}) has no annotation")


def check_aliases(parts: Sequence[Part], aliases: Mapping[str, str]) -> None:
    """Names that dataset.aliases wants to change must be there."""
    known = {name for part in parts for name in part.category_name}
    for name in aliases:
        if name not in known and parts:
            parts[0].find(
                "category-alias-unknown",
                f"dataset.aliases names {name!r}, which no split has; they have:"
                f" {', '.join(sorted(known)[:40])}",
            )


def check_across(parts: Sequence[Part]) -> None:
    """Rules that hold train, val and test against each other."""
    of_set = {part.split: part for part in parts if part.split in TRAINING_SPLITS and part.readable}
    counts = {split: _counts(part) for split, part in of_set.items()}
    everything = sorted({name for part in of_set.values() for name in part.category_name})
    for split, part in of_set.items():
        lacking = [name for name in everything if name not in part.category_name]
        if lacking:
            part.find(
                "category-sets-differ",
                f"{split} doesn't list {', '.join(map(repr, lacking[:20]))}, which another split"
                " does",
            )
        for name in everything:
            elsewhere = {other: number[name] for other, number in counts.items() if number[name]}
            if elsewhere and not counts[split][name]:
                said = ", ".join(f"{number} in {other}" for other, number in elsewhere.items())
                part.find(
                    "category-missing-from-split", f"class {name!r} has no box in {split} ({said})"
                )
    _check_ids_differ(of_set)
    if "train" in of_set:
        _check_balance(of_set["train"], counts["train"])


def _check_twins(part: Part) -> None:
    plain: dict[str, list[str]] = {}
    for name in dict.fromkeys(part.category_name):
        plain.setdefault(re.sub(r"[\s_\-]+", "", name).casefold(), []).append(name)
    for names in plain.values():
        if len(names) > 1 and names[0].strip():
            part.find(
                "category-name-case",
                f"the names {', '.join(map(repr, names))} differ only in case, spaces, hyphens or"
                " underscores",
            )


def _check_coco_ids(part: Part) -> None:
    shared = {
        name: key
        for key, name in zip(part.category_id.tolist(), part.category_name, strict=True)
        if name in COCO_91
    }
    if len(shared) < 3 or all(COCO_91[name] == key for name, key in shared.items()):
        return
    for numbering, said in (
        (COCO_91, "COCO's own ids (1 to 90)"),
        (COCO_80, "COCO's index (0 to 79)"),
    ):
        for shift in (-1, 1):
            if numbering is COCO_80 and shift == 1:
                continue  # 1 to 80: a numbering of its own, told below
            if all(numbering[name] + shift == key for name, key in shared.items()):
                part.find(
                    "category-off-by-one",
                    f"the ids of {len(shared)} COCO classes are {said}"
                    f" {'plus' if shift > 0 else 'minus'} one",
                )
                return
    for start in (0, 1):
        if all(COCO_80[name] + start == key for name, key in shared.items()):
            part.find(
                "category-coco80-ids",
                f"{len(shared)} COCO classes have the ids {start} to {start + 79}; COCO's own files"
                " skip some up to 90",
            )
            return


def _check_ids_differ(parts: Mapping[str, Part]) -> None:
    seen: dict[str, tuple[int, str]] = {}
    for split, part in parts.items():
        for key, name in zip(part.category_id.tolist(), part.category_name, strict=True):
            if name in seen and seen[name][0] != key and seen[name][1] != split:
                part.find(
                    "category-ids-differ",
                    f"class {name!r} is {key} here and {seen[name][0]} in {seen[name][1]}",
                )
            seen.setdefault(name, (key, split))


def _check_balance(part: Part, counts: Counter[str]) -> None:
    if not counts:
        return
    for name, count in counts.items():
        if 0 < count < RARE:
            part.find("category-rare", f"class {name!r} has {count} boxes to learn from")
    (most, high), (least, low) = counts.most_common()[0], counts.most_common()[-1]
    if high > IMBALANCE * low:
        part.find("category-imbalance", f"{most!r} has {high} boxes, {least!r} has {low}")


def _counts(part: Part) -> Counter[str]:
    names = dict(zip(part.category_id.tolist(), part.category_name, strict=True))
    keys, numbers = np.unique(part.category, return_counts=True)
    counts: Counter[str] = Counter()
    for key, number in zip(keys.tolist(), numbers.tolist(), strict=True):
        if key in names:
            counts[names[key]] += number
    return counts
