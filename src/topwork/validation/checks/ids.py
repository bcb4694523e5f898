"""Ids: twice, dangling, negative; images listed twice or without size or annotations."""

from collections import Counter

import numpy as np

from topwork.validation.raw_split import Ints, Part


def check_ids(part: Part) -> None:
    """All rules on ids of one split."""
    _check_images(part)
    _check_categories(part)
    _check_annotations(part)


def _check_images(part: Part) -> None:
    if not len(part.image_id):
        part.find("set-empty", "lists no image")
        return
    for row in repeated(part.image_id):
        part.find_image(
            "image-id-twice", row, f"the id {part.image_id[row]} is borne by another image too"
        )
    for row in np.flatnonzero(part.image_id < 0).tolist():
        part.find_image("id-negative", row, f"id {part.image_id[row]}, expected 0 or more")
    for row in np.flatnonzero((part.image_width <= 0) | (part.image_height <= 0)).tolist():
        size = f"{part.image_width[row]}x{part.image_height[row]}"
        part.find_image(
            "image-size-missing",
            row,
            f"width and height are {size}, expected pixels; taken from the image",
        )
    if len(set(part.file_name)) < len(part.file_name):
        counts = Counter(part.file_name)
        for row, name in enumerate(part.file_name):
            if counts[name] > 1:
                part.find_image(
                    "image-listed-twice",
                    row,
                    f"{name} is listed {counts[name]} times, under several ids",
                )
    if not len(part.annotation_id):
        part.find("set-unannotated", f"has {len(part.image_id)} images and no annotation")
        return
    empty = part.image_id[~np.isin(part.image_id, part.annotated)]
    if len(empty):
        shown = ", ".join(map(str, empty[:10].tolist()))
        part.find(
            "image-empty",
            f"{len(empty)} of {len(part.image_id)} images have no annotation (ids"
            f" {shown}{', ...' if len(empty) > 10 else ''})",
        )


def _check_categories(part: Part) -> None:
    if not len(part.category_id):
        part.find("category-none", "names no category")
    for row in repeated(part.category_id):
        part.find(
            "category-id-twice",
            f"category id {part.category_id[row]} ({part.category_name[row]!r}) is borne by another"
            " category too",
        )
    for row in np.flatnonzero(part.category_id < 0).tolist():
        part.find(
            "id-negative",
            f"category id {part.category_id[row]} ({part.category_name[row]!r}), expected 0 or"
            " more",
        )


def _check_annotations(part: Part) -> None:
    for row in repeated(part.annotation_id):
        part.find_annotation(
            "annotation-id-twice",
            row,
            f"the id {part.annotation_id[row]} is borne by another annotation too",
        )
    for row in np.flatnonzero(part.annotation_id < 0).tolist():
        part.find_annotation(
            "id-negative", row, f"id {part.annotation_id[row]}, expected 0 or more"
        )
    for row in np.flatnonzero(part.image_rows() < 0).tolist():
        part.find_annotation(
            "image-id-dangling",
            row,
            f"image_id {part.annotated[row]} isn't among the {len(part.image_id)} images",
        )
    for row in np.flatnonzero(part.category_rows() < 0).tolist():
        part.find_annotation(
            "category-id-dangling",
            row,
            f"category_id {part.category[row]} isn't among the {len(part.category_id)} categories",
        )


def repeated(values: Ints) -> list[int]:
    """Rows whose value stands there more than once, all of them, in order."""
    if len(values) < 2:
        return []
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    same = ranked[1:] == ranked[:-1]
    flags = np.concatenate(([False], same)) | np.concatenate((same, [False]))
    rows: list[int] = np.sort(order[flags]).tolist()
    return rows
