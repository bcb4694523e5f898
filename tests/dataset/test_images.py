"""The one decoder, by pixel values: depth, palettes, transparency, frames, formats, orientation."""

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from topwork.dataset.images import IMAGE_SUFFIXES, ImageStore, header_size, rgb_upright


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decoded(data: bytes) -> np.ndarray[Any, Any]:
    picture = rgb_upright(data)
    assert picture.mode == "RGB"
    return np.asarray(picture)


RAMP = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B")])
def test_sixteen_bits_are_scaled_by_their_range(kind: str, mode: str) -> None:
    stored = RAMP.astype(">u2") if mode == "I;16B" else RAMP
    image = Image.frombytes(mode, (16, 16), stored.tobytes())
    pixels = decoded(encoded(image, kind))
    assert (pixels == np.arange(256, dtype=np.uint8).reshape(16, 16, 1)).all()


def test_twelve_bits_in_sixteen_keep_their_order() -> None:
    values = np.linspace(0, 4095, 256).astype(np.uint16).reshape(16, 16)
    pixels = decoded(encoded(Image.fromarray(values), "PNG"))[..., 0]
    assert (pixels == np.rint(values / 257)).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 32768], [65535, 257]], np.int32), [[0, 128], [255, 1]]),
        (np.array([[-100, 0], [100, 300]], np.int32), [[0, 64], [128, 255]]),
        (np.array([[0, 1 << 20], [1 << 21, 1 << 22]], np.int32), [[0, 64], [128, 255]]),
        (np.array([[0.0, 0.5], [1.0, 0.25]], np.float32), [[0, 128], [255, 64]]),
        (np.array([[5.0, 5.0], [5.0, 5.0]], np.float32), [[0, 0], [0, 0]]),
    ],
    ids=["as-sixteen-bits", "negative", "wide", "float", "flat"],
)
def test_integers_and_floats(values: np.ndarray[Any, Any], expected: list[list[int]]) -> None:
    pixels = decoded(encoded(Image.fromarray(values), "TIFF"))
    assert pixels[..., 0].tolist() == expected
    assert (pixels == pixels[..., :1]).all()


def test_sixteen_bits_a_colour_channel() -> None:
    """Pillow has no such mode to write, so the PNG is put together here."""
    values = np.arange(0, 65536, 65536 // 48, dtype=np.uint16)[:48].reshape(4, 4, 3)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.abs(decoded(data).astype(int) - np.rint(values / 257)).max() <= 1


COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]]], np.uint8)


def test_what_is_transparent_shows_the_colour_stored_there() -> None:
    image = Image.fromarray(COLOURS).convert("RGBA")
    image.putalpha(Image.fromarray(np.array([[0, 128], [255, 0]], np.uint8)))
    for kind in ("PNG", "TIFF"):
        assert (decoded(encoded(image, kind)) == COLOURS).all()
    grey = Image.merge("LA", [Image.new("L", (2, 2), 77), Image.new("L", (2, 2), 0)])
    assert (decoded(encoded(grey, "PNG")) == 77).all()


def test_palettes_are_their_colours() -> None:
    image = Image.new("P", (2, 2))
    image.putpalette(COLOURS.reshape(-1).tolist())
    image.putdata([0, 1, 2, 3])
    for options in ({}, {"transparency": 1}):
        for kind in ("PNG", "GIF"):
            assert (decoded(encoded(image, kind, **options)) == COLOURS).all()


def test_cmyk_is_converted() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    assert np.abs(decoded(encoded(image, "TIFF")).astype(int) - [255, 0, 0]).max() <= 1
    assert np.abs(decoded(encoded(image, "JPEG", quality=95)).astype(int) - [255, 0, 0]).max() <= 8


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_first_of_several_frames(kind: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ((200, 0, 0), (0, 0, 200))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    tolerance = 8 if kind == "AVIF" else 0
    assert np.abs(decoded(data).astype(int) - [200, 0, 0]).max() <= tolerance


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("WEBP", {"lossless": True}, 0),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}, 3),
        ("BMP", {}, 0),
        ("PPM", {}, 0),
        ("JPEG", {"quality": 100, "subsampling": 0}, 3),
    ],
)
def test_formats(kind: str, options: dict[str, Any], tolerance: int) -> None:
    smooth = np.stack(np.broadcast_arrays(*np.ogrid[0:240:8, 0:240:8], 90), -1).astype(np.uint8)
    pixels = decoded(encoded(Image.fromarray(smooth), kind, **options))
    assert np.abs(pixels.astype(int) - smooth).max() <= tolerance


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_picture_is_upright(kind: str, orientation: int, tmp_path: Path) -> None:
    stored = np.zeros((24, 40, 3), np.uint8)
    stored[:12, :20], stored[12:, 20:] = (250, 0, 0), (0, 0, 250)
    image = Image.fromarray(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, kind, exif=exif)
    image.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(image))
    pixels = decoded(data)
    assert pixels.shape == upright.shape
    assert np.abs(pixels[2:-2:8, 2:-2:8].astype(int) - upright[2:-2:8, 2:-2:8]).max() <= 40
    file = tmp_path / "picture"
    file.write_bytes(data)
    assert header_size(file, upright=True) == upright.shape[1::-1]


def test_stores_open_by_that_decoder(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (4, 2)), "PNG", exif=exif))
    assert ImageStore(tmp_path).open("a.png").size == (2, 4)
    (tmp_path / "b.avif").write_bytes(encoded(Image.new("RGB", (4, 2)), "AVIF"))
    assert list(ImageStore(tmp_path).names()) == ["a.png", "b.avif"]


def test_nothing_else_decodes_pictures(root: Path) -> None:
    """A second decoder would see other pixels than training did."""
    own = {"dataset/images.py", "validation/probe.py"}
    source = root / "src" / "topwork"
    others = [
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if re.search(r"\bImage\.open\(", path.read_text())
    ]
    assert set(others) == own
    assert ".avif" in IMAGE_SUFFIXES
