"""Images: where their bytes come from (a folder, a zip or a tar archive, read without unpacking),
and the one decoder that makes them RGB for training, prediction, evaluation and reports.

Pictures are upright: the EXIF orientation is applied, as viewers do, and the tables' boxes are in
pixels of the upright picture (the data gate turns those that were made on the stored one).
"""

import hashlib
import io
import os
import stat
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from PIL import Image

from topwork.errors import DataError
from topwork.files import sha256_file

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
    | {".avif", ".ppm", ".pgm"}
)
MAC_FOLDER = "__MACOSX/"  # what macOS adds to its zips: a shadow of each file, under its name
BOMB_RATIO = 1000
BOMB_BYTES = 256 << 20
MAX_PIXELS = 178_956_970  # Pillow's own bound for a decompression bomb warning, times two
ORIENTATION = 0x0112
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the stored picture upright; 5 to 8 swap width and height."""


def rgb_upright(data: bytes) -> Image.Image:
    """Decode a picture: RGB of 8 bits, upright (EXIF orientation applied), its first frame.

    16-bit grey is scaled by its range (65535 becomes 255); integers of 32 bits by 16 bits' range
    where they fit it; these beyond it, and floats, have no range of their own and are stretched
    from their least to their greatest value. Palettes, grey and CMYK are converted; transparency
    is left out, so that what is transparent shows the colour that's stored there.

    Raises:
        ValueError: more than `MAX_PIXELS`.
        Exception: whatever Pillow raises on broken data.
    """
    with Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(
                f"{image.width}x{image.height} pixels, at most {MAX_PIXELS} are decoded"
            )
        image.load()
        turn = UPRIGHT.get(orientation_of(image))
        picture = eight_bits(image).convert("RGB")
    return picture if turn is None else picture.transpose(turn)


def eight_bits(image: Image.Image) -> Image.Image:
    """An image of more than 8 bits a channel as grey of 8; any other as it is."""
    if image.mode in SIXTEEN_BITS:
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode not in ("I", "F"):
        return image
    numbers = np.nan_to_num(np.asarray(image, np.float64), posinf=0.0, neginf=0.0)
    low, high = float(numbers.min()), float(numbers.max())
    if image.mode == "I" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    scaled = (numbers - low) * 255 / (high - low if high > low else 1.0)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation of a loaded image (Pillow turns TIFF itself while it loads); 1 where there's
    none, or none that can be read.
    """
    try:
        found = int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - broken metadata around whole pixels
        return 1
    return found if found in UPRIGHT else 1


def header_size(path: Path, *, upright: bool = False) -> tuple[int, int]:
    """Width and height from an image's header, as stored or of the upright picture; 0 where it
    can't be read.
    """
    try:
        if not path.is_file():
            return 0, 0  # opening a pipe would wait forever
        with Image.open(path) as image:
            # a TIFF's size is that of the upright picture already
            turned = upright and image.format != "TIFF" and orientation_of(image) >= 5
            return (image.height, image.width) if turned else image.size
    except Exception:  # noqa: BLE001 - Pillow's plugins raise almost anything on broken data
        return 0, 0


@dataclass(frozen=True)
class Member:
    """A file of an archive: bytes unpacked and packed, offset of its data (tar, stored zip members
    are read by offset).
    """

    size: int
    packed: int
    offset: int


def outside(name: str) -> Literal["absolute", "parent"] | None:
    """How a file name leads out of its root, or None."""
    if name[:1] not in "/\\" and ".." not in name and name[1:2] != ":":
        return None  # most names, of which there may be a million
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or (len(name) > 1 and name[1] == ":"):
        return "absolute"
    return "parent" if ".." in path.parts else None


class ImageStore:
    """Images by file name, from a folder, a zip or an uncompressed tar.

    A single common top folder inside an archive may be left out of the names (COCO's train2017.zip
    has train2017/ before each). The store can be pickled and used after a fork and from several
    threads: each process opens the archive for itself.

    Raises:
        DataError: the root doesn't exist, or is neither a folder nor such an archive.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.kind: Literal["folder", "zip", "tar"] = _kind(self.root)
        self._lock = threading.Lock()
        self._pid = -1
        self._handle: Any = None
        self._archive_sha256: str | None = None
        self.members: dict[str, Member] = {}
        self.refused: list[str] = []
        if self.kind != "folder":
            self._index()
        self._prefix = self._common_folder()

    def __getstate__(self) -> dict[str, Any]:
        return {
            key: value
            for key, value in self.__dict__.items()
            if key not in ("_lock", "_pid", "_handle")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock, self._pid, self._handle = threading.Lock(), -1, None

    def names(self) -> Iterator[str]:
        """Names of the image files there, sorted; those of an archive without its common folder."""
        if self.kind == "folder":
            for folder, folders, files in os.walk(self.root):
                folders.sort()
                for file in sorted(files):
                    if PurePosixPath(file).suffix.lower() in IMAGE_SUFFIXES:
                        yield (Path(folder) / file).relative_to(self.root).as_posix()
        else:
            for name in sorted(self.members):
                if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(
                    MAC_FOLDER
                ):
                    yield name.removeprefix(self._prefix)

    def path(self, file_name: str) -> Path:
        """Path of an image in a folder.

        Raises:
            DataError: the name leads out of the folder, or this is an archive.
        """
        if self.kind != "folder":
            raise DataError(
                f"{self.root}: is an archive, its images have no path of their own; use read() or"
                " open()."
            )
        self._refuse_outside(file_name)
        return self.root / file_name

    def stamp(self, file_name: str) -> tuple[int, int] | None:
        """(size, mtime in ns) by which an unchanged image is recognized; None where it's missing.

        An archive's members have its mtime.
        """
        try:
            if self.kind == "folder":
                found = self.path(file_name).stat()
                return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None
            member = self._member(file_name)
            return None if member is None else (member.size, self.root.stat().st_mtime_ns)
        except (OSError, ValueError, DataError):
            return None

    def sha256(self, file_name: str) -> str:
        """SHA-256 of an image's bytes; of an archive's member that of the whole archive, which is
        read once.
        """
        if self.kind == "folder":
            return hashlib.sha256(self.read(file_name)).hexdigest()
        with self._lock:
            if self._archive_sha256 is None:
                self._archive_sha256 = sha256_file(self.root)
            return self._archive_sha256

    def read(self, file_name: str) -> bytes:
        """An image's bytes, as stored.

        Raises:
            DataError: there's no such file, its name leads out of the root, or it's a bomb; nothing
                outside the root is ever read.
        """
        self._refuse_outside(file_name)
        try:
            if self.kind == "folder":
                return (self.root / file_name).read_bytes()
            member = self._member(file_name)
            if member is None:
                raise FileNotFoundError(file_name)
            if member.size > BOMB_BYTES and member.size > BOMB_RATIO * max(member.packed, 1):
                raise DataError(
                    f"{self.root}: {file_name}: claims to unpack from {member.packed} to"
                    f" {member.size} bytes; not read."
                )
            return self._read_member(file_name, member)
        except FileNotFoundError as error:
            raise DataError(
                f"{self.root}: {file_name}: no such image. Mend the annotations or put it there."
            ) from error
        except (
            OSError,
            ValueError,
            zipfile.BadZipFile,
            EOFError,
            RuntimeError,
            zlib.error,
        ) as error:
            raise DataError(f"{self.root}: {file_name}: can't be read ({error}).") from error

    def open(self, file_name: str) -> Image.Image:
        """An image as RGB, upright (see `rgb_upright`).

        Raises:
            DataError: it's missing, no image, truncated, or too large to decode.
        """
        data = self.read(file_name)
        try:
            return rgb_upright(data)
        except Exception as error:  # Pillow's plugins raise almost anything on broken data
            raise DataError(
                f"{self.root}: {file_name}: can't be decoded ({error}). Replace it, or list its"
                " image id in dataset.drop_images."
            ) from error

    def _refuse_outside(self, file_name: str) -> None:
        if outside(file_name) or "\0" in file_name or not file_name:
            raise DataError(
                f"{self.root}: {file_name!r}: leads out of the image folder (or is no name); it's"
                " never read. Mend its file_name."
            )

    def _member(self, file_name: str) -> Member | None:
        return self.members.get(file_name) or self.members.get(self._prefix + file_name)

    def _common_folder(self) -> str:
        tops = {name.split("/", 1)[0] for name in self.members if not name.startswith(MAC_FOLDER)}
        files_on_top = any("/" not in name for name in self.members)
        return f"{tops.pop()}/" if len(tops) == 1 and not files_on_top else ""

    def _index(self) -> None:
        try:
            if self.kind == "zip":
                with zipfile.ZipFile(self.root) as archive:
                    entries = [
                        (i.filename, Member(i.file_size, i.compress_size, i.header_offset))
                        for i in archive.infolist()
                        if not i.is_dir()
                    ]
            else:
                with tarfile.open(self.root, "r:") as tar:
                    entries = [
                        (t.name, Member(t.size, t.size, t.offset_data))
                        for t in tar
                        if t.isreg() and t.sparse is None
                    ]
        except (
            OSError,
            zipfile.BadZipFile,
            tarfile.TarError,
            ValueError,
            EOFError,
            NotImplementedError,
        ) as error:
            raise DataError(
                f"{self.root}: not a whole {self.kind} archive ({error}). Make it again; compressed"
                " tar can't be read at random."
            ) from error
        for name, member in entries:
            name = name.removeprefix("./")
            if outside(name):
                self.refused.append(name)
            else:
                self.members[name] = member

    def _read_member(self, file_name: str, member: Member) -> bytes:
        with self._lock:
            # a handle must not be shared with a forked process: they'd share its position
            if self._pid != os.getpid():
                self._handle = (
                    zipfile.ZipFile(self.root) if self.kind == "zip" else self.root.open("rb")
                )
                self._pid = os.getpid()
            if self.kind == "tar":
                data = os.pread(self._handle.fileno(), member.size, member.offset)
                if len(data) != member.size:
                    raise EOFError("the archive ends early")
                return data
            name = file_name if file_name in self.members else self._prefix + file_name
            try:
                info = self._handle.getinfo(name)
            except KeyError:
                info = self._handle.getinfo("./" + name)
            with self._handle.open(info) as stream:
                data = stream.read(member.size + 1)
            if len(data) > member.size:
                raise ValueError(f"unpacks to more than the {member.size} bytes that it claims")
            return bytes(data)


def _kind(root: Path) -> Literal["folder", "zip", "tar"]:
    if root.is_dir():
        return "folder"
    if not root.exists():
        raise DataError(
            f"{root}: no such folder or archive of images. Mend `images` in dataset of params.yaml."
        )
    try:
        if zipfile.is_zipfile(root):
            return "zip"
        with root.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise DataError(f"{root}: can't be read ({error.strerror or error}).") from error
    if head[257:262] == b"ustar" or root.suffix.lower() == ".tar":
        return "tar"
    raise DataError(
        f"{root}: neither a folder nor a zip nor an uncompressed tar; images are read at random, so"
        " repack it as one of these."
    )
