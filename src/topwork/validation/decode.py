"""From a file's bytes to JSON records: encodings, typed decoding, and what to do when it fails.

The fast way decodes straight into typed records (msgspec) and leaves segmentations as unread bytes.
What doesn't fit is decoded record by record, so that one wrong field costs one finding and
never a file.
"""

import mmap
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

Buffer = bytes | mmap.mmap
MAX_DEPTH = 200
MAP_BYTES = 512 << 20
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|-?Infinity|NaN', re.DOTALL)
_NAN = re.compile(rb"NaN|Infinity")
_STRUCTURE = re.compile(rb'"((?:[^"\\]++|\\.)*+)"(\s*:)?|[\[\]{},]', re.DOTALL)
_ENCODINGS = (
    (b"\xef\xbb\xbf", "utf-8-sig", "a UTF-8 byte order mark"),
    (b"\xff\xfe\x00\x00", "utf-32", "UTF-32"),
    (b"\x00\x00\xfe\xff", "utf-32", "UTF-32"),
    (b"\xff\xfe", "utf-16", "UTF-16"),
    (b"\xfe\xff", "utf-16", "UTF-16"),
)


class ImageRecord(msgspec.Struct, gc=False):
    """An image as COCO lists it."""

    id: int
    file_name: str
    width: int
    height: int


class CategoryRecord(msgspec.Struct, gc=False):
    """A category as COCO lists it."""

    id: int
    name: str


class BoxRecord(msgspec.Struct, gc=False):
    """An annotation without its segmentation, which is skipped unread."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: int | bool = 0


class MaskRecord(BoxRecord, gc=False):
    """An annotation with its segmentation as unread bytes."""

    segmentation: msgspec.Raw = msgspec.Raw(b"")


class BoxFile(msgspec.Struct, gc=False):
    """A COCO instances file, segmentations skipped."""

    images: list[ImageRecord]
    annotations: list[BoxRecord]
    categories: list[CategoryRecord]


class MaskFile(msgspec.Struct, gc=False):
    """A COCO instances file, segmentations unread."""

    images: list[ImageRecord]
    annotations: list[MaskRecord]
    categories: list[CategoryRecord]


class LooseFile(msgspec.Struct, gc=False):
    """The three lists, each record unread."""

    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[msgspec.Raw]


class LooseAnnotations(msgspec.Struct, gc=False):
    """The annotations alone, each unread."""

    annotations: list[msgspec.Raw]


class ImageFields(msgspec.Struct, gc=False):
    """Only the image records, with all the fields they have."""

    images: list[dict[str, Any]]


class Unreadable(Exception):
    """The bytes can't be read as JSON records; `rule` names the fault, the text what was found."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(text)
        self.rule = rule


def load_bytes(path: Path) -> Buffer:
    """All bytes of a file; a large one is mapped into memory and not read until it's looked at.

    Raises:
        Unreadable: missing, a folder, a pipe, not permitted, empty, or larger than the memory
            that's free.
    """
    try:
        if path.is_dir():
            raise Unreadable(
                "file-unreadable",
                "is a folder without Annotations/ or XML files (Pascal VOC) or data.yaml (YOLO);"
                " for COCO, name its JSON file",
            )
        if path.exists() and not path.is_file():
            raise Unreadable(
                "file-unreadable", "is a pipe or a device, which may have no end; expected a file"
            )
        size = path.stat().st_size
        free = _free_memory()
        if size > 2 * free:
            raise Unreadable(
                "file-unreadable",
                f"has {size / 2**30:.1f} GiB, and only {free / 2**30:.1f} GiB of memory are free;"
                " split the file",
            )
        if size > MAP_BYTES:
            with path.open("rb") as stream:
                return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise Unreadable(
            "file-unreadable",
            "no such file; mend `annotations` in dataset of params.yaml, or run the stage that"
            " makes it",
        ) from error
    except MemoryError as error:
        raise Unreadable(
            "file-unreadable", f"has {path.stat().st_size} bytes, more than memory allows"
        ) from error
    except OSError as error:
        raise Unreadable("file-unreadable", f"can't be read ({error.strerror or error})") from error
    if not data.strip(b" \t\r\n\0"):
        raise Unreadable(
            "file-empty", f"has {len(data)} bytes and nothing in them; expected COCO instances JSON"
        )
    return data


def to_utf8(data: Buffer) -> tuple[Buffer, str | None]:
    """The text as UTF-8 without a byte order mark, and what it was if it wasn't that.

    Raises:
        Unreadable: the bytes aren't in the encoding that their byte order mark declares.
    """
    head = data[:4]
    marked = next(
        ((encoding, name) for mark, encoding, name in _ENCODINGS if head.startswith(mark)), None
    )
    if marked is None and len(head) >= 2 and 0 in head[:2]:
        marked = ("utf-16-be" if head[0] == 0 else "utf-16-le", "UTF-16 without a byte order mark")
    if marked is None:
        return data, None
    encoding, name = marked
    if encoding == "utf-8-sig":
        return data[3:], name
    try:
        return bytes(data).decode(encoding).encode(), name
    except UnicodeError as error:
        raise Unreadable("file-not-json", f"begins as {name} but isn't ({error})") from error


def without_nan(data: Buffer) -> tuple[Buffer, int]:
    """NaN and Infinity outside of texts replaced by null, and how many there were."""
    if not _NAN.search(data):
        return data, 0
    count = 0

    def replace(match: re.Match[bytes]) -> bytes:
        nonlocal count
        found = match.group()
        if found.startswith(b'"'):
            return found
        count += 1
        return b"null"

    return _TOKEN.sub(replace, data), count


def decode(data: Buffer, kind: type[Any]) -> Any:
    """Decode into records of a kind.

    Raises:
        msgspec.ValidationError: JSON, but of another shape.
        Unreadable: not JSON.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError:
        raise
    except RecursionError as error:
        raise Unreadable(
            "file-not-json", "brackets are nested too deep to be COCO, which needs six levels"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        if data[:4] == b"PK\x03\x04":
            raise Unreadable(
                "file-not-json",
                "isn't JSON but a zip; only images are read from one, so unpack the annotations",
            ) from error
        raise Unreadable(
            "file-not-json", f"isn't JSON: {error} (the file has {len(data)} bytes)"
        ) from error


def duplicate_keys(data: Buffer, limit: int = 1000) -> Iterator[tuple[str, str]]:
    """(where, key) of every key that occurs twice in one object; slow, so only for files that look
    suspicious.

    `where` is a path such as `annotations[12]`; at most `limit` are given.
    """
    stack: list[
        tuple[bool, set[bytes], list[Any]]
    ] = []  # (is an object, keys seen, [step in the parent])
    step: Any = None
    for match in _STRUCTURE.finditer(data):
        token = data[match.start() : match.start() + 1]
        if token in (b"{", b"["):
            stack.append((token == b"{", set(), [step]))
            step = 0 if token == b"[" else None
            if len(stack) > MAX_DEPTH:
                return
        elif token in (b"}", b"]"):
            if not stack:
                return
            step = stack.pop()[2][0]
        elif token == b",":
            if stack and not stack[-1][0]:
                step += 1
        elif match.group(2) is not None and stack and stack[-1][0]:
            key = match.group(1)
            if b"\\" in key:
                with suppress(msgspec.DecodeError):
                    key = str(msgspec.json.decode(b'"' + key + b'"')).encode(
                        "utf-8", "surrogatepass"
                    )
            if key in stack[-1][1]:
                yield _path(stack), key.decode("utf-8", "replace")
                limit -= 1
                if not limit:
                    return
            stack[-1][1].add(key)
            step = key.decode("utf-8", "replace")


def _path(stack: list[tuple[bool, set[bytes], list[Any]]]) -> str:
    steps = [entry[2][0] for entry in stack[1:]]
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return text.lstrip(".") or "the file's outermost object"


def _free_memory() -> int:
    """Bytes of free memory; a generous guess where the system doesn't report it."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 8 << 30
