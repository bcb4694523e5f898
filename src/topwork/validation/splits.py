"""Splits: which image goes to train, val or test.

Without a list of earlier places each group's place follows from a hash of its own content and of
nothing else: deterministic, the same in any order, and images that are added later move none. A
rule that looks at one group alone can only be stratified on average; exact stratification has to
look at the others, and then an added image may move an old one. Both hold together once earlier
places are on file (`split.assigned`): those stay, and new groups go where their classes lack most.
"""

import csv
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from topwork.errors import DataError, ParamsError
from topwork.project.names import CUSTOM_SPLITS
from topwork.project.validate import SPLITS_TABLE


def groups_of(
    names: Sequence[str],
    digests: Sequence[str],
    fields: Sequence[Mapping[str, Any]],
    group_by: str | None,
) -> list[str | None]:
    """The group of each image: its content's hash, a field of its record, or what a pattern finds
    in its name; None where that fails.

    Args:
        names: file names.
        digests: SHA-256 of each image's bytes.
        fields: each image's record.
        group_by: None, the name of a field, or a regular expression with a group.

    Raises:
        ParamsError: `group_by` is neither a field nor a regular expression.
    """
    if group_by is None:
        return [digest or f"name:{name}" for name, digest in zip(names, digests, strict=True)]
    if any(group_by in record for record in fields):
        return [
            None if record.get(group_by) is None else str(record[group_by]) for record in fields
        ]
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise ParamsError(
            f"dataset.split.group_by: {group_by!r} is neither a field of the image records nor a"
            f" regular expression ({error})."
        ) from error
    matches = [pattern.search(name) for name in names]
    if not any(matches):
        raise ParamsError(
            f"dataset.split.group_by: {group_by!r} is no field of the image records, and as a"
            " pattern it matches no file name."
        )
    return [
        None if match is None else (match.group(1) if pattern.groups else match.group())
        for match in matches
    ]


def place(group: str, val: float, test: float) -> str:
    """The split of a group by its hash alone."""
    share = (
        int.from_bytes(hashlib.sha256(f"topwork split\0{group}".encode()).digest()[:8], "big")
        / 2**64
    )
    return "test" if share < test else "val" if share < test + val else "train"


def assign(
    groups: Sequence[str],
    classes: Sequence[Counter[str]],
    val: float,
    test: float,
    earlier: Mapping[str, str] | None = None,
) -> list[str]:
    """The split of each image.

    Args:
        groups: its group; images of one group stay together.
        classes: its number of boxes by class.
        val: share for validation.
        test: share for the test.
        earlier: group -> split of earlier runs, to be kept; None places each group by its hash
            alone. An empty mapping stratifies all.
    """
    if earlier is None:
        return [place(group, val, test) for group in groups]
    return _stratify(groups, classes, {"train": 1 - val - test, "val": val, "test": test}, earlier)


def _stratify(
    groups: Sequence[str],
    classes: Sequence[Counter[str]],
    shares: Mapping[str, float],
    earlier: Mapping[str, str],
) -> list[str]:
    """Iterative stratification: the rarest class first, each group where its class lacks most.

    Source: Sechidis, Tsoumakas, Vlahavas, On the stratification of multi-label data (ECML PKDD
    2011), here on groups and box counts.
    """
    members: dict[str, Counter[str]] = defaultdict(Counter)
    images: Counter[str] = Counter()
    for group, counts in zip(groups, classes, strict=True):
        members[group].update(counts)
        images[group] += 1
    total = sum(members.values(), Counter())
    lacking = {
        split: {name: share * count for name, count in total.items()}
        for split, share in shares.items()
    }
    room = {split: share * len(groups) for split, share in shares.items()}
    places: dict[str, str] = {}

    def put(group: str, split: str) -> None:
        places[group] = split
        room[split] -= images[group]
        for name, count in members[group].items():
            lacking[split][name] -= count

    order = sorted(members, key=lambda group: hashlib.sha256(group.encode()).hexdigest())
    for group in order:
        if group in earlier:
            put(group, earlier[group])
    for name, _ in sorted(total.items(), key=lambda item: (item[1], item[0])):
        having = [group for group in order if group not in places and members[group][name]]
        for group in sorted(having, key=lambda group: -members[group][name]):
            put(
                group,
                max(
                    CUSTOM_SPLITS,
                    key=lambda split: (
                        shares[split] > 0,
                        lacking[split][name],
                        room[split],
                        -CUSTOM_SPLITS.index(split),
                    ),
                ),
            )
    for group in order:
        if group not in places:
            put(
                group,
                max(
                    CUSTOM_SPLITS,
                    key=lambda split: (shares[split] > 0, room[split], -CUSTOM_SPLITS.index(split)),
                ),
            )
    return [places[group] for group in groups]


def read_places(path: Path) -> dict[str, str]:
    """Group -> split from a CSV that an earlier run wrote (out/validate/splits.csv).

    Raises:
        DataError: it's missing, or not such a table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        places = {row["group"]: row["split"] for row in rows}
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file, and dataset.split.assigned names it. Copy"
            f" {SPLITS_TABLE.as_posix()} of an earlier run there."
        ) from error
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: not a CSV with the columns group and split ({error!r})."
        ) from error
    wrong = sorted({split for split in places.values() if split not in CUSTOM_SPLITS})
    if wrong:
        raise DataError(f"{path}: split is {wrong[0]!r}, expected train, val or test.")
    return places
