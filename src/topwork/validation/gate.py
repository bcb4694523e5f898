"""The data gate as one story: read every split, drop what was named, check, divide, check across;
return tables and findings.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from topwork.dataset.images import ImageStore
from topwork.dataset.tables import Tables
from topwork.errors import DataError
from topwork.params.dataset import DatasetParams, SplitParams
from topwork.project.names import CUSTOM_SPLITS, SPLITS
from topwork.validation.checks.boxes import check_boxes
from topwork.validation.checks.categories import (
    check_across,
    check_aliases,
    check_categories,
    check_yolo_names,
    leave_out_placeholders,
)
from topwork.validation.checks.ids import check_ids
from topwork.validation.checks.near import check_near
from topwork.validation.checks.pictures import (
    check_images,
    check_names,
    check_same,
    check_store,
    match_names,
)
from topwork.validation.checks.segmentation import check_segmentations
from topwork.validation.findings import Findings
from topwork.validation.probe import Probe, probe_images
from topwork.validation.raw_split import Bools, RawSplit
from topwork.validation.read_voc import settle_corners
from topwork.validation.reader import read_split
from topwork.validation.rules import RULES
from topwork.validation.splits import assign, groups_of, read_places
from topwork.validation.turning import labelled_frame, size_in, straighten, turn


@dataclass
class Validation:
    """What the gate found.

    Attributes:
        tables: all splits, without what was dropped.
        findings: every fault, errors first.
        dropped: what the explicit lists took out.
        places: (group, split, file name) of each image where the gate divided the set itself; else
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
    given = {name: entry for name in SPLITS if (entry := getattr(dataset, name)) is not None}
    split_params = to_divide(dataset)
    fields = dataset.split is not None and dataset.split.group_by is not None
    raw_splits = [
        read_split(
            entry,
            split,
            base,
            findings,
            segmentation=segmentation,
            fields=fields,
            upright=dataset.exif == "turned",
        )
        for split, entry in given.items()
    ]
    for data_set in data_sets(raw_splits):
        settle_corners([raw for raw in data_set if raw.corners], dataset.voc_base)
    dropped = drop(raw_splits, dataset, findings)
    readable = [raw for raw in raw_splits if raw.readable]
    if images and dataset.match == "nearest":
        _match_names(readable, base)
    for raw in readable:
        leave_out_placeholders(raw)
        straighten(raw, dataset.rotated)
        check_ids(raw)
        check_boxes(raw)
        check_names(raw)
        check_categories(raw)
        check_segmentations(raw)
    check_aliases(readable, dataset.aliases)
    for raw in readable:
        _rename(raw, dataset.aliases)
    probes, probed = (
        _look_at_images(readable, dataset, base, cache, workers) if images else ({}, (0, 0))
    )
    places: list[tuple[str, str, str]] = []
    if split_params is not None and readable and readable[0].split == "train":
        fresh, places = split_set(readable[0], split_params, probes.get(readable[0].root, {}), base)
        readable = sorted([*fresh, *readable[1:]], key=lambda raw: SPLITS.index(raw.split))
    if (
        dataset.split is not None
        and dataset.split.group_by is not None
        and (dataset.val is not None or dataset.test is not None)
    ):
        _check_groups(readable, dataset.split.group_by)
    check_across(readable)
    check_yolo_names(readable)
    check_same(readable, probes)
    check_near(readable, probes)
    stamps = {
        root: {name: (known.size, known.mtime) for name, known in found.items()}
        for root, found in probes.items()
    }
    tables = Tables.join([raw.tables() for raw in readable])
    return Validation(
        tables,
        findings.sorted(),
        dropped,
        places,
        probed,
        all(raw.readable for raw in raw_splits),
        stamps,
    )


def to_divide(dataset: DatasetParams) -> SplitParams | None:
    """How train is divided: with train alone, as `split` says; else into the parts that `split`
    names and that aren't given. None where it stays whole.
    """
    split = dataset.split
    given = [name for name in ("val", "test") if getattr(dataset, name) is not None]
    if split is None or not given:
        return split
    parts = {
        name: getattr(split, name) if name in split.model_fields_set and name not in given else 0.0
        for name in ("val", "test")
    }
    return split.model_copy(update=parts) if any(parts.values()) else None


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


def drop(
    raw_splits: Sequence[RawSplit], dataset: DatasetParams, findings: Findings
) -> list[dict[str, Any]]:
    """Take the listed annotations and images out of the splits, and the readers' findings on them;
    returns what was dropped.

    Raises:
        DataError: an id is in several splits and the list doesn't name one.
    """
    dropped: list[dict[str, Any]] = []
    annotations = _wanted(
        "drop",
        dataset.drop,
        {raw.split: set(raw.annotation_id.tolist()) for raw in raw_splits},
        findings,
    )
    images = _wanted(
        "drop_images",
        dataset.drop_images,
        {raw.split: set(raw.image_id.tolist()) for raw in raw_splits},
        findings,
    )
    for raw in raw_splits:
        out_images = np.isin(raw.image_id, sorted(images[raw.split]))
        out = np.isin(raw.annotation_id, sorted(annotations[raw.split])) | np.isin(
            raw.annotated, raw.image_id[out_images]
        )
        names = dict(zip(raw.category_id.tolist(), raw.category_name, strict=True))
        dropped.extend(
            {
                "split": raw.split,
                "kind": "image",
                "image_id": int(raw.image_id[row]),
                "image": raw.file_name[row],
            }
            for row in np.flatnonzero(out_images)
        )
        for row in np.flatnonzero(out):
            box = [float(value) if np.isfinite(value) else None for value in raw.box[row]]
            dropped.append(
                {
                    "split": raw.split,
                    "kind": "annotation",
                    "annotation_id": int(raw.annotation_id[row]),
                    "image_id": int(raw.annotated[row]),
                    "image": raw.name_of.get(int(raw.annotated[row])),
                    "category": names.get(int(raw.category[row])),
                    "box": box,
                }
            )
        _keep(raw, ~out_images, ~out)
    findings.rows[:] = [
        row
        for row in findings
        if row.annotation_id not in annotations.get(row.split, ())
        and row.image_id not in images.get(row.split, ())
    ]
    return dropped


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
        found_in = [
            row.split
            for row in findings
            if key == (row.annotation_id if name == "drop" else row.image_id)
        ]
        if not split and not named:
            # a record that couldn't be put in the tables can still be dropped by its id
            named = sorted(set(found_in))
        if not split and len(named) > 1:
            choices = " or ".join(f"`{other}:{key}`" for other in named)
            raise DataError(
                f"params.yaml: dataset.{name}: the id {key} is in {' and '.join(named)}; write"
                f" {choices}."
            )
        if (
            not named
            or named[0] not in known
            or (key not in known[named[0]] and named[0] not in found_in)
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


def _keep(raw: RawSplit, images: Bools, annotations: Bools) -> None:
    """Keep the flagged rows, all parallel columns together."""
    raw.image_id, raw.image_width, raw.image_height = (
        column[images] for column in (raw.image_id, raw.image_width, raw.image_height)
    )
    raw.file_name = [
        name for name, kept in zip(raw.file_name, images.tolist(), strict=True) if kept
    ]
    raw.annotation_id, raw.annotated, raw.category = (
        column[annotations] for column in (raw.annotation_id, raw.annotated, raw.category)
    )
    raw.rotation = None if raw.rotation is None else raw.rotation[annotations]
    raw.box, raw.area, raw.crowd = (
        raw.box[annotations],
        raw.area[annotations],
        raw.crowd[annotations],
    )
    if raw.segmentation is not None:
        raw.segmentation = raw.segmentation.filter(pa.array(annotations))
    raw.__dict__.pop("_name_of", None)


def _rename(raw: RawSplit, aliases: Mapping[str, str]) -> None:
    """Category names as the project has them; names that become one share the first one's id."""
    first: dict[str, int] = {}
    kept: list[int] = []
    for row, (key, name) in enumerate(
        zip(raw.category_id.tolist(), raw.category_name, strict=True)
    ):
        new = aliases.get(name, name)
        if name != new or new in aliases.values():
            if new in first:
                raw.category = np.where(raw.category == key, first[new], raw.category)
                continue
            first[new] = key
        raw.category_name[row] = new
        kept.append(row)
    raw.category_id, raw.category_name = (
        raw.category_id[kept],
        [raw.category_name[row] for row in kept],
    )


def data_sets(raw_splits: Sequence[RawSplit]) -> list[list[RawSplit]]:
    """Splits that one tool wrote, by what params.yaml says of them: train, val and test are one
    data set, source and replay another each, unless they're read from a file of the first.
    """
    own = [raw for raw in raw_splits if raw.split in CUSTOM_SPLITS]
    files = {raw.file for raw in own}
    others = [raw for raw in raw_splits if raw.split not in CUSTOM_SPLITS]
    own += [raw for raw in others if raw.file in files]
    return [group for group in (own, *([raw] for raw in others if raw.file not in files)) if group]


def _match_names(raw_splits: Sequence[RawSplit], base: Path) -> None:
    """`dataset.match: nearest`; a folder that can't be opened is reported with its images."""
    for raw in raw_splits:
        with suppress(DataError):
            match_names(raw, ImageStore(base / raw.root))


def _look_at_images(
    raw_splits: Sequence[RawSplit],
    dataset: DatasetParams,
    base: Path,
    cache: Path | None,
    workers: int | None,
) -> tuple[dict[str, dict[str, Probe]], tuple[int, int]]:
    """Probe every listed image and check it, and put boxes into pixels of the upright picture;
    returns probes by root and file name, and how many are known and were read.
    """
    stores: dict[str, ImageStore] = {}
    probes: dict[str, dict[str, Probe]] = {}
    read = 0
    for root in dict.fromkeys(raw.root for raw in raw_splits):
        here = [raw for raw in raw_splits if raw.root == root]
        try:
            store = ImageStore(base / root)
        except DataError as error:
            here[0].find("archive-unreadable", str(error).replace(str(base / root), root))
            continue
        names = [name for raw in here for name in raw.file_name]
        probes[root], fresh = probe_images(store, names, cache, workers)
        read += fresh
        check_store(here[0], store, set(names))
        stores[root] = store
    for data_set in data_sets([raw for raw in raw_splits if raw.root in stores]):
        frame = labelled_frame(data_set, probes, dataset.exif)
        for raw in data_set:
            known = probes[raw.root]
            check_images(raw, stores[raw.root], known, frame)
            for row in np.flatnonzero((raw.image_width <= 0) | (raw.image_height <= 0)):
                found = known[raw.file_name[row]]
                raw.image_width[row], raw.image_height[row] = size_in(found, frame)
            turn(raw, known, frame)
    return probes, (sum(len(found) for found in probes.values()), read)


def split_set(
    raw: RawSplit, split_params: SplitParams, probes: Mapping[str, Probe], base: Path
) -> tuple[list[RawSplit], list[tuple[str, str, str]]]:
    """Divide one set into train, val and test; its findings move with their images.

    Also gives (group, split, file name) of each image.
    """
    digests = [probes[name].sha256 if name in probes else "" for name in raw.file_name]
    fields = [raw.fields.get(key, {}) for key in raw.image_id.tolist()]
    found = groups_of(raw.file_name, digests, fields, split_params.group_by)
    for row, group in enumerate(found):
        if group is None:
            raw.find_image(
                "split-ungrouped",
                row,
                f"{raw.file_name[row]} has no group by {split_params.group_by!r}; placed alone",
            )
    groups = [
        group if group is not None else f"alone:{name}"
        for group, name in zip(found, raw.file_name, strict=True)
    ]
    classes = [Counter[str]() for _ in groups]
    names = dict(zip(raw.category_id.tolist(), raw.category_name, strict=True))
    rows = raw.image_rows()
    for row, key in zip(rows.tolist(), raw.category.tolist(), strict=True):
        if row >= 0 and key in names:
            classes[row][names[key]] += 1
    earlier = None if split_params.assigned is None else read_places(base / split_params.assigned)
    where = assign(groups, classes, split_params.val, split_params.test, earlier)
    raw_splits = []
    for split in CUSTOM_SPLITS:
        chosen = np.array([place == split for place in where], np.bool_)
        if split != "train" and not getattr(split_params, split):
            continue
        fresh = replace(raw, split=split, category_name=list(raw.category_name))
        annotations = chosen[rows] & (rows >= 0) if len(chosen) else np.zeros(len(rows), np.bool_)
        if split == "train":
            annotations |= rows < 0  # dangling ones stay with the set they came in
        _keep(fresh, chosen, annotations)
        if not len(fresh.image_id):
            fresh.find(
                "split-empty",
                f"{split} got none of the {len(groups)} images ({len(set(groups))} groups)",
            )
        raw_splits.append(fresh)
    of_image = dict(zip(raw.image_id.tolist(), where, strict=True))
    raw.findings.rows[:] = [
        (
            row._replace(split=of_image[row.image_id])
            if row.split == "train" and row.image_id in of_image
            else row
        )
        for row in raw.findings
    ]
    return raw_splits, sorted(set(zip(groups, where, raw.file_name, strict=True)))


def _check_groups(raw_splits: Sequence[RawSplit], group_by: str) -> None:
    """Splits that were given separately: no group may be in two of them."""
    home: dict[str, str] = {}
    for raw in (raw for raw in raw_splits if raw.split in CUSTOM_SPLITS):
        fields = [raw.fields.get(key, {}) for key in raw.image_id.tolist()]
        groups = groups_of(raw.file_name, [""] * len(fields), fields, group_by)
        for group, count in sorted(Counter(group for group in groups if group is not None).items()):
            if home.setdefault(group, raw.split) != raw.split:
                raw.find(
                    "split-group-leak",
                    f"the group {group!r} has {count} images in {raw.split} and others in"
                    f" {home[group]}",
                )
        for row in (row for row, group in enumerate(groups) if group is None):
            raw.find_image(
                "split-ungrouped", row, f"{raw.file_name[row]} has no group by {group_by!r}"
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
