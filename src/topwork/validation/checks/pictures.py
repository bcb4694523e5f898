"""Images and their file names: missing, broken, of another size or kind, named badly, the same
twice.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from topwork.dataset.images import ImageStore, outside
from topwork.validation.probe import Probe
from topwork.validation.raw_split import Part

TINY_PX = 32
GREY = ("1", "L", "LA", "La")
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
ALPHA = ("RGBA", "LA", "PA", "P", "RGBa", "La")


def check_names(part: Part) -> None:
    """Rules on file names that need no image."""
    for row, name in enumerate(part.file_name):
        way = outside(name)
        if way == "parent":
            part.find_image("path-outside", row, f"{name!r} leads out of {part.root}")
        elif way == "absolute":
            part.find_image(
                "path-absolute", row, f"{name!r} is absolute, expected a name below {part.root}"
            )
        elif "\\" in name:
            part.find_image("path-backslash", row, f"{name!r} has a backslash, expected /")
    plain: dict[str, set[str]] = defaultdict(set)
    for name in part.file_name:
        plain[name.casefold()].add(name)
    for names in plain.values():
        if len(names) > 1:
            part.find(
                "path-case-twins",
                f"the file names {', '.join(map(repr, sorted(names)))} differ only in case",
            )


def check_images(part: Part, store: ImageStore, probes: Mapping[str, Probe]) -> None:
    """Rules on each image of one split."""
    listing: dict[str, str] | None = None
    for row, name in enumerate(part.file_name):
        found = probes[name]
        if found.state == "missing":
            if outside(name):
                continue  # told by check_names
            if listing is None:
                listing = {other.casefold(): other for other in store.names()}
            other = listing.get(name.casefold())
            if other is not None and other != name:
                part.find_image("path-case-differs", row, f"found as {other}")
            part.find_image("image-missing", row, f"{name} isn't in {part.root}")
        elif found.state != "fine":
            rule = {
                "unreadable": "image-unreadable",
                "truncated": "image-truncated",
                "bomb": "image-bomb",
            }[found.state]
            if found.state == "bomb" and found.said.startswith("claims"):
                rule = "archive-bomb"
            part.find_image(rule, row, f"{name}: {found.said}")
        if found.width:
            _check_size(part, row, found)
        if found.state == "fine":
            _check_kind(part, row, found)
            _check_link(part, row, store, name)


def check_store(part: Part, store: ImageStore, listed: set[str]) -> None:
    """Rules on what else is in the folder or archive."""
    for name in store.refused:
        part.find(
            "archive-path-outside",
            f"{part.root}: member {name!r} leads out of the archive; it's left alone",
        )
    others = [name for name in store.names() if name not in listed]
    if others:
        part.find(
            "image-unlisted",
            f"{len(others)} image files in {part.root} aren't listed, such as"
            f" {', '.join(others[:3])}",
        )


def check_same(parts: Sequence[Part], probes: Mapping[str, Mapping[str, Probe]]) -> None:
    """The same bytes under two names or in two splits; `probes` is by image root, then file
    name.
    """
    copies: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for index, part in enumerate(parts):
        for row, name in enumerate(part.file_name):
            digest = probes.get(part.root, {}).get(name)
            if digest is not None and digest.sha256 and digest.size > 0:
                copies[digest.sha256].append((index, row))
    for places in copies.values():
        if len(places) < 2:
            continue
        first_index, first_row = places[0]
        first = parts[first_index]
        for index, row in places[1:]:
            part, name = parts[index], parts[index].file_name[row]
            said = (
                f"has the bytes of {first.file_name[first_row]} (image {first.image_id[first_row]},"
                f" {first.split})"
            )
            twin = (first.split, int(first.image_id[first_row]))
            if part.split != first.split:
                part.find_image("duplicate-image-across", row, f"{name} {said}", other=twin)
            elif name != first.file_name[first_row]:
                part.find_image("duplicate-image", row, f"{name} {said}", other=twin)
            if _labels(part, row) != _labels(first, first_row):
                part.find_image(
                    "duplicate-labels-differ", row, f"{name} {said}, and other boxes", other=twin
                )


def _labels(part: Part, row: int) -> list[tuple[str, ...]]:
    rows = np.flatnonzero(part.annotated == part.image_id[row])
    names = dict(zip(part.category_id.tolist(), part.category_name, strict=True))
    return sorted(
        (names.get(int(part.category[i]), "?"), *(f"{v:.1f}" for v in part.box[i])) for i in rows
    )


def _check_size(part: Part, row: int, found: Probe) -> None:
    declared = (int(part.image_width[row]), int(part.image_height[row]))
    if min(declared) <= 0:
        return
    if declared != (found.width, found.height):
        turned = (
            " (its EXIF orientation turns it: was it labelled turned?)"
            if found.orientation >= 5 and declared == (found.height, found.width)
            else ""
        )
        part.find_image(
            "image-size-differs",
            row,
            f"is {found.width}x{found.height}, declared {declared[0]}x{declared[1]}{turned}",
        )


def _check_kind(part: Part, row: int, found: Probe) -> None:
    if found.orientation not in (0, 1):
        part.find_image(
            "image-exif-rotated",
            row,
            f"EXIF orientation {found.orientation}, of which pixels are read as stored",
        )
    if found.mode in GREY:
        part.find_image("image-grey", row, f"mode {found.mode}")
    if found.mode == "CMYK":
        part.find_image("image-cmyk", row, "mode CMYK")
    if found.mode in DEEP:
        part.find_image("image-deep", row, f"mode {found.mode}")
    if found.mode in ALPHA:
        part.find_image("image-alpha", row, f"mode {found.mode}")
    if found.frames > 1:
        part.find_image("image-animated", row, f"{found.frames} frames")
    if min(found.width, found.height) < TINY_PX:
        part.find_image("image-tiny", row, f"{found.width}x{found.height} px")
    if found.flat:
        part.find_image("image-flat", row, "every pixel is alike")


def _check_link(part: Part, row: int, store: ImageStore, name: str) -> None:
    if store.kind != "folder":
        return
    path = store.root / name
    if path.is_symlink() and not path.resolve().is_relative_to(store.root.resolve()):
        part.find_image(
            "path-symlink-out", row, f"{name} is a link to a place outside of {part.root}"
        )
