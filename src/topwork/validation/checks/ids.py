"""Ids: twice, dangling, negative; images listed twice or without size or annotations."""

from collections import Counter

import numpy as np

from topwork.validation.raw_split import Ints, RawSplit


def check_ids(raw: RawSplit) -> None:
    """All rules on ids of one split."""
    _check_images(raw)
    _check_categories(raw)
    _check_annotations(raw)


def _check_images(raw: RawSplit) -> None:
    if not len(raw.image_id):
        raw.find("set-empty", "lists no image")
        return
    for row in repeated(raw.image_id):
        raw.find_image(
            "image-id-twice", row, f"the id {raw.image_id[row]} is used by another image too"
        )
    for row in np.flatnonzero(raw.image_id < 0).tolist():
        raw.find_image("id-negative", row, f"id {raw.image_id[row]}, expected 0 or more")
    for row in np.flatnonzero((raw.image_width <= 0) | (raw.image_height <= 0)).tolist():
        size = f"{raw.image_width[row]}x{raw.image_height[row]}"
        raw.find_image(
            "image-size-missing",
            row,
            f"width and height are {size}, expected pixels; taken from the image",
        )
    if len(set(raw.file_name)) < len(raw.file_name):
        counts = Counter(raw.file_name)
        for row, name in enumerate(raw.file_name):
            if counts[name] > 1:
                raw.find_image(
                    "image-listed-twice",
                    row,
                    f"{name} is listed {counts[name]} times, under several ids",
                )
        _check_repeated(raw, {name for name, count in counts.items() if count > 1})
    if not len(raw.annotation_id):
        where = (
            f"; no image has a label file, the first one's would be {raw.looked_for}"
            if raw.looked_for
            else ""
        )
        raw.find(
            "train-unannotated" if raw.split == "train" else "set-unannotated",
            f"has {len(raw.image_id)} images and no annotation{where}",
        )
        return
    empty = raw.image_id[~np.isin(raw.image_id, raw.annotated)]
    if len(empty):
        shown = ", ".join(map(str, empty[:10].tolist()))
        raw.find(
            "image-empty",
            f"{len(empty)} of {len(raw.image_id)} images have no annotation (ids"
            f" {shown}{', ...' if len(empty) > 10 else ''})",
        )


def _check_repeated(raw: RawSplit, names: set[str]) -> None:
    """Records of one file that have different boxes: each would teach that the others' objects
    aren't there.
    """
    ids = {
        int(image_id): name
        for image_id, name in zip(raw.image_id.tolist(), raw.file_name, strict=True)
        if name in names
    }
    labels: dict[int, list[tuple[float, ...]]] = {image_id: [] for image_id in ids}
    for row in np.flatnonzero(np.isin(raw.annotated, sorted(ids))).tolist():
        labels[int(raw.annotated[row])].append(
            (int(raw.category[row]), *np.round(raw.box[row], 1).tolist())
        )
    first: dict[str, int] = {}
    for row, (image_id, name) in enumerate(zip(raw.image_id.tolist(), raw.file_name, strict=True)):
        if name not in names:
            continue
        other = first.setdefault(name, image_id)
        if sorted(map(str, labels[other])) != sorted(map(str, labels[image_id])):
            raw.find_image(
                "image-boxes-differ",
                row,
                f"{name} is image {other} too, with other boxes ({len(labels[other])} and"
                f" {len(labels[image_id])}): frames of two videos under one name? Give each its"
                " own folder in file_name",
                other=(raw.split, other),
            )


def _check_categories(raw: RawSplit) -> None:
    if not len(raw.category_id):
        raw.find("category-none", "names no category")
    for row in repeated(raw.category_id):
        raw.find(
            "category-id-twice",
            f"category id {raw.category_id[row]} ({raw.category_name[row]!r}) is used by another"
            " category too",
        )
    for row in np.flatnonzero(raw.category_id < 0).tolist():
        raw.find(
            "id-negative",
            f"category id {raw.category_id[row]} ({raw.category_name[row]!r}), expected 0 or more",
        )


def _check_annotations(raw: RawSplit) -> None:
    for row in repeated(raw.annotation_id):
        raw.find_annotation(
            "annotation-id-twice",
            row,
            f"the id {raw.annotation_id[row]} is used by another annotation too",
        )
    for row in np.flatnonzero(raw.annotation_id < 0).tolist():
        raw.find_annotation("id-negative", row, f"id {raw.annotation_id[row]}, expected 0 or more")
    for row in np.flatnonzero(raw.image_rows() < 0).tolist():
        raw.find_annotation(
            "image-id-dangling",
            row,
            f"image_id {raw.annotated[row]} isn't among the {len(raw.image_id)} images",
        )
    for row in np.flatnonzero(raw.category_rows() < 0).tolist():
        raw.find_annotation(
            "category-id-dangling",
            row,
            f"category_id {raw.category[row]} isn't among the {len(raw.category_id)} categories",
        )


def repeated(values: Ints) -> list[int]:
    """Rows whose value occurs more than once, all of them, in order."""
    if len(values) < 2:
        return []
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    same = ranked[1:] == ranked[:-1]
    flags = np.concatenate(([False], same)) | np.concatenate((same, [False]))
    rows: list[int] = np.sort(order[flags]).tolist()
    return rows
