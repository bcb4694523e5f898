"""What a folder or file of labelled images is: format, splits, pictures, classes, and the lines of
params.yaml that name it.

`find_layout(path) -> Layout` looks, and `Layout.lines()` writes. A folder is taken for what it is
only where one reading fits; else the error lists what was found and what to name.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from topwork.dataset.images import IMAGE_SUFFIXES, ImageStore
from topwork.errors import DataError
from topwork.params.dataset import SetParams
from topwork.project.names import CUSTOM_SPLITS
from topwork.validation.checks.pictures import Names
from topwork.validation.decode import Unreadable, load_bytes, to_utf8, without_nan
from topwork.validation.read_yolo import yolo_file, yolo_images, yolo_lists, yolo_names
from topwork.validation.reader import Format, format_of, lists_of

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""What a file or folder is called -> the split that it's taken for."""
NAMES_LOOKED_AT = 100
MOST_FOLDERS = 100
ARCHIVES = (".zip", ".tar")
FEW_FILES = 20  # a folder with more JSON files has one an image, as LabelMe writes them
NO_JSON = ("notes.json", "info.json", "dataset.json", "metadata.json", "samples.json")
"""JSON files that tools write beside an export."""


@dataclass(frozen=True)
class FoundSet:
    """One split of a layout; paths are relative to the layout's root.

    Attributes:
        annotations: what `annotations:` names.
        images: what `images:` names, None where the format says it or there are none.
        subset: what `subset:` names, None where it isn't needed.
        pictures: how many images the annotations list.
        lacking: the images weren't found anywhere near.
    """

    annotations: Path
    images: Path | None = None
    subset: str | None = None
    pictures: int = 0
    lacking: bool = False


@dataclass(frozen=True)
class Layout:
    """What was found at a path.

    Attributes:
        format: which reader takes it.
        description: what it was taken for, in words, such as `YOLO (data.yaml)`.
        root: the folder that holds all of it: `dataset.root`.
        sets: split -> what it's made of; train, val and test in this order.
        classes: names, in the file's order; of all splits.
    """

    format: Format
    description: str
    root: Path
    sets: Mapping[str, FoundSet]
    classes: tuple[str, ...]

    @property
    def pictures(self) -> int:
        """Images of all splits."""
        return sum(found.pictures for found in self.sets.values())

    def params(self) -> dict[str, Any]:
        """The section `dataset:` as plain values; paths below root are relative to it."""
        section: dict[str, Any] = {"root": self.root.as_posix()}
        for split, found in self.sets.items():
            entry = {"annotations": found.annotations.as_posix()}
            if found.images is not None:
                entry["images"] = found.images.as_posix()
            if found.subset is not None:
                entry["subset"] = found.subset
            section[split] = entry
        if list(self.sets) == ["train"]:
            section["split"] = {"val": 0.15, "test": 0.15}
        return section

    def entries(self) -> dict[str, SetParams]:
        """Split -> its entry, with root before every path."""
        return {
            split: SetParams(
                annotations=self.root / found.annotations,
                images=None if found.images is None else self.root / found.images,
                subset=found.subset,
            )
            for split, found in self.sets.items()
        }

    def lines(self) -> str:
        """The section `dataset:` of params.yaml, as text that ends in a line break.

        Example:
            >>> sets = {"train": FoundSet(Path("labels.json"), Path("data"), pictures=3)}
            >>> print(Layout("coco", "COCO", Path("data/own"), sets, ("helmet",)).lines(), end="")
            dataset:
              root: data/own
              train:
                annotations: labels.json
                images: data
              split:
                val: 0.15
                test: 0.15
        """
        lines = ["dataset:"]
        for key, value in self.params().items():
            if isinstance(value, dict):
                lines.append(f"  {key}:")
                lines += [f"    {name}: {_scalar(entry)}" for name, entry in value.items()]
            else:
                lines.append(f"  {key}: {_scalar(value)}")
        return "\n".join(lines) + "\n"

    def summary(self) -> str:
        """One line: what it was taken for, splits with their pictures, classes."""
        counts = ", ".join(f"{split} {found.pictures}" for split, found in self.sets.items())
        shown = ", ".join(self.classes[:12]) + (", ..." if len(self.classes) > 12 else "")
        return (
            f"{self.description}; images: {counts}; {len(self.classes)}"
            f" class{'' if len(self.classes) == 1 else 'es'}: {shown or 'none'}"
        )


def find_layout(path: Path, images: Path | None = None) -> Layout:
    """Find out what a folder or file of labelled images is.

    Args:
        path: an annotation file (COCO JSON, data.yaml, obj.data), or a folder in any layout of
            docs/data.md, "Where your export comes from". A folder with nothing but one folder in
            it, as archives unpack, is looked into.
        images: the images of a COCO file, where they aren't near it.

    Returns:
        The layout; nothing is checked but what it takes to tell formats apart.

    Raises:
        DataError: there's no such path, nothing there is read (a known format that isn't gets the
            export to choose), or several readings fit; the message lists them.
    """
    try:
        return _find(path, images)
    except OSError as error:
        raise DataError(
            f"{error.filename or path}: can't be read ({error.strerror or error})."
        ) from error


def _find(path: Path, images: Path | None) -> Layout:
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; expected a COCO JSON, a Pascal VOC folder, a YOLO"
            " data.yaml, or the folder of an export."
        )
    if not path.is_dir():
        return _of_file(path, images)
    found = list(_readings(path, images))
    if not found:
        inner = [
            entry for entry in sorted(path.iterdir()) if not entry.name.startswith((".", "__"))
        ]
        if len(inner) == 1 and inner[0].is_dir():
            return _find(inner[0], images)
        raise DataError(f"{path}: {_refusal(path)}")
    if len(found) > 1:
        listed = "; ".join(
            f"{layout.description}"
            f" ({', '.join(each.annotations.as_posix() for each in layout.sets.values())})"
            for layout in found
        )
        raise DataError(
            f"{path}: several formats are there: {listed}. Name the file or folder of one, such as"
            f" {(path / next(iter(found[0].sets.values())).annotations).as_posix()}."
        )
    return _with_train(found[0])


def _with_train(layout: Layout) -> Layout:
    """A set that has no split called train is one itself: its first list is taken, by name."""
    if "train" in layout.sets:
        return layout
    (name, first), *others = layout.sets.items()
    subset = first.subset or (None if layout.format == "coco" else name)
    return replace(layout, sets={"train": replace(first, subset=subset), **dict(others)})


def _of_file(path: Path, images: Path | None) -> Layout:
    kind = format_of(path)
    if kind == "yolo":
        return _with_train(_yolo(path))
    return _coco(path.parent, {"train": path}, "COCO JSON", images)


def _readings(folder: Path, images: Path | None) -> Iterator[Layout]:
    """Every way in which a folder can be read."""
    kind = format_of(folder)
    if kind == "yolo":
        yield _yolo(folder)
    if (folder / "Annotations").is_dir() or next(folder.glob("*.xml"), None) is not None:
        if not _is_cvat_xml(folder):
            yield _voc(folder, images)
    else:
        split_folders = {
            SPLIT_WORDS[inner.name.lower()]: inner
            for inner in sorted(folder.iterdir())
            if inner.is_dir() and inner.name.lower() in SPLIT_WORDS and format_of(inner) == "voc"
        }
        if split_folders:
            yield _voc_folders(folder, split_folders)
        for name in ("labels", "annotations"):
            if next((folder / name).glob("*.xml"), None) is not None and kind != "yolo":
                yield _voc_beside(folder, name, images)
    jsons = _coco_files(folder)
    if jsons:
        splits = _name_splits(folder, jsons)
        yield _coco(folder, splits, _coco_description(folder, jsons), images)


# --- YOLO


def _yolo(path: Path) -> Layout:
    file = yolo_file(path)
    assert file is not None
    root = file.parent
    kinds = {".data": "darknet's obj.data, as CVAT writes it", ".txt": "classes.txt, labels/"}
    description = f"YOLO ({kinds.get(file.suffix.lower(), file.name)})"
    # classes.txt alone is no annotation file that can be named
    annotations = Path() if file.suffix.lower() == ".txt" else Path(file.name)
    sets = {
        split: FoundSet(annotations, pictures=len(yolo_images(file, split)))
        for split in yolo_lists(file)
    }
    return Layout("yolo", description, root, sets, tuple(yolo_names(file).values()))


# --- Pascal VOC


def _voc(folder: Path, given: Path | None = None) -> Layout:
    place = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    lists = lists_of(folder, "voc")
    count = sum(file.suffix.lower() == ".xml" for file in place.iterdir())
    images = _voc_images(folder, place) if given is None else _relative(given, folder)
    main = folder / "ImageSets" / "Main"
    sets = {name: FoundSet(Path(), images, pictures=_lines(main / f"{name}.txt")) for name in lists}
    if "train" not in sets:
        # as in VOC 2007, where test is the other list
        subset = "trainval" if (main / "trainval.txt").is_file() else None
        if subset is not None:
            train = FoundSet(Path(), images, subset, _lines(main / "trainval.txt"))
            sets = {"train": train, **sets}
    sets = sets or {"train": FoundSet(Path(), images, _only_list(folder), count)}
    return Layout("voc", "Pascal VOC", folder, sets, _voc_classes(place))


def _voc_beside(folder: Path, name: str, given: Path | None) -> Layout:
    """A folder of XML files beside the folder of images, as FiftyOne writes it."""
    inner = _voc(folder / name)
    images = next((Path(place) for place in ("data", "images") if (folder / place).is_dir()), None)
    if given is not None:
        images = _relative(given, folder)
    sets = {"train": FoundSet(Path(name), images, pictures=inner.pictures)}
    return Layout("voc", f"Pascal VOC ({name}/, {images or name}/)", folder, sets, inner.classes)


def _voc_folders(root: Path, folders: Mapping[str, Path]) -> Layout:
    sets: dict[str, FoundSet] = {}
    classes: list[str] = []
    for split in CUSTOM_SPLITS:
        if split in folders:
            inner = _voc(folders[split])
            classes += inner.classes
            entry = inner.sets.get("train") or next(iter(inner.sets.values()))
            name = Path(folders[split].name)
            sets[split] = FoundSet(
                name,
                None if entry.images is None else name / entry.images,
                pictures=sum(found.pictures for found in inner.sets.values()),
            )
    return Layout("voc", "Pascal VOC, a folder a split", root, sets, tuple(dict.fromkeys(classes)))


def _voc_images(folder: Path, place: Path) -> Path | None:
    """Where the images are, when it isn't JPEGImages/ or the XML files' own folder."""
    if (folder / "JPEGImages").is_dir() or _has_images(folder if place == folder else place):
        return None
    for name in ("images", "Images", "PNGImages"):
        if (folder / name).is_dir():
            return Path(name)
    return None


def _only_list(folder: Path) -> str | None:
    """The only list of ImageSets/Main that isn't a class's (`default`, `trainval`)."""
    found = sorted((folder / "ImageSets" / "Main").glob("*.txt"))
    plain = [file.stem for file in found if "_" not in file.stem]
    return plain[0] if len(plain) == 1 else None


def _voc_classes(place: Path) -> tuple[str, ...]:
    pattern = re.compile(rb"<object>\s*<name>\s*([^<]*?)\s*</name>")
    names: set[str] = set()
    for file in sorted(place.glob("*.xml")):
        with suppress(OSError):
            if file.is_file():
                names |= {
                    name.decode("utf-8", "replace") for name in pattern.findall(file.read_bytes())
                }
    return tuple(sorted(names))


def _is_cvat_xml(folder: Path) -> bool:
    """CVAT's own XML, which has all images in one file."""
    files = sorted(folder.glob("*.xml"))
    return (
        len(files) == 1
        and b"<annotations" in _head(files[0])
        and not (folder / "Annotations").is_dir()
    )


# --- COCO


@dataclass(frozen=True)
class _CocoHead:
    """What a COCO file lists."""

    names: tuple[str, ...]
    pictures: int
    classes: tuple[str, ...]


def _coco_files(folder: Path) -> list[Path]:
    """COCO instances files of a folder, of annotations/ and of train/, valid/, test/; instances_*
    alone where there are others beside them (captions, keypoints).
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


def _coco(folder: Path, files: Mapping[str, Path], description: str, images: Path | None) -> Layout:
    sets: dict[str, tuple[Path, Path | None, int]] = {}
    classes: list[str] = []
    for split, file in files.items():
        head = _coco_head(file)
        if head is None:
            others = _others_format(file)
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
                _relative(file, root),
                None if place is None else _relative(place, root),
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


# --- formats that are known and not read


def _refusal(folder: Path) -> str:
    """Why nothing was found: a format that isn't read, or what would be."""
    for file in [*sorted(folder.glob("*.json")), *sorted(folder.glob("*/*.json"))][:20]:
        if others := _others_format(file):
            return f"{file.relative_to(folder).as_posix()} {others}"
    for file in sorted(folder.glob("*.xml")):
        if b"<annotations" in _head(file):
            return (
                f"{file.name} is CVAT's own XML, which isn't read; export `COCO 1.0` or `PASCAL VOC"
                " 1.1` from CVAT."
            )
    for file in sorted(folder.glob("*.csv")):
        if b"region_shape_attributes" in _head(file):
            return (
                f"{file.name} is a table of VIA, which isn't read; choose Annotation, Export"
                " Annotations (COCO format) in VIA."
            )
    return (
        "no data set found: no COCO JSON (here, in annotations/, or in train/, valid/, test/), no"
        " Annotations/*.xml (Pascal VOC), no data.yaml, obj.data or classes.txt with labels/"
        " (YOLO). Name its annotation file."
    )


def _others_format(file: Path) -> str:
    """What to export instead, where a JSON file is of a known format that isn't read; else
    empty.
    """
    try:
        data, _ = to_utf8(load_bytes(file))
        found = msgspec.json.decode(data)
    except (Unreadable, msgspec.MsgspecError, ValueError, RecursionError):
        return ""
    if isinstance(found, dict) and {"shapes", "imagePath"} <= set(found):
        return (
            "is LabelMe's own JSON, a file an image, which isn't read; convert the folder to COCO"
            " by labelme's labelme2coco.py, or to Pascal VOC by labelme2voc.py."
        )
    if isinstance(found, dict) and "_via_img_metadata" in found:
        return (
            "is a project of VIA, which isn't read; choose Annotation, Export Annotations (COCO"
            " format) in VIA."
        )
    if isinstance(found, dict) and {"items", "categories"} <= set(found):
        return (
            "is Datumaro's own format, which isn't read; run `datum convert -if datumaro -f"
            " coco_instances -i . -o coco -- --save-media`."
        )
    if isinstance(found, dict) and {"samples"} <= set(found):
        return "is FiftyOne's own format, which isn't read; export COCODetectionDataset."
    first = found[0] if isinstance(found, list) and found else None
    if isinstance(first, dict) and ("annotations" in first or "completions" in first):
        return "is Label Studio's own JSON, which isn't read; export COCO or YOLO with images."
    if isinstance(found, dict) and found:
        value = next(iter(found.values()))
        if isinstance(value, dict) and {"regions", "filename"} <= set(value):
            return (
                "is VIA's own JSON, which isn't read; choose Annotation, Export Annotations (COCO"
                " format) in VIA."
            )
    return ""


# --- paths


def _has_images(folder: Path) -> bool:
    return any(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.iterdir())


def _lines(file: Path) -> int:
    try:
        return sum(bool(line.strip()) for line in file.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        return 0


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(4096)
    except OSError:
        return b""


def _common(folders: list[Path]) -> Path:
    """The deepest folder that holds all of these (an archive's is where it lies); relative where
    the first is.
    """
    places = [place if place.is_dir() else place.parent for place in folders]
    top = os.path.commonpath([os.path.normpath(place.absolute()) for place in places])
    return Path(top) if places[0].is_absolute() else Path(os.path.relpath(top))


def _relative(path: Path, root: Path) -> Path:
    return Path(os.path.relpath(path, root))


def _scalar(value: object) -> str:
    """A YAML scalar: plain where it can be, else as JSON, which YAML reads."""
    text = str(value)
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./ -]*(?<! )", text):
        return msgspec.json.encode(text).decode()
    return text
