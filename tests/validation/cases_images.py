"""For each rule on images, archives, paths and duplicates: what triggers it, and the nearest thing
that doesn't.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

from validation.scene import HEIGHT, WIDTH, Scene, encoded, picture

Case = Callable[[Scene], Scene]

ROTATED = Image.Exif()
ROTATED[0x0112] = 6
UPSIDE_DOWN = Image.Exif()
UPSIDE_DOWN[0x0112] = 3
UPRIGHT = Image.Exif()
UPRIGHT[0x0112] = 1


def replaced(data: bytes, name: str = "train/0.jpg") -> Case:
    """Other bytes for an image."""
    return lambda scene: scene.file(name, data)


def flat(value: int, dot: int) -> bytes:
    """One colour, with a dot that may be of another."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (value,) * 3)
    image.paste((dot,) * 3, (20, 20, 70, 60))
    return encoded(image, "PNG")


def frames(count: int) -> bytes:
    pictures = [picture(seed) for seed in range(count)]
    return encoded(pictures[0], "GIF", save_all=True, append_images=pictures[1:])


def sized(width: int, height: int) -> Case:
    """An image of that size, declared so, its boxes made to fit."""

    def spoil(scene: Scene) -> Scene:
        scene.file("train/0.jpg", encoded(picture(0, (width, height)))).image(
            0, width=width, height=height
        )
        for index in range(6):
            scene.box(index, 2 * index, 3 * index, 10, 9)
        return scene

    return spoil


def brighter(seed: int, by: int) -> bytes:
    """The picture of a seed, made brighter: other bytes, the same look."""
    pixels = np.asarray(picture(seed)).astype(np.int16)
    return encoded(Image.fromarray((pixels * 0.9 + by).clip(0, 255).astype(np.uint8)))


def copied(scene: Scene, same_boxes: bool) -> Scene:
    """The second image with the bytes of the first, with its boxes or its own."""
    scene.file("train/1.jpg", scene.files["train/0.jpg"])
    if same_boxes:
        for index in range(6):
            scene.annotation(
                6 + index,
                **{
                    key: scene.sets["train"]["annotations"][index][key]
                    for key in ("bbox", "area", "category_id")
                },
            )
    return scene


IMAGE_CASES: dict[str, tuple[Case, Case]] = {
    "image-missing": (
        lambda s: s.file("train/0.jpg", None),
        lambda s: s.file("train/0.jpg", None).zip({"0.jpg": encoded(picture(0))}),
    ),
    "image-unreadable": (replaced(b"<html>not found</html>"), replaced(encoded(picture(0), "BMP"))),
    "image-truncated": (
        replaced(encoded(picture(0))[:-200]),
        replaced(encoded(picture(0)) + b"trailing"),
    ),
    "image-bomb": (
        replaced(encoded(Image.new("1", (20_000, 20_000)), "PNG")),
        replaced(encoded(picture(0), "PNG")),
    ),
    "image-size-differs": (lambda s: s.image(0, width=101), lambda s: s.image(0, width=100)),
    "image-exif-rotated": (
        replaced(encoded(picture(0), exif=ROTATED)),
        replaced(encoded(picture(0), exif=UPRIGHT)),
    ),
    "exif-undecided": (
        replaced(encoded(picture(0), exif=UPSIDE_DOWN)),
        replaced(encoded(picture(0), exif=ROTATED)),
    ),
    "image-grey": (replaced(encoded(picture(0, mode="L"))), replaced(encoded(picture(0)))),
    "image-cmyk": (
        replaced(encoded(picture(0, mode="CMYK"))),
        replaced(encoded(picture(0, mode="YCbCr"))),
    ),
    "image-deep": (
        replaced(encoded(picture(0, mode="I;16"), "PNG")),
        replaced(encoded(picture(0, mode="L"), "PNG")),
    ),
    "image-alpha": (
        replaced(encoded(picture(0, mode="RGBA"), "PNG")),
        replaced(encoded(picture(0), "PNG")),
    ),
    "image-animated": (replaced(frames(2)), replaced(frames(1))),
    "image-tiny": (sized(31, 40), sized(32, 40)),
    "image-flat": (replaced(flat(90, 90)), replaced(flat(90, 91))),
    "image-unlisted": (
        lambda s: s.file("train/extra.png", encoded(picture(7), "PNG")),
        lambda s: s.file("train/notes.txt", b"extra"),
    ),
    "archive-unreadable": (
        lambda s: s.file("broken.zip", b"PK not a zip").images_at("broken.zip"),
        lambda s: s.zip({}),
    ),
    "archive-bomb": (
        lambda s: s.zip({"bomb.jpg": b"\0" * (300 << 20)}).image(0, file_name="bomb.jpg"),
        lambda s: s.zip({"zeros.bin": b"\0" * (1 << 20)}),
    ),
    "archive-path-outside": (
        lambda s: s.zip({"../evil.jpg": b"x"}),
        lambda s: s.zip({"a..b.txt": b"x"}),
    ),
    "path-outside": (
        lambda s: s.image(0, file_name="../train/0.jpg"),
        lambda s: s.image(0, file_name="./0.jpg"),
    ),
    "path-absolute": (
        lambda s: s.image(0, file_name=f"{s.folder}/train/0.jpg"),
        lambda s: s.image(0, file_name="0.jpg"),
    ),
    "path-backslash": (
        lambda s: s.image(0, file_name="a\\0.jpg").file("train/a\\0.jpg", s.files["train/0.jpg"]),
        lambda s: s.image(0, file_name="a/0.jpg").file("train/a/0.jpg", s.files["train/0.jpg"]),
    ),
    "path-symlink-out": (
        lambda s: s.file("elsewhere/0.jpg", s.files["train/0.jpg"]).link(
            "train/0.jpg", "../elsewhere/0.jpg"
        ),
        lambda s: s.file("train/real.jpg", s.files["train/0.jpg"]).link("train/0.jpg", "real.jpg"),
    ),
    "path-case-twins": (
        lambda s: s.image(1, file_name="A.jpg").image(2, file_name="a.jpg"),
        lambda s: s.image(1, file_name="a.jpg").image(2, file_name="b.jpg"),
    ),
    "path-case-differs": (
        lambda s: s.image(0, file_name="0.JPG"),
        lambda s: s.image(0, file_name="nowhere.jpg"),
    ),
    "path-matched": (
        lambda s: s.image(0, file_name="x\\0.jpg").option(match="nearest"),
        lambda s: s.image(0, file_name="x\\0.jpg"),
    ),
    "duplicate-image": (lambda s: copied(s, True), lambda s: s),
    "duplicate-labels-differ": (lambda s: copied(s, False), lambda s: copied(s, True)),
    "duplicate-image-across": (
        lambda s: s.other().file("val/10.jpg", s.files["train/0.jpg"]),
        lambda s: s.other(),
    ),
    "near-duplicate": (replaced(brighter(1, 9)), replaced(encoded(picture(11)))),
    "near-duplicate-across": (
        lambda s: s.other().file("val/10.jpg", brighter(0, 9)),
        lambda s: s.other(),
    ),
}
