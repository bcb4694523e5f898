"""COCO files and their images: near them, a folder or an archive a split, as tools export."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from topwork.dataset.images import ImageStore
from topwork.errors import DataError
from topwork.project.names import CUSTOM_SPLITS
from topwork.validation.checks.pictures import Names
from topwork.validation.decode import Unreadable, load_bytes, to_utf8, without_nan
from topwork.validation.layout import SPLIT_WORDS, FoundSet, Layout, relative
from topwork.validation.other_formats import other_format

NAMES_LOOKED_AT = 100
MOST_FOLDERS = 100
ARCHIVES = (".zip", ".tar")
FEW_FILES = 20  # a folder with more JSON files has one an image, as LabelMe writes them
NO_JSON = ("notes.json", "info.json", "dataset.json", "metadata.json", "samples.json")
"""JSON files that tools write next to an export."""


@dataclass(frozen=True)
class _CocoHead:
    """What a COCO file lists."""

    names: tuple[str, ...]
    pictures: int
    classes: tuple[str, ...]


def _coco_files(folder: Path) -> list[Path]:
    """COCO instances files of a folder, of annotations/ and of train/, valid/, test/; instances_*
    alone where there are others besides them (captions, keypoints).
    """
    places = [folder, folder / "annotations"]
    places += [inner for inner in sorted(folder.iterdir()) if inner.name.lower() in SPLIT_WORDS]
    found: list[Path] = []
    for place in places:
        files = [
            file
            for file in sorted(place.glob("*.json"))
            if file.name not in NO_JSON and file.is_file()
        ]
        if len(files) <= FEW_FILES:
            found += files
    instances = [file for file in found if file.name.startswith("instances")]
    return instances or [file for file in found if _coco_head(file) is not None]


def _coco_description(folder: Path, files: list[Path]) -> str:
    name = files[0].name
    if name == "_annotations.coco.json":
        return "COCO, as Roboflow writes it (_annotations.coco.json in a folder a split)"
    if name == "labels.json" and (folder / "data").is_dir():
        return "COCO, as FiftyOne writes it (labels.json, data/)"
    if name == "result.json":
        return "COCO, as Label Studio writes it (result.json)"
    return f"COCO ({', '.join(file.relative_to(folder).as_posix() for file in files[:4])})"


def _name_splits(folder: Path, files: list[Path]) -> dict[str, Path]:
    """Split -> file, by a word in the file's name or its folder's.

    Raises:
        DataError: several files, of which two are for one split or one for none.
    """
    if len(files) == 1:
        return {"train": files[0]}
    named: dict[str, Path] = {}
    for file in files:
        words = re.split(r"[^a-z]+", file.relative_to(folder).as_posix().lower())
        splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
        if len(splits) != 1 or next(iter(splits)) in named:
            listed = ", ".join(other.relative_to(folder).as_posix() for other in files[:12])
            raise DataError(
                f"{folder}: {len(files)} COCO files, and not one each for train, val and test by"
                f" name: {listed}. Name one of them, or write params.yaml: `dataset: {{train:"
                " {annotations: FILE, images: FOLDER}, val: ...}`."
            )
        named[splits.pop()] = file
    return {split: named[split] for split in CUSTOM_SPLITS if split in named}


def coco_folder(folder: Path, images: Path | None) -> Layout | None:
    """The layout of a folder's COCO files; None where it has none. `images` is where the images
    are, None to look near the files.

    Raises:
        DataError: files that can't be told apart as splits, or of a format that isn't read.
    """
    files = _coco_files(folder)
    if not files:
        return None
    return coco(folder, _name_splits(folder, files), _coco_description(folder, files), images)


def coco(folder: Path, files: Mapping[str, Path], description: str, images: Path | None) -> Layout:
    """The layout of COCO files, a split each.

    Raises:
        DataError: a file is of a format that isn't read.
    """
    sets: dict[str, tuple[Path, Path | None, int]] = {}
    classes: list[str] = []
    for split, file in files.items():
        head = _coco_head(file)
        if head is None:
            others = other_format(file)
            if others:
                raise DataError(f"{file}: {others}")
            head = _CocoHead((), 0, ())  # the reader says what is wrong with it
        place = images or _images_of(file, head, split)
        # the root holds annotations and images, wherever they are
        sets[split] = (file, place, head.pictures)
        classes += head.classes
    root = _common([folder, *(place for _, place, _ in sets.values() if place is not None)])
    return Layout(
        "coco",
        description,
        root,
        {
            split: FoundSet(
                relative(file, root),
                None if place is None else relative(place, root),
                pictures=count,
                lacking=place is None and count > 0,
            )
            for split, (file, place, count) in sets.items()
        },
        tuple(dict.fromkeys(classes)),
    )


def _images_of(file: Path, head: _CocoHead, split: str) -> Path | None:
    """The folder or archive near a COCO file that has most of its first images; of several, as
    where splits number theirs alike, the one called like the file's split.
    """
    folder = file.parent
    words = re.split(r"[^a-z]+", file.name.lower())
    split = next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), split)
    stem = file.name.split(".")[0].removeprefix("instances_").removeprefix("_annotations")
    names = [name for name in (stem, "images", "data") if name]
    places = [folder, *(folder / name for name in names), *_folders(folder)]
    if folder.name.lower() in ("annotations", "labels"):
        places += [folder.parent / name for name in names]
        places += _folders(folder.parent)
    else:
        places += [folder.parent / name for name in names]
        places += [folder.parent / "images" / name for name in (stem, split)]
    archives = [place.with_name(place.name + suffix) for place in places[1:] for suffix in ARCHIVES]
    counts: dict[Path, tuple[int, int]] = {}
    for place in dict.fromkeys([*places, *archives]):
        if place.is_dir() or (place.suffix in ARCHIVES and place.is_file()):
            counts[place] = (_hits(place, head.names), _likeness(place, folder, split))
    if any(hits for hits, _ in counts.values()):
        return max(counts, key=lambda place: counts[place])
    # written another way: the gate says how to match them
    for place in counts:
        with suppress(DataError):
            there = Names(ImageStore(place).names())
            if any(there.nearest(name) for name in head.names):
                return place
    return None


def _folders(folder: Path) -> list[Path]:
    """Folders below, two steps deep, the first hundred by name."""
    found: list[Path] = []
    for top in sorted(folder.iterdir())[:MOST_FOLDERS]:
        if top.is_dir() and not top.name.startswith((".", "__")):
            found.append(top)
            found += [inner for inner in sorted(top.iterdir())[:MOST_FOLDERS] if inner.is_dir()]
    return found[:MOST_FOLDERS]


def _likeness(place: Path, folder: Path, split: str) -> int:
    """1 for a place called like a split, -1 for one called like another, else 0."""
    parts = Path(os.path.relpath(place, folder)).parts
    words = [word for part in parts for word in re.split(r"[^a-z]+", part.lower())]
    called = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    return 0 if not called else 1 if called == {split} else -1


def _hits(place: Path, names: tuple[str, ...]) -> int:
    with suppress(DataError):
        store = ImageStore(place)
        return sum(store.stamp(name) is not None for name in names)
    return 0


def _coco_head(file: Path) -> _CocoHead | None:
    """First file names, number of images and classes; None where it isn't COCO."""
    try:
        data, _ = to_utf8(load_bytes(file))
        try:
            lists = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        except msgspec.DecodeError:
            lists = msgspec.json.decode(without_nan(data)[0], type=dict[str, msgspec.Raw])
        images = msgspec.json.decode(lists["images"], type=list[msgspec.Raw])
        categories = msgspec.json.decode(lists["categories"], type=list[Any])
        if "annotations" not in lists:
            return None
        first = [msgspec.json.decode(unread) for unread in images[:NAMES_LOOKED_AT]]
    except (Unreadable, msgspec.MsgspecError, KeyError, ValueError, RecursionError):
        return None
    return _CocoHead(
        tuple(_texts(first, "file_name")), len(images), tuple(_texts(categories, "name"))
    )


def _texts(records: list[Any], key: str) -> list[str]:
    return [
        record[key]
        for record in records
        if isinstance(record, dict) and isinstance(record.get(key), str)
    ]


def _common(folders: list[Path]) -> Path:
    """The deepest folder that holds all of these (an archive's is where it lies); relative where
    the first is.
    """
    places = [place if place.is_dir() else place.parent for place in folders]
    top = os.path.commonpath([os.path.normpath(place.absolute()) for place in places])
    return Path(top) if places[0].is_absolute() else Path(os.path.relpath(top))
