"""Finding out what a folder or file of labelled images is.

A folder is taken for what it is only where one reading fits; else the error lists what was found
and what to name.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from topwork.errors import DataError
from topwork.validation.layout import SPLIT_WORDS, FoundSet, Layout
from topwork.validation.layout_coco import coco, coco_folder
from topwork.validation.layout_voc import voc, voc_folders, voc_next_to_images
from topwork.validation.other_formats import is_cvat_xml, refusal
from topwork.validation.read_yolo import yolo_images
from topwork.validation.reader import format_of
from topwork.validation.yolo_set import yolo_file, yolo_lists, yolo_names


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
        raise DataError(f"{path}: {refusal(path)}")
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
    return coco(path.parent, {"train": path}, "COCO JSON", images)


def _readings(folder: Path, images: Path | None) -> Iterator[Layout]:
    """Every way in which a folder can be read."""
    kind = format_of(folder)
    if kind == "yolo":
        yield _yolo(folder)
    if (folder / "Annotations").is_dir() or next(folder.glob("*.xml"), None) is not None:
        if not is_cvat_xml(folder):
            yield voc(folder, images)
    else:
        split_folders = {
            SPLIT_WORDS[inner.name.lower()]: inner
            for inner in sorted(folder.iterdir())
            if inner.is_dir() and inner.name.lower() in SPLIT_WORDS and format_of(inner) == "voc"
        }
        if split_folders:
            yield voc_folders(folder, split_folders)
        for name in ("labels", "annotations"):
            if next((folder / name).glob("*.xml"), None) is not None and kind != "yolo":
                yield voc_next_to_images(folder, name, images)
    if (found := coco_folder(folder, images)) is not None:
        yield found


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
