"""Draw the demo's two worlds as COCO data sets: the street, which the shipped detector knows, and
the yard, which is new.

Image i of a split depends on (world, seed, split, i) alone: not on the process, the order or the
count.
"""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

from topwork.demo.scene import Annotation, Scene
from topwork.demo.street import STREET_CLASSES, street_scene
from topwork.demo.yard import YARD_CLASSES, yard_scene
from topwork.errors import DataError
from topwork.files import atomic_folder, atomic_path

SPLITS: dict[str, int] = {
    "train": 1,
    "val": 2,
    "test": 3,
    "replay": 4,
    "pretrain": 5,
    "pretrain_val": 6,
    "pretrain_test": 7,
}
"""Every split's number: its image ids start at number * 100 000 + 1, so that no two splits share
one.
"""
PROCESSES = 2
JPEG_QUALITY = 88


@dataclass(frozen=True)
class World:
    """A name, its classes in category order (ids from 1) and how one scene is drawn."""

    name: str
    classes: tuple[str, ...]
    draw: Callable[[Random], Scene]


Drawn = tuple[dict[str, Any], list[Annotation]]
"""An image's COCO record and its annotations."""
MapImages = Callable[[Callable[[int], Drawn], Iterable[int]], list[Drawn]]
"""Applies a drawing function to image indices, in order."""

STREET = World("street", STREET_CLASSES, street_scene)
YARD = World("yard", YARD_CLASSES, yard_scene)


def draw_split(
    world: World, folder: Path, split: str, count: int, seed: int, processes: int = PROCESSES
) -> Path:
    """Draw `count` images of a world into `folder`/`split`/images and their annotations into
    `folder`/`split`.json.

    Args:
        world: STREET or YARD.
        folder: where the world's splits lie; made if it is missing.
        split: a name of SPLITS.
        count: how many images; fewer give a prefix of more.
        seed: another seed, another world of pictures.
        processes: how many draw at once; the files are the same for any number.

    Returns:
        The annotation file's path.

    Raises:
        DataError: the split is unknown.
        TopworkError: the files can't be written.
    """
    with _drawers(processes) as draw_all:
        return _draw_split(world, folder, split, count, seed, draw_all)


def write_demo(
    folder: Path,
    seed: int,
    *,
    street_test: int,
    yard_train: int,
    yard_val: int,
    yard_test: int,
    street_replay: int,
    processes: int = PROCESSES,
) -> None:
    """Write the whole demo: the yard's three splits, a held-out street test set and a street replay
    set.

    The street's test and replay images share no split with those the shipped weights were trained
    on. They lie in archives, which DVC tracks as one file each; the yard's lie in folders, to be
    looked at.
    """
    with _drawers(processes) as draw_all:
        for split, count in (("train", yard_train), ("val", yard_val), ("test", yard_test)):
            _draw_split(YARD, folder / "yard", split, count, seed, draw_all)
        for split, count in (("test", street_test), ("replay", street_replay)):
            _draw_split(STREET, folder / "street", split, count, seed, draw_all)
            _pack(folder / "street" / split / "images", folder / "street" / f"{split}.zip")
            shutil.rmtree(folder / "street" / split)


def _pack(images: Path, archive: Path) -> None:
    """Put a folder's files into a zip archive; the same files give the same bytes."""
    with (
        atomic_path(archive) as scratch,
        zipfile.ZipFile(scratch, "w", zipfile.ZIP_STORED) as packed,
    ):
        for file in sorted(images.iterdir()):
            # a ZipInfo's own date is the same every day
            packed.writestr(zipfile.ZipInfo(file.name), file.read_bytes())


def image_name(world: World, split: str, index: int) -> str:
    """File name of an image; unique over worlds and splits."""
    return f"{world.name}_{split}_{index:05d}.jpg"


def image_id(split: str, index: int) -> int:
    """COCO id of an image, from 1; unique over a world's splits."""
    return SPLITS[split] * 100_000 + index + 1


def draw_image(world: World, split: str, seed: int, images: Path, index: int) -> Drawn:
    """Draw and save one image; returns its COCO image record and its annotations (ids from 1,
    renumbered by the caller).
    """
    # a string seeds Random through SHA-512: the same on every machine and in every process
    rng = Random(f"{world.name}/{seed}/{split}/{index}")
    scene = world.draw(rng)
    picture = scene.develop(rng)
    name = image_name(world, split, index)
    picture.save(images / name, quality=JPEG_QUALITY)
    number = image_id(split, index)
    record = {"id": number, "file_name": name, "width": picture.width, "height": picture.height}
    return record, scene.annotations(number, 1)


@contextmanager
def _drawers(processes: int) -> Iterator[MapImages]:
    """A `map` over image indices that draws in this process, or in several fresh ones."""
    if processes < 2:
        yield lambda draw, indices: list(map(draw, indices))
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield lambda draw, indices: list(pool.map(draw, indices, chunksize=4))


def _draw_split(
    world: World, folder: Path, split: str, count: int, seed: int, draw_all: MapImages
) -> Path:
    """Draw a split; the images and then the table take their places whole."""
    if split not in SPLITS:
        raise DataError(f"{folder}: split {split!r} is unknown, must be one of {', '.join(SPLITS)}")
    table = folder / f"{split}.json"
    with atomic_folder(folder / split) as scratch:
        images = scratch / "images"
        images.mkdir()
        drawn = draw_all(partial(draw_image, world, split, seed, images), range(count))
    with atomic_path(table) as scratch_table:
        scratch_table.write_text(
            json.dumps(_coco(world, split, seed, drawn), sort_keys=True), encoding="utf-8"
        )
    return table


def _coco(world: World, split: str, seed: int, drawn: list[Drawn]) -> dict[str, Any]:
    """Put the images' records together, annotation ids counting from 1 over the whole split."""
    annotations = [annotation for _, found in drawn for annotation in found]
    return {
        "info": {
            "description": f"topwork demo, world {world.name}, split {split}, seed {seed}",
            "version": "1",
        },
        "licenses": [
            {"id": 1, "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}
        ],
        "images": [{**record, "license": 1} for record, _ in drawn],
        "annotations": [
            {**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)
        ],
        "categories": [
            {"id": number, "name": name, "supercategory": world.name}
            for number, name in enumerate(world.classes, start=1)
        ],
    }
