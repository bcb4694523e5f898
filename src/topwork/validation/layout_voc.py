"""Pascal VOC in its layouts: a folder of XML files, one next to its images, a folder a split."""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from topwork.dataset.images import IMAGE_SUFFIXES
from topwork.project.names import CUSTOM_SPLITS
from topwork.validation.layout import FoundSet, Layout, relative
from topwork.validation.reader import lists_of


def voc(folder: Path, given: Path | None = None) -> Layout:
    """VOC's own folders, or XML files in one; `given` is where the images are."""
    place = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    lists = lists_of(folder, "voc")
    count = sum(file.suffix.lower() == ".xml" for file in place.iterdir())
    images = _voc_images(folder, place) if given is None else relative(given, folder)
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


def voc_next_to_images(folder: Path, name: str, given: Path | None) -> Layout:
    """A folder of XML files next to the folder of images, as FiftyOne writes it."""
    inner = voc(folder / name)
    images = next((Path(place) for place in ("data", "images") if (folder / place).is_dir()), None)
    if given is not None:
        images = relative(given, folder)
    sets = {"train": FoundSet(Path(name), images, pictures=inner.pictures)}
    return Layout("voc", f"Pascal VOC ({name}/, {images or name}/)", folder, sets, inner.classes)


def voc_folders(root: Path, folders: Mapping[str, Path]) -> Layout:
    """Split -> its folder, as Roboflow writes them."""
    sets: dict[str, FoundSet] = {}
    classes: list[str] = []
    for split in CUSTOM_SPLITS:
        if split in folders:
            inner = voc(folders[split])
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


def _has_images(folder: Path) -> bool:
    return any(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.iterdir())


def _lines(file: Path) -> int:
    try:
        return sum(bool(line.strip()) for line in file.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        return 0
