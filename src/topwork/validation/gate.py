"""The data gate as one story: read every split, drop what was named, check, part, check across;
hand out tables and findings.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from topwork.dataset.images import ImageStore
from topwork.dataset.tables import SPLIT_ORDER, Tables
from topwork.errors import DataError
from topwork.params.dataset import DatasetParams, SplitParams
from topwork.validation.checks.boxes import check_boxes
from topwork.validation.checks.categories import check_across, check_aliases, check_categories
from topwork.validation.checks.ids import check_ids
from topwork.validation.checks.near import check_near
from topwork.validation.checks.pictures import check_images, check_names, check_same, check_store
from topwork.validation.checks.segmentation import check_segmentations
from topwork.validation.findings import Findings
from topwork.validation.probe import Probe, probe_images
from topwork.validation.raw_split import Bools, Part
from topwork.validation.reader import read_part
from topwork.validation.rules import RULES
from topwork.validation.splits import SPLITS, assign, groups_of, read_places


@dataclass
class Validation:
    """What the gate found.

    Attributes:
        tables: all splits, without what was dropped.
        findings: every fault, errors first.
        dropped: what the explicit lists took out.
        places: (group, split, file name) of each image where the gate parted the set itself; else
            empty.
        probed: images known, and images that had to be read in this run.
        readable: False when a whole split couldn't be read.
        stamps: (size, mtime) of each image looked at, by root and file name.
    """

    tables: Tables
    findings: Findings
    dropped: list[dict[str, Any]] = field(default_factory=list)
    places: list[tuple[str, str, str]] = field(default_factory=list)
    probed: tuple[int, int] = (0, 0)
    readable: bool = True
    stamps: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)


def validate(
    dataset: DatasetParams,
    base: Path = Path(),
    *,
    cache: Path | None = None,
    segmentation: bool = True,
    images: bool = True,
    workers: int | None = None,
) -> Validation:
    """Check a data set as params.yaml names it; changes nothing.

    Args:
        dataset: the section of params.yaml.
        base: folder that its paths are relative to.
        cache: folder for what is known of images between runs; None keeps nothing.
        segmentation: False leaves segmentations unread and unchecked.
        images: False leaves images unread and unchecked.
        workers: processes for image checks; None takes all cores.
    """
    findings = Findings()
    given = {name: entry for name in SPLIT_ORDER if (entry := getattr(dataset, name)) is not None}
    parting = dataset.split if [name for name in given if name in SPLITS] == ["train"] else None
    fields = dataset.split is not None and dataset.split.group_by is not None
    parts = [
        read_part(entry, split, base, findings, segmentation=segmentation, fields=fields)
        for split, entry in given.items()
    ]
    dropped = drop(parts, dataset, findings)
    readable = [part for part in parts if part.readable]
    for part in readable:
        check_ids(part)
        check_boxes(part)
        check_names(part)
        check_categories(part)
        check_segmentations(part)
    check_aliases(readable, dataset.aliases)
    for part in readable:
        _rename(part, dataset.aliases)
    probes, probed = _look_at_images(readable, base, cache, workers) if images else ({}, (0, 0))
    places: list[tuple[str, str, str]] = []
    if parting is not None and readable and readable[0].split == "train":
        fresh, places = part_set(readable[0], parting, probes.get(readable[0].root, {}), base)
        readable = [*fresh, *readable[1:]]
    elif dataset.split is not None and dataset.split.group_by is not None:
        _check_groups(readable, dataset.split.group_by)
    check_across(readable)
    check_same(readable, probes)
    check_near(readable, probes)
    stamps = {
        root: {name: (known.size, known.mtime) for name, known in found.items()}
        for root, found in probes.items()
    }
    tables = Tables.join([part.tables() for part in readable])
    return Validation(
        tables,
        findings.sorted(),
        dropped,
        places,
        probed,
        all(part.readable for part in parts),
        stamps,
    )


def changed_images(found: Validation, base: Path) -> list[str]:
    """Images whose size or time isn't what it was when they were looked at."""
    changed = []
    for root, stamps in found.stamps.items():
        store = ImageStore(base / root)
        changed += [
            f"{root}/{name}"
            for name, stamp in stamps.items()
            if (store.stamp(name) or (-1, -1)) != stamp
        ]
    return changed


def drop(parts: Sequence[Part], dataset: DatasetParams, findings: Findings) -> list[dict[str, Any]]:
    """Take the listed annotations and images out of the parts, and the readers' findings on them;
    returns what went.

    Raises:
        DataError: an id stands in several splits and the list doesn't say which.
    """
    gone: list[dict[str, Any]] = []
    annotations = _wanted(
        "drop",
        dataset.drop,
        {part.split: set(part.annotation_id.tolist()) for part in parts},
        findings,
    )
    images = _wanted(
        "drop_images",
        dataset.drop_images,
        {part.split: set(part.image_id.tolist()) for part in parts},
        findings,
    )
    for part in parts:
        out_images = np.isin(part.image_id, sorted(images[part.split]))
        out = np.isin(part.annotation_id, sorted(annotations[part.split])) | np.isin(
            part.annotated, part.image_id[out_images]
        )
        names = dict(zip(part.category_id.tolist(), part.category_name, strict=True))
        gone.extend(
            {
                "split": part.split,
                "kind": "image",
                "image_id": int(part.image_id[row]),
                "image": part.file_name[row],
            }
            for row in np.flatnonzero(out_images)
        )
        for row in np.flatnonzero(out):
            box = [float(value) if np.isfinite(value) else None for value in part.box[row]]
            gone.append(
                {
                    "split": part.split,
                    "kind": "annotation",
                    "annotation_id": int(part.annotation_id[row]),
                    "image_id": int(part.annotated[row]),
                    "image": part.name_of.get(int(part.annotated[row])),
                    "category": names.get(int(part.category[row])),
                    "box": box,
                }
            )
        _keep(part, ~out_images, ~out)
    findings.rows[:] = [
        row
        for row in findings
        if row.annotation_id not in annotations.get(row.split, ())
        and row.image_id not in images.get(row.split, ())
    ]
    return gone


def _wanted(
    name: str, entries: Sequence[int | str], known: Mapping[str, set[int]], findings: Findings
) -> dict[str, set[int]]:
    """Ids to drop by split, from entries such as 123 and `train:123`."""
    wanted: dict[str, set[int]] = {split: set() for split in known}
    for entry in entries:
        split, _, number = str(entry).rpartition(":")
        try:
            key = int(number)
        except ValueError as error:
            raise DataError(
                f"params.yaml: dataset.{name}: found {entry!r}, expected an id such as 123, or"
                " `train:123`."
            ) from error
        named = [split] if split else [other for other, ids in known.items() if key in ids]
        told = [
            row.split
            for row in findings
            if key == (row.annotation_id if name == "drop" else row.image_id)
        ]
        if not split and not named:
            named = sorted(
                set(told)
            )  # a record that couldn't be put in the tables can still be dropped by its id
        if not split and len(named) > 1:
            choices = " or ".join(f"`{other}:{key}`" for other in named)
            raise DataError(
                f"params.yaml: dataset.{name}: the id {key} stands in {' and '.join(named)}; write"
                f" {choices}."
            )
        if (
            not named
            or named[0] not in known
            or (key not in known[named[0]] and named[0] not in told)
        ):
            findings.add(
                "drop-unknown",
                named[0] if named else "",
                "params.yaml",
                f"dataset.{name} names {entry}, which isn't there",
            )
        else:
            wanted[named[0]].add(key)
    return wanted


def _keep(part: Part, images: Bools, annotations: Bools) -> None:
    """Keep the flagged rows, all parallel columns together."""
    part.image_id, part.image_width, part.image_height = (
        column[images] for column in (part.image_id, part.image_width, part.image_height)
    )
    part.file_name = [
        name for name, kept in zip(part.file_name, images.tolist(), strict=True) if kept
    ]
    part.annotation_id, part.annotated, part.category = (
        column[annotations] for column in (part.annotation_id, part.annotated, part.category)
    )
    part.box, part.area, part.crowd = (
        part.box[annotations],
        part.area[annotations],
        part.crowd[annotations],
    )
    if part.segmentation is not None:
        part.segmentation = part.segmentation.filter(pa.array(annotations))
    part.__dict__.pop("_name_of", None)


def _rename(part: Part, aliases: Mapping[str, str]) -> None:
    """Category names as the project says them; names that become one share the first one's id."""
    first: dict[str, int] = {}
    kept: list[int] = []
    for row, (key, name) in enumerate(
        zip(part.category_id.tolist(), part.category_name, strict=True)
    ):
        new = aliases.get(name, name)
        if name != new or new in aliases.values():
            if new in first:
                part.category = np.where(part.category == key, first[new], part.category)
                continue
            first[new] = key
        part.category_name[row] = new
        kept.append(row)
    part.category_id, part.category_name = (
        part.category_id[kept],
        [part.category_name[row] for row in kept],
    )


def _look_at_images(
    parts: Sequence[Part], base: Path, cache: Path | None, workers: int | None
) -> tuple[dict[str, dict[str, Probe]], tuple[int, int]]:
    """Probe every listed image and check it; returns probes by root and file name, and how many are
    known and were read.
    """
    probes: dict[str, dict[str, Probe]] = {}
    read = 0
    for root in dict.fromkeys(part.root for part in parts):
        here = [part for part in parts if part.root == root]
        try:
            store = ImageStore(base / root)
        except DataError as error:
            here[0].find("archive-unreadable", str(error).replace(str(base / root), root))
            continue
        names = [name for part in here for name in part.file_name]
        probes[root], fresh = probe_images(store, names, cache, workers)
        read += fresh
        check_store(here[0], store, set(names))
        for part in here:
            check_images(part, store, probes[root])
            unsized = np.flatnonzero((part.image_width <= 0) | (part.image_height <= 0))
            for row in unsized:
                known = probes[root][part.file_name[row]]
                part.image_width[row], part.image_height[row] = known.width, known.height
    return probes, (sum(len(found) for found in probes.values()), read)


def part_set(
    part: Part, parting: SplitParams, probes: Mapping[str, Probe], base: Path
) -> tuple[list[Part], list[tuple[str, str, str]]]:
    """Part one set into train, val and test; its findings move with their images.

    Also gives (group, split, file name) of each image.
    """
    digests = [probes[name].sha256 if name in probes else "" for name in part.file_name]
    fields = [part.fields.get(key, {}) for key in part.image_id.tolist()]
    found = groups_of(part.file_name, digests, fields, parting.group_by)
    for row, group in enumerate(found):
        if group is None:
            part.find_image(
                "split-ungrouped",
                row,
                f"{part.file_name[row]} has no group by {parting.group_by!r}; placed alone",
            )
    groups = [
        group if group is not None else f"alone:{name}"
        for group, name in zip(found, part.file_name, strict=True)
    ]
    classes = [Counter[str]() for _ in groups]
    names = dict(zip(part.category_id.tolist(), part.category_name, strict=True))
    rows = part.image_rows()
    for row, key in zip(rows.tolist(), part.category.tolist(), strict=True):
        if row >= 0 and key in names:
            classes[row][names[key]] += 1
    earlier = None if parting.assigned is None else read_places(base / parting.assigned)
    where = assign(groups, classes, parting.val, parting.test, earlier)
    parts = []
    for split in SPLITS:
        chosen = np.array([place == split for place in where], np.bool_)
        if split != "train" and not getattr(parting, split):
            continue
        fresh = replace(part, split=split, category_name=list(part.category_name))
        annotations = chosen[rows] & (rows >= 0) if len(chosen) else np.zeros(len(rows), np.bool_)
        if split == "train":
            annotations |= rows < 0  # dangling ones stay with the set they came in
        _keep(fresh, chosen, annotations)
        if not len(fresh.image_id):
            fresh.find(
                "split-empty",
                f"{split} got none of the {len(groups)} images ({len(set(groups))} groups)",
            )
        parts.append(fresh)
    of_image = dict(zip(part.image_id.tolist(), where, strict=True))
    part.findings.rows[:] = [
        (
            row._replace(split=of_image[row.image_id])
            if row.split == "train" and row.image_id in of_image
            else row
        )
        for row in part.findings
    ]
    return parts, sorted(set(zip(groups, where, part.file_name, strict=True)))


def _check_groups(parts: Sequence[Part], group_by: str) -> None:
    """Splits that came parted: no group may stand in two of them."""
    home: dict[str, str] = {}
    for part in (part for part in parts if part.split in SPLITS):
        fields = [part.fields.get(key, {}) for key in part.image_id.tolist()]
        groups = groups_of(part.file_name, [""] * len(fields), fields, group_by)
        for group, count in sorted(Counter(group for group in groups if group is not None).items()):
            if home.setdefault(group, part.split) != part.split:
                part.find(
                    "split-group-leak",
                    f"the group {group!r} has {count} images in {part.split} and others in"
                    f" {home[group]}",
                )
        for row in (row for row, group in enumerate(groups) if group is None):
            part.find_image(
                "split-ungrouped", row, f"{part.file_name[row]} has no group by {group_by!r}"
            )


def paragraph(findings: Findings, severities: Sequence[str], kept_at: str | None = None) -> str:
    """All faults of some severities as one paragraph: counts by rule and the first three of each,
    errors first.
    """
    rows = [row for row in findings.sorted() if row.severity in severities]
    pieces = []
    for rule in dict.fromkeys(row.rule for row in rows):
        of_rule = [row for row in rows if row.rule == rule]
        shown = "; ".join(row.text().rstrip(".") for row in of_rule[:3])
        more = f"; and {len(of_rule) - 3} more" if len(of_rule) > 3 else ""
        pieces.append(f"{rule} ({len(of_rule)}): {shown}{more}")
    where = f" All of them: {kept_at}." if kept_at else ""
    fixable = any(row.image_id is not None or row.annotation_id is not None for row in rows)
    choice = (
        ", or list the ids under dataset.drop (annotations) or dataset.drop_images (images) in"
        " params.yaml; `topwork validate --fix-list` writes them"
        if fixable
        else " and run again"
    )
    one = len(rows) == 1
    count = (
        "1 fault in the data"
        if one
        else (
            f"{len(rows)} faults in the data, of {len(pieces)} kind{'s' if len(pieces) > 1 else ''}"
        )
    )
    return f"{count}. {'. '.join(pieces)}.{where} Mend {'it' if one else 'them'}{choice}."


def stops(findings: Findings, fail_on: str) -> list[str]:
    """The severities that stop the stage under `fail_on`, if there's a finding of one of them."""
    severities = {"error": ["error"], "warning": ["error", "warning"], "never": []}[fail_on]
    fatal = any(RULES[row.rule].fatal for row in findings)
    found = [row.severity for row in findings]
    if any(severity in found for severity in severities):
        return severities
    return ["error"] if fatal else []
