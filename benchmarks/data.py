"""Benchmark of the data gate: annotation rules at COCO's size, growth with size, image checks.

    python benchmarks/data.py                 # all, some minutes; prints tables in Markdown
    python benchmarks/data.py --annotations 100000
    python benchmarks/data.py --only images

Every measurement runs in a process of its own, so that peak memory is its own; the peer is
pycocotools' `COCO(file)`, which only loads.
"""

import argparse
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

COCO_IMAGES, COCO_ANNOTATIONS = 118_287, 860_001
POINTS = 12


def write_coco(path: Path, annotations: int, seed: int = 0) -> int:
    """Write a set with COCO's proportions: 80 classes, 7.27 boxes an image, one polygon of 12
    points a box. Returns the file's bytes.
    """
    draw = np.random.default_rng(seed)
    images = max(1, round(annotations * COCO_IMAGES / COCO_ANNOTATIONS))
    ids = np.sort(draw.choice(6 * images, images, replace=False)) + 1
    categories = [
        {"supercategory": "thing", "id": number, "name": f"class {number}"}
        for number in range(1, 81)
    ]
    angles = np.linspace(0, 2 * math.pi, POINTS, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    with path.open("w") as stream:
        stream.write(
            '{"info": {"description": "generated"}, "licenses": [{"id": 1, "name": "none", "url":'
            ' ""}], "images": ['
        )
        for index, number in enumerate(ids.tolist()):
            stream.write(
                f'{"," if index else ""}{{"license": 1, "file_name": "{number:012d}.jpg",'
                f' "coco_url": "http://images.example/train/{number:012d}.jpg", "height": 480,'
                f' "width": 640, "date_captured": "2013-11-14 16:28:13", "id": {number}}}'
            )
        stream.write('], "annotations": [')
        for start in range(0, annotations, 10_000):
            count = min(10_000, annotations - start)
            size = np.exp(draw.uniform(1.8, 5.2, (count, 2))).round(2)
            corner = (draw.random((count, 2)) * (np.array([640, 480]) - size)).round(2)
            points = (
                (corner[:, None] + size[:, None] * (circle + 1) / 2).round(2).reshape(count, -1)
            )
            area = (size[:, 0] * size[:, 1] * POINTS / 8 * math.sin(2 * math.pi / POINTS)).round(4)
            owner, label = draw.integers(0, images, count), draw.integers(1, 81, count)
            lines = [
                f'{{"segmentation": [{points[i].tolist()}], "area": {area[i]}, "iscrowd": 0,'
                f' "image_id": {ids[owner[i]]}, "bbox": [{corner[i, 0]}, {corner[i, 1]},'
                f' {size[i, 0]}, {size[i, 1]}], "category_id": {label[i]}, "id": {start + i + 1}}}'
                for i in range(count)
            ]
            stream.write(("," if start else "") + ",".join(lines))
        stream.write(f'], "categories": {json.dumps(categories)}}}')
    return path.stat().st_size


def measure(what: str, path: Path) -> tuple[float, float, dict[str, float]]:
    """(seconds, peak GiB, further figures) of one job in a fresh process; imports aren't
    counted.
    """
    done = subprocess.run(
        [sys.executable, __file__, "--job", what, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return found.pop("seconds"), found.pop("gib"), found


def job(what: str, path: Path) -> None:
    """One measurement, printed as JSON."""
    further: dict[str, float] = {}
    if what == "pycocotools":
        from pycocotools.coco import COCO

        start, cpu = time.perf_counter(), time.process_time()
        COCO(str(path))
    elif what in ("rules", "rules without polygons"):
        from topwork.params.dataset import DatasetParams, SetParams
        from topwork.validation.gate import validate

        dataset = DatasetParams(root=path.parent, train=SetParams(annotations=Path(path.name)))
        start, cpu = time.perf_counter(), time.process_time()
        found = validate(dataset, segmentation=what == "rules", images=False)
        further = {"findings": len(found.findings), "annotations": len(found.tables.annotations)}
    elif what.startswith("images"):
        go, images = image_job(what.removeprefix("images: "), path)
        start, cpu = time.perf_counter(), time.process_time()
        further = {"read": go(), "images": images}
    else:
        raise SystemExit(f"no job {what!r}")
    seconds = time.perf_counter() - start
    further["cpu"] = time.process_time() - cpu
    print(
        json.dumps(
            {
                "seconds": seconds,
                "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                **further,
            }
        )
    )


def at_coco_size(folder: Path, annotations: int, runs: int) -> None:
    """The gate's rules next to pycocotools' load."""
    path = folder / "instances.json"
    size = write_coco(path, annotations)
    print(
        f"\n{annotations} annotations, {size / 1e6:.0f} MB, median of {runs} runs in turn,"
        f" {os.cpu_count()} cores\n"
    )
    print(
        "| job | seconds | of pycocotools | CPU seconds | of pycocotools | peak GiB"
        " |\n|---|---|---|---|---|---|"
    )
    jobs = ("pycocotools", "rules", "rules without polygons")
    found = {what: [] for what in jobs}  # type: dict[str, list[tuple[float, float, dict[str, float]]]]
    for _ in range(runs):
        for what in jobs:
            found[what].append(measure(what, path))
    wall, cpu = (
        statistics.median(pick(entry) for entry in found["pycocotools"])
        for pick in (lambda e: e[0], lambda e: e[2]["cpu"])
    )
    for what in jobs:
        seconds, used = (
            statistics.median(e[0] for e in found[what]),
            statistics.median(e[2]["cpu"] for e in found[what]),
        )
        print(
            f"| {what} | {seconds:.2f} | {seconds / wall:.2f} | {used:.2f} | {used / cpu:.2f} |"
            f" {max(e[1] for e in found[what]):.2f} |"
        )


def growth(folder: Path, largest: int) -> None:
    """Seconds against annotations, and the exponent of the line through their logarithms."""
    print("\n| annotations | seconds | µs each |\n|---|---|---|")
    sizes = [size for size in (1_000, 10_000, 100_000, 1_000_000) if size <= largest]
    times = []
    for size in sizes:
        path = folder / f"{size}.json"
        write_coco(path, size)
        times.append(min(measure("rules", path)[0] for _ in range(3 if size < 1_000_000 else 1)))
        print(f"| {size} | {times[-1]:.3f} | {times[-1] / size * 1e6:.1f} |")
        path.unlink()
    if len(sizes) > 1:
        print(f"\nexponent {np.polyfit(np.log(sizes), np.log(times), 1)[0]:.2f} (1 is linear)")


def write_images(folder: Path, count: int) -> None:
    """JPEG images of 640 x 480 with some detail, about 90 KB each."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (60, 80, 3), np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(
            folder / f"{number:06d}.jpg", quality=90
        )


IMAGE_JOBS = (
    "headers, libjpeg-turbo by Pillow, one core",
    "full decodes, libjpeg-turbo by torchvision, one core",
    "all checks, one core",
    "all checks, all cores",
    "all checks, from a zip, one core",
    "all checks, from a zip, all cores",
    "all checks, all cores, kept",
    "all checks, second run, kept",
)


def image_job(what: str, folder: Path) -> tuple[Callable[[], float], float]:
    """One way to go through the images of a folder (gives how many it read), and how many there
    are.
    """
    names = sorted(path.name for path in folder.glob("*.jpg"))
    if what.startswith("headers"):
        from PIL import Image

        def headers() -> float:
            for name in names:
                with Image.open(folder / name) as image:
                    assert image.size == (640, 480)
            return len(names)

        return headers, len(names)
    if what.startswith("full decodes"):
        import torch
        from torchvision.io import decode_jpeg, read_file

        torch.set_num_threads(1)

        def decodes() -> float:
            for name in names:
                decode_jpeg(read_file(str(folder / name)))
            return len(names)

        return decodes, len(names)
    from topwork.dataset.images import ImageStore
    from topwork.validation.probe import probe_images

    workers = 1 if "one core" in what else None
    cache = folder / "cache" if "kept" in what else None
    root = folder.with_suffix(".zip") if "from a zip" in what else folder
    return lambda: probe_images(ImageStore(root), names, cache, workers)[1], len(names)


def images(folder: Path, count: int, runs: int) -> None:
    """Image checks next to bare header reads and full decodes."""
    place = folder / "images"
    place.mkdir()
    write_images(place, count)
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for path in sorted(place.iterdir()):
            archive.write(path, path.name)
    size = sum(path.stat().st_size for path in place.glob("*.jpg"))
    print(
        f"\n{count} JPEG images of 640 x 480, {size / 1e6:.0f} MB, in the system's file cache,"
        f" median of {runs} runs in turn, {os.cpu_count()} cores\n"
    )
    print("| job | images/s | of one core | images read |\n|---|---|---|---|")
    rates: dict[str, list[float]] = {what: [] for what in IMAGE_JOBS}
    read: dict[str, float] = {}
    for _ in range(runs):
        shutil.rmtree(place / "cache", ignore_errors=True)
        for what in IMAGE_JOBS:
            seconds, _, further = measure(f"images: {what}", place)
            rates[what].append(further["images"] / seconds)
            read[what] = further["read"]
    for what in IMAGE_JOBS:
        rate, alone = (
            statistics.median(rates.get(name, [0]))
            for name in (what, what.replace("all cores", "one core"))
        )
        ratio = f"{rate / alone:.2f}" if what.endswith("all cores") else ""
        print(f"| {what} | {rate:.0f} | {ratio} | {read[what]:.0f} |")


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", type=int, default=COCO_ANNOTATIONS)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=["rules", "growth", "images"])
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        job(args.job[0], Path(args.job[1]))
        return 0
    with tempfile.TemporaryDirectory() as name:
        if args.only in (None, "rules"):
            at_coco_size(Path(name), args.annotations, args.runs)
        if args.only in (None, "growth"):
            growth(Path(name), 1_000_000)
        if args.only in (None, "images"):
            images(Path(name), args.images, args.runs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
