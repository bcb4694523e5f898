"""Images and their file names: missing, broken, of another size or kind, named badly, the same
twice.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np

from topwork.dataset.images import SIXTEEN_BITS, ImageStore, outside
from topwork.validation.probe import Probe
from topwork.validation.raw_split import RawSplit
from topwork.validation.turning import Frame, size_in

TINY_PX = 32
GREY = ("1", "L", "LA", "La")
DEEP = ("I", "F", *SIXTEEN_BITS)
ALPHA = ("RGBA", "LA", "PA", "P", "RGBa", "La")


def check_names(raw: RawSplit) -> None:
    """Rules on file names that need no image."""
    for row, name in enumerate(raw.file_name):
        way = outside(name)
        if way == "parent":
            raw.find_image("path-outside", row, f"{name!r} leads out of {raw.root}")
        elif way == "absolute":
            raw.find_image(
                "path-absolute",
                row,
                f"{name!r} is absolute, expected a name below {raw.root}; `dataset.match: nearest`"
                " looks for the end of it there",
            )
        elif "\\" in name:
            raw.find_image("path-backslash", row, f"{name!r} has a backslash, expected /")
    different = set(raw.file_name)
    if len({name.casefold() for name in different}) == len(different):
        return
    plain: dict[str, set[str]] = defaultdict(set)
    for name in raw.file_name:
        plain[name.casefold()].add(name)
    for names in plain.values():
        if len(names) > 1:
            raw.find(
                "path-case-twins",
                f"the file names {', '.join(map(repr, sorted(names)))} differ only in case",
            )


class Names:
    """Files that are there, for names that are written another way: with backslashes, in another
    case or Unicode form, with other folders before the base name.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.whole: dict[str, set[str]] = defaultdict(set)
        self.base: dict[str, set[str]] = defaultdict(set)
        for name in names:
            plain = self._plain(name)
            self.whole[plain].add(name)
            self.base[PurePosixPath(plain).name].add(name)

    def nearest(self, name: str) -> str | None:
        """The one file that a name means; None where there's none, or more than one."""
        plain = self._plain(name)
        for found in (
            self.whole.get(plain, set()),
            self.base.get(PurePosixPath(plain).name, set()),
        ):
            if len(found) == 1:
                return next(iter(found))
        return None

    @staticmethod
    def _plain(name: str) -> str:
        """A name without what systems write in different ways."""
        return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold().removeprefix("./")


def match_names(raw: RawSplit, store: ImageStore) -> None:
    """Put the nearest file's name in place of each that isn't there (`dataset.match: nearest`)."""
    absent = [row for row, name in enumerate(raw.file_name) if store.stamp(name) is None]
    if not absent:
        return
    names = Names(store.names())
    matched = [
        (row, found) for row in absent if (found := names.nearest(raw.file_name[row])) is not None
    ]
    if matched:
        row, found = matched[0]
        raw.find(
            "path-matched",
            f"{len(matched)} file names are written another way, such as {raw.file_name[row]!r},"
            f" read as {found!r}",
        )
    for row, found in matched:
        raw.file_name[row] = found
    raw.__dict__.pop("_name_of", None)


def check_images(
    raw: RawSplit, store: ImageStore, probes: Mapping[str, Probe], frame: Frame | None = "stored"
) -> None:
    """Rules on each image of one split; `frame` is that of declared sizes and boxes."""
    names: Names | None = None
    for row, name in enumerate(raw.file_name):
        found = probes[name]
        if found.state == "missing":
            if outside(name):
                continue  # check_names reports it
            names = names or Names(store.names())
            other = names.nearest(name)
            if other is not None and other.casefold() == name.casefold():
                raw.find_image("path-case-differs", row, f"found as {other}")
            raw.find_image(
                "image-missing", row, f"{name} isn't in {raw.root}{_hint(name, other, raw.root)}"
            )
        elif found.state != "fine":
            rule = {
                "unreadable": "image-unreadable",
                "truncated": "image-truncated",
                "bomb": "image-bomb",
            }[found.state]
            if found.state == "bomb" and found.message.startswith("claims"):
                rule = "archive-bomb"
            raw.find_image(rule, row, f"{name}: {found.message}")
        if found.width:
            _check_size(raw, row, found, frame)
        if found.state == "fine":
            _check_kind(raw, row, found, frame)
            _check_link(raw, row, store, name)


def _hint(name: str, other: str | None, root: str) -> str:
    """What to write where the image is there under another name."""
    if other is None:
        return ""
    if other.endswith(f"/{name}"):
        folder = f"{root}/{other[: -len(name) - 1]}"
        return f"; found as {other}: `images` should name {folder}"
    return f"; found as {other}: write `dataset.match: nearest`"


def check_store(raw: RawSplit, store: ImageStore, listed: set[str]) -> None:
    """Rules on what else is in the folder or archive."""
    for name in store.refused:
        raw.find(
            "archive-path-outside",
            f"{raw.root}: member {name!r} leads out of the archive; it isn't read",
        )
    # ./a.jpg and a//b.jpg find what a.jpg and a/b.jpg do
    plain = {PurePosixPath(name).as_posix() for name in listed}
    others = [name for name in store.names() if name not in plain]
    if others:
        raw.find(
            "image-unlisted",
            f"{len(others)} image files in {raw.root} aren't listed, such as"
            f" {', '.join(others[:3])}",
        )


def check_same(raw_splits: Sequence[RawSplit], probes: Mapping[str, Mapping[str, Probe]]) -> None:
    """The same bytes under two names or in two splits; `probes` is by image root, then file
    name.
    """
    copies: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for index, raw in enumerate(raw_splits):
        for row, name in enumerate(raw.file_name):
            digest = probes.get(raw.root, {}).get(name)
            if digest is not None and digest.sha256 and digest.size > 0:
                copies[digest.sha256].append((index, row))
    for places in copies.values():
        if len(places) < 2:
            continue
        first_index, first_row = places[0]
        first = raw_splits[first_index]
        for index, row in places[1:]:
            raw, name = raw_splits[index], raw_splits[index].file_name[row]
            copied = (
                f"has the bytes of {first.file_name[first_row]} (image {first.image_id[first_row]},"
                f" {first.split})"
            )
            twin = (first.split, int(first.image_id[first_row]))
            if raw.split != first.split:
                raw.find_image("duplicate-image-across", row, f"{name} {copied}", other=twin)
            elif name != first.file_name[first_row]:
                raw.find_image("duplicate-image", row, f"{name} {copied}", other=twin)
            if _labels(raw, row) != _labels(first, first_row):
                raw.find_image(
                    "duplicate-labels-differ", row, f"{name} {copied}, and other boxes", other=twin
                )


def _labels(raw: RawSplit, row: int) -> list[tuple[str, ...]]:
    rows = np.flatnonzero(raw.annotated == raw.image_id[row])
    names = dict(zip(raw.category_id.tolist(), raw.category_name, strict=True))
    return sorted(
        (names.get(int(raw.category[i]), "?"), *(f"{v:.1f}" for v in raw.box[i])) for i in rows
    )


def _check_size(raw: RawSplit, row: int, found: Probe, frame: Frame | None) -> None:
    declared = (int(raw.image_width[row]), int(raw.image_height[row]))
    if min(declared) <= 0:
        return
    width, height = size_in(found, frame)
    if raw.sizes_declared and declared != (width, height):
        turned = (
            f" (as {'turned by its EXIF orientation' if frame == 'turned' else 'stored'})"
            if found.orientation != 1
            else ""
        )
        raw.find_image(
            "image-size-differs",
            row,
            f"is {width}x{height}{turned}, declared {declared[0]}x{declared[1]}",
        )


def _check_kind(raw: RawSplit, row: int, found: Probe, frame: Frame | None) -> None:
    if found.orientation != 1:
        labels = {
            "turned": "labels were made on the turned picture",
            "stored": "labels were made on the stored picture, and are turned with it",
            None: "unknown which was labelled",
        }[frame]
        raw.find_image(
            "image-exif-rotated",
            row,
            f"EXIF orientation {found.orientation}: read turned; {labels}",
        )
    if found.mode in GREY:
        raw.find_image("image-grey", row, f"mode {found.mode}")
    if found.mode == "CMYK":
        raw.find_image("image-cmyk", row, "mode CMYK")
    if found.mode in DEEP:
        raw.find_image("image-deep", row, f"mode {found.mode}")
    if found.mode in ALPHA:
        raw.find_image("image-alpha", row, f"mode {found.mode}")
    if found.frames > 1:
        raw.find_image("image-animated", row, f"{found.frames} frames")
    if min(found.width, found.height) < TINY_PX:
        raw.find_image("image-tiny", row, f"{found.width}x{found.height} px")
    if found.flat:
        raw.find_image("image-flat", row, "every pixel is alike")


def _check_link(raw: RawSplit, row: int, store: ImageStore, name: str) -> None:
    if store.kind != "folder":
        return
    path = store.root / name
    if path.is_symlink() and not path.resolve().is_relative_to(store.root.resolve()):
        raw.find_image(
            "path-symlink-out", row, f"{name} is a link to a place outside of {raw.root}"
        )
