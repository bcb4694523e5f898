"""How fast is the evaluation: ours against pycocotools on a set of COCO val2017's size, prediction
against the bare model, the report.

    python benchmarks/evaluation.py              # all three
    python benchmarks/evaluation.py metrics --no-pycocotools
    python benchmarks/evaluation.py predict --images 64
    python benchmarks/evaluation.py report       # of 1,000 test images

The set is generated: 5,000 images, 36,000 boxes of 80 classes (1% crowds), 500,000 detections. Both
sides start from arrays in memory, and
their precision arrays are compared. Everything runs in one process, one after the other; times are
wall-clock.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from topwork.detectors.builders import build
from topwork.evaluation.mistakes import find_mistakes
from topwork.inference.prediction import predict
from topwork.metrics.bootstrap import draw_weights, weighted_ap
from topwork.metrics.coco import score
from topwork.metrics.matching import match
from topwork.metrics.truth import Truth, detections_of


def generated(
    images: int = 5_000,
    objects: int = 36_000,
    found: int = 500_000,
    classes: int = 80,
    seed: int = 0,
) -> tuple[Truth, pd.DataFrame]:
    """A set like val2017: three detections near each object, the rest low-scored strays."""
    random = np.random.default_rng(seed)
    size = np.exp(random.normal(4, 0.9, (objects, 2))).clip(4, 400)
    boxes = np.hstack([random.random((objects, 2)) * (np.array([640, 480]) - size).clip(1), size])
    image, label = random.integers(0, images, objects), random.integers(1, classes + 1, objects)
    source = random.integers(0, objects, 3 * objects)
    near = boxes[source].copy()
    near[:, :2] += random.normal(0, 0.12, (len(near), 2)) * near[:, 2:]
    near[:, 2:] *= np.exp(random.normal(0, 0.12, (len(near), 2)))
    strays = found - len(near)
    stray_size = np.exp(random.normal(4, 0.9, (strays, 2))).clip(4, 400)
    stray = np.hstack(
        [random.random((strays, 2)) * (np.array([640, 480]) - stray_size).clip(1), stray_size]
    )
    names = tuple(f"class {index:02d}" for index in range(classes))
    truth = Truth(
        classes=names,
        image_ids=np.arange(1, images + 1),
        sizes=np.tile([640, 480], (images, 1)),
        image=image,
        label=label,
        boxes=boxes,
        area=boxes[:, 2] * boxes[:, 3],
        crowd=random.random(objects) < 0.01,
        annotation_ids=np.arange(1, objects + 1),
        segmentation=(None,) * objects,
    )
    table = pd.DataFrame(np.vstack([near, stray]), columns=["x", "y", "width", "height"])
    table["image_id"] = np.r_[image[source], random.integers(0, images, strays)] + 1
    labels = np.r_[
        np.where(
            random.random(len(near)) < 0.9,
            label[source],
            random.integers(1, classes + 1, len(near)),
        ),
        random.integers(1, classes + 1, strays),
    ]
    table["name"] = np.asarray(names, dtype=object)[labels - 1]
    table["score"] = np.r_[random.beta(4, 2, len(near)), random.beta(1, 6, strays)]
    return truth, table


def timed(what: str, work: Callable[[], Any]) -> tuple[Any, float]:
    """Run, print the seconds, and hand both on."""
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    print(f"{what:<70} {seconds:9.2f} s", flush=True)
    return result, seconds


def pycocotools_arrays(truth: Truth, table: pd.DataFrame) -> tuple[object, object]:
    """Ground truth and results as pycocotools holds them (built outside the timing of its
    evaluation, which favours it).
    """
    from pycocotools.coco import COCO

    ground, results = COCO(), COCO()
    found = detections_of(table, truth)
    images = [{"id": int(key)} for key in truth.image_ids]
    categories = [{"id": index, "name": name} for index, name in enumerate(truth.classes, start=1)]
    sides = (
        (
            ground,
            truth.image,
            truth.label,
            truth.boxes,
            truth.area,
            truth.crowd,
            np.zeros(len(truth)),
        ),
        (
            results,
            found.image,
            found.label,
            found.boxes,
            found.boxes[:, 2] * found.boxes[:, 3],
            np.zeros(len(found), dtype=bool),
            found.score,
        ),
    )
    for coco, image, label, boxes, area, crowd, scores in sides:
        columns = zip(
            (image + 1).tolist(),
            label.tolist(),
            boxes.tolist(),
            area.tolist(),
            crowd.tolist(),
            scores.tolist(),
            strict=True,
        )
        coco.dataset = {
            "images": images,
            "categories": categories,
            "annotations": [
                {
                    "id": index,
                    "image_id": i,
                    "category_id": c,
                    "bbox": b,
                    "area": a,
                    "iscrowd": int(w),
                    "score": s,
                }
                for index, (i, c, b, a, w, s) in enumerate(columns, start=1)
            ],
        }
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
    return ground, results


def metrics(with_pycocotools: bool, resamples: int) -> None:
    """Time the metrics and what hangs on them."""
    truth, table = generated()
    print(
        f"{len(truth.image_ids)} images, {len(truth)} boxes, {len(table)} detections,"
        f" {len(truth.classes)} classes"
    )
    found, checked = timed(
        "ours: predictions checked (numbers, ids, classes)", lambda: detections_of(table, truth)
    )
    scores, measured = timed("ours: COCO metrics (hotcoco)", lambda: score(truth, found))
    matches, _ = timed("ours: matches for intervals, errors, curves", lambda: match(truth, found))
    ones = np.ones((1, len(truth.image_ids)), dtype=np.int64)
    own = [
        float(weighted_ap(matches, label, ones)[0]) for label in range(1, len(truth.classes) + 1)
    ]
    print(
        "largest difference of AP, ours by weights against hotcoco:"
        f" {max(abs(a - (scores.ap(n) or 0)) for a, n in zip(own, truth.classes, strict=True)):.1e}"
    )
    weights = draw_weights(len(truth.image_ids), resamples, 0)
    timed(f"ours: {resamples} resamples of one class", lambda: weighted_ap(matches, 1, weights))
    mistakes, _ = timed("ours: error kinds", lambda: find_mistakes(matches))
    timed("ours: costs of the error kinds (TIDE)", mistakes.costs)
    timed("ours: shares of the error kinds (64 evaluations)", mistakes.shares)
    if with_pycocotools:
        from pycocotools.cocoeval import COCOeval

        evaluation = COCOeval(*pycocotools_arrays(truth, table), "bbox")
        with contextlib.redirect_stdout(io.StringIO()):
            start = time.perf_counter()
            evaluation.evaluate()
            evaluation.accumulate()
            seconds = time.perf_counter() - start
        print(f"{'pycocotools: evaluate and accumulate':<70} {seconds:9.2f} s")
        difference = float(np.abs(evaluation.eval["precision"] - scores.precision).max())
        print(f"largest difference in the precision array: {difference:.1e}; mAP {scores.ap():.6f}")
        print(
            "pycocotools over ours (checks and array loading included):"
            f" {seconds / (measured + checked):.1f} times; over the metrics alone:"
            f" {seconds / measured:.1f} times"
        )


def overhead(count: int, batch_size: int, repeats: int) -> None:
    """Time `predict` against the bare model's forward on the same images, already decoded, turn by
    turn.
    """
    torch.manual_seed(0)
    model = build("ssdlite320_mobilenet_v3_large", 4).eval().to(memory_format=torch.channels_last)
    random = np.random.default_rng(0)
    images = [
        Image.fromarray(random.integers(0, 255, (320, 320, 3), dtype=np.uint8))
        for _ in range(count)
    ]
    tensors = [
        torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)
        for image in images
    ]
    pictures = [(index, lambda image=image: image) for index, image in enumerate(images)]
    bare, ours = [], []
    for turn in range(repeats + 1):
        start = time.perf_counter()
        with torch.inference_mode():
            for first in range(0, count, batch_size):
                model(tensors[first : first + batch_size])
        middle = time.perf_counter()
        predict(
            model,
            pictures,
            batch_size=batch_size,
            device="cpu",
            columns=("__background__", "a", "b", "c"),
        )
        if turn:
            bare.append(middle - start)
            ours.append(time.perf_counter() - middle)
    ratios = sorted(o / b for o, b in zip(ours, bare, strict=True))
    print(
        f"bare forward {count / np.median(bare):.1f} images/s, predict"
        f" {count / np.median(ours):.1f} images/s ({torch.get_num_threads()} threads, batch"
        f" {batch_size})"
    )
    print(
        f"predict over bare forward: median {np.median(ratios):.3f}, from {ratios[0]:.3f} to"
        f" {ratios[-1]:.3f} over {repeats} turns"
    )


def report(count: int) -> None:
    """Time the report stage on a made-up project with so many test images (drawing and evaluating
    them isn't timed).
    """
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from report.project import build_project
    from topwork.project.report import REPORT
    from topwork.stages import report as stage

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        params = build_project(root, test=count, report={"pictures": 12})
        timed(f"report of {count:,} test images, 12 pictures", lambda: stage.run(params, root))
        print(f"page: {(root / REPORT).stat().st_size:,} bytes")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="?", choices=("all", "metrics", "predict", "report"), default="all"
    )
    parser.add_argument("--no-pycocotools", action="store_true", help="leave out the slow side")
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--test-images", type=int, default=1000)
    args = parser.parse_args()
    if args.what in ("all", "metrics"):
        metrics(not args.no_pycocotools, args.resamples)
    if args.what in ("all", "predict"):
        overhead(args.images, args.batch_size, args.repeats)
    if args.what in ("all", "report"):
        report(args.test_images)


if __name__ == "__main__":
    main()
