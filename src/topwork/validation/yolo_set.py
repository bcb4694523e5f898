"""What a YOLO set is: the file that names its classes and lists. data.yaml (Ultralytics, Roboflow,
FiftyOne), obj.data (darknet, CVAT), or classes.txt alone (Label Studio).
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from topwork.project.names import CUSTOM_SPLITS

MAX_YAML_BYTES = 4 << 20
MAX_LABEL_BYTES = 32 << 20
TASKS = ("detect", "segment", "pose", "obb")
OTHER_NAME = {"val": ("valid", "validation"), "valid": ("val",), "validation": ("val",)}
"""What a list or a folder of that name is called elsewhere."""


class NotYolo(Exception):
    """What was found instead of a YOLO set."""


@dataclass(frozen=True)
class YoloSet:
    """What the file of a YOLO set says.

    Attributes:
        file: data.yaml, obj.data or classes.txt.
        names: class number -> name.
        lists: train, val, test or another name -> folders and text files that list images.
        prefix: `path:` of data.yaml.
        count: classes that it declares (`nc:`), None without.
        keypoints: numbers that follow a box (`kpt_shape:` multiplied), 0 without.
        task: what data.yaml says the rows are, None without.
    """

    file: Path
    names: dict[int, str]
    lists: dict[str, list[str]]
    prefix: str = ""
    count: int | None = None
    keypoints: int = 0
    task: str | None = None

    @property
    def folder(self) -> Path:
        """The set's folder; nothing outside is read."""
        return self.file.parent

    def list_name(self, subset: str) -> str | None:
        """The list that is meant by a split's name: `valid` where that's what val is called."""
        return next(
            (name for name in (subset, *OTHER_NAME.get(subset, ())) if self.lists.get(name)), None
        )


def yolo_file(path: Path) -> Path | None:
    """The file that makes a folder a YOLO set: data.yaml, else its only YAML file with `names:`,
    else obj.data, else classes.txt next to labels/; a file is itself; None where there's none.
    """
    if not path.is_dir():
        return path if path.suffix.lower() in (".yaml", ".yml", ".data") else None
    if (path / "data.yaml").is_file():
        return path / "data.yaml"
    named = [
        file for file in sorted([*path.glob("*.yaml"), *path.glob("*.yml")]) if _has_names(file)
    ]
    if len(named) == 1:
        return named[0]
    darknet = sorted(path.glob("*.data"))
    if len(darknet) == 1:
        return darknet[0]
    if (path / "classes.txt").is_file() and any(path.glob("**/labels")):
        return path / "classes.txt"
    return None


def yolo_lists(path: Path) -> list[str]:
    """Which of train, val and test a YOLO set has; ["train"] where it can't be read, so that the
    reader reports why.
    """
    try:
        found = load_yolo(path)
    except NotYolo:
        return ["train"]
    return [name for name in CUSTOM_SPLITS if found.list_name(name)] or ["train"]


def yolo_names(path: Path) -> dict[int, str]:
    """Class number -> name; empty where it can't be read."""
    try:
        return load_yolo(path).names
    except NotYolo:
        return {}


def load_yolo(path: Path) -> YoloSet:
    """Read the file that says what a YOLO set is; `path` is it, or the set's folder."""
    file = yolo_file(path)
    if file is None and path.name == "classes.txt":
        file = path
    if file is None:
        raise NotYolo(
            "is a folder without data.yaml, obj.data, or classes.txt next to labels/"
            if path.is_dir()
            else "no such file"
            if not path.exists()
            else "is neither data.yaml nor obj.data nor classes.txt"
        )
    if file.suffix.lower() == ".data":
        return _darknet(file)
    if file.suffix.lower() == ".txt":
        return _classes_alone(file)
    return _of_yaml(file)


def _of_yaml(file: Path) -> YoloSet:
    document = _yaml(file)
    names = document.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if isinstance(names, dict) and any(isinstance(key, str) for key in names):
        key = next(key for key in names if isinstance(key, str))
        raise NotYolo(
            f"`names` has the text {key!r} as a class number; write `0: {names[key]}` and so on,"
            " without quotes"
        )
    if (
        not isinstance(names, dict)
        or not names
        or not all(isinstance(key, int) and 0 <= key < 1 << 31 for key in names)
    ):
        raise NotYolo("`names` is neither a list of names nor numbers with names")
    lists = {}
    for name, given in document.items():
        if name in (*CUSTOM_SPLITS, *OTHER_NAME) or name not in ("names", "path", "download"):
            entries = given if isinstance(given, list) else [given]
            if given and (all(isinstance(entry, str) for entry in entries)):
                lists[str(name)] = entries
            elif given and name in (*CUSTOM_SPLITS, *OTHER_NAME):
                wrong = next(entry for entry in entries if not isinstance(entry, str))
                raise NotYolo(f"`{name}:` is {wrong!r}, expected a folder or a text file")
    task = document.get("task")
    if task is not None and task not in TASKS:
        raise NotYolo(f"`task:` is {task!r}, expected {', '.join(TASKS)}")
    prefix, count = document.get("path"), document.get("nc")
    return YoloSet(
        file,
        {int(number): str(name) for number, name in names.items()},
        lists,
        prefix if isinstance(prefix, str) and prefix != "." else "",
        count if isinstance(count, int) and not isinstance(count, bool) else None,
        _keypoints(document.get("kpt_shape"), task),
        task,
    )


def _keypoints(shape: Any, task: Any) -> int:
    """Numbers that follow a box; 0 where none are declared."""
    if shape is None:
        if task == "pose":
            raise NotYolo(
                "`task: pose` without `kpt_shape:`, such as `kpt_shape: [17, 3]` (keypoints,"
                " numbers of each)"
            )
        return 0
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(isinstance(number, int) and not isinstance(number, bool) for number in shape)
        or shape[0] < 1
        or shape[1] not in (2, 3)
    ):
        raise NotYolo(
            f"`kpt_shape:` is {shape!r}, expected keypoints and numbers of each, such as [17, 3]"
        )
    return int(shape[0] * shape[1])


def _darknet(file: Path) -> YoloSet:
    """obj.data: lines `classes = 2`, `train = data/train.txt`, `names = data/obj.names`."""
    values = {
        key.strip(): value.strip()
        for key, _, value in (line.partition("=") for line in text_lines(file))
        if value
    }
    if "names" not in values:
        raise NotYolo("has no line `names = FILE`, as darknet writes it")
    place = nearest(file.parent, values["names"])
    if place is None:
        raise NotYolo(f"`names = {values['names']}` is no file below its folder")
    count = values.get("classes", "")
    return YoloSet(
        file,
        dict(enumerate(text_lines(place))),
        {key: [value] for key, value in values.items() if key in (*CUSTOM_SPLITS, *OTHER_NAME)},
        count=int(count) if count.isdecimal() else None,
    )


def _classes_alone(file: Path) -> YoloSet:
    """classes.txt: the lists are the folders images/train, train/images and so on, else images/
    is the training set.
    """
    names = text_lines(file)
    if not names:
        raise NotYolo("names no class")
    lists = {}
    for name in (*CUSTOM_SPLITS, *OTHER_NAME):
        for place in (f"images/{name}", f"{name}/images"):
            if (file.parent / place).is_dir():
                lists[name] = [place]
    return YoloSet(file, dict(enumerate(names)), lists or {"train": ["images"]})


def text_lines(file: Path) -> list[str]:
    """Lines of a short text file that aren't blank."""
    try:
        if not file.is_file():
            raise NotYolo(f"{file.name}: no such file, or a folder, a pipe or a device")
        if file.stat().st_size > MAX_LABEL_BYTES:
            raise NotYolo(f"{file.name}: has {file.stat().st_size} bytes, expected a short list")
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise NotYolo(f"{file.name}: can't be read ({error})") from error
    return [line.strip() for line in text.split("\n") if line.strip()]


def _has_names(file: Path) -> bool:
    try:
        return "names" in _yaml(file)
    except NotYolo:
        return False


def _yaml(path: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        if path.exists() and not path.is_file():
            raise NotYolo("is a folder, a pipe or a device, expected a short data.yaml")
        if path.stat().st_size > MAX_YAML_BYTES:
            raise NotYolo(f"has {path.stat().st_size} bytes, expected a short data.yaml")
        document = YAML(typ="safe", pure=True).load(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise NotYolo("no such file") from error
    except (
        OSError,
        UnicodeDecodeError,
        YAMLError,
        ValueError,
        RecursionError,
        TypeError,
        AttributeError,
        KeyError,
        IndexError,
    ) as error:
        raise NotYolo(f"not readable as YAML: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(document, dict):
        raise NotYolo(
            f"found {type(document).__name__}, expected `names:` and the lists train, val and test"
        )
    return document


def nearest(folder: Path, name: str) -> Path | None:
    """The file below a folder that a path of another machine means: the longest end of it that's
    there.
    """
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part != "/"]
    if "\0" in name:
        return None
    for start in range(len(parts)):
        tail = parts[start:]
        if ".." in tail or ":" in tail[0]:
            continue
        place = folder.joinpath(*tail)
        if is_file(place) and place.resolve().is_relative_to(folder.resolve()):
            return place
    return None


def is_file(path: Path) -> bool:
    """Whether there's such a file; names that no system takes name none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
