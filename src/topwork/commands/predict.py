"""`topwork predict`: run a detector on images."""

import argparse
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL import Image

MOST_PIXELS = 12_000_000
"""A larger picture is shrunk by a whole factor before detection; detectors shrink it further."""
BATCH_PIXELS = 24_000_000
"""Pixels of a batch: of large pictures fewer than --batch-size go at once, so that memory is
bounded (12 bytes a pixel and copy).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        required=True,
        metavar="W",
        help="weights that topwork wrote (.safetensors)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for the pictures and predictions.json",
    )
    parser.add_argument(
        "--score", type=float, default=0.5, help="least score drawn and written (default: 0.5)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, help="images a forward pass (default: 8)"
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "tf32", "bfloat16"],
        default="float32",
        help="of the forward pass; tf32 and bfloat16 are faster on a GPU (default: float32)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    parser.add_argument(
        "--benchmark", action="store_true", help="also time forward passes at several batch sizes"
    )
    parser.add_argument(
        "--builder",
        help="in place of the builder that the weights name, and to say that you trust it",
    )
    parser.epilog = (
        "Example: topwork predict yard.jpg --weights out/finetune/weights.safetensors --out"
        " predictions"
    )


def run(args: argparse.Namespace) -> int:
    """Predict, draw and write."""
    from topwork.commands.reading import read
    from topwork.dataset.images import IMAGE_SUFFIXES, header_size
    from topwork.detectors.builders import load
    from topwork.errors import EvaluationError
    from topwork.files import write_json
    from topwork.inference.drawing import draw_boxes, write_picture
    from topwork.inference.prediction import detect

    if not 0 <= args.score <= 1:
        raise EvaluationError(f"predict: --score {args.score:g}, expected 0 to 1.")
    files = _files(args.images, IMAGE_SUFFIXES)
    if not files:
        raise EvaluationError(
            f"predict: no image in {', '.join(map(str, args.images))}; images end with"
            f" {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    sizes = [header_size(file) for file in files]
    factors = [_factor(width * height) for width, height in sizes]
    pictures = [
        (index, _opener(file, factor))
        for index, (file, factor) in enumerate(zip(files, factors, strict=True))
    ]
    largest = max(
        width * height // factor**2 for (width, height), factor in zip(sizes, factors, strict=True)
    )
    batch_size = min(args.batch_size, max(1, BATCH_PIXELS // max(largest, 1)))
    model = load(read(args.weights, args.builder), builder=args.builder)
    found = detect(
        model,
        pictures,
        batch_size=batch_size,
        device=args.device,
        precision=args.precision,
        masks=False,
    )
    objects: list[list[dict[str, Any]]] = [[] for _ in files]
    for index, label, score, (x1, y1, x2, y2) in zip(
        found.image_ids, found.labels, found.scores, found.boxes_xyxy.tolist(), strict=True
    ):
        if score >= args.score:
            box = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
            objects[index].append({"name": found.names[label], "score": float(score), **box})
    entries = []
    for index, (file, name) in enumerate(zip(files, _names(files), strict=True)):
        entries.append(
            {
                "file_name": file.as_posix() if not file.is_absolute() else file.name,
                "picture": name,
                "objects": [
                    {
                        "class": row["name"],
                        "score": round(row["score"], 6),
                        "bbox": [
                            round(row[key] * factors[index], 2)
                            for key in ("x", "y", "width", "height")
                        ],
                    }
                    for row in objects[index]
                ],
            }
        )
        write_picture(args.out / name, draw_boxes(pictures[index][1](), objects[index]))
    write_json(args.out / "predictions.json", {"least_score": args.score, "images": entries})
    seen = Counter(row["name"] for rows in objects for row in rows)
    counts = ", ".join(f"{count} {name}" for name, count in sorted(seen.items())) or "nothing"
    print(
        f"{len(files)} image{'s' if len(files) != 1 else ''}: {counts} (score {args.score:g} or"
        f" more). Pictures and predictions.json are in {args.out}."
    )
    if args.benchmark:
        from topwork.inference.latency import measure, print_latency

        print_latency(
            measure(model, [open_image() for _, open_image in pictures], device=args.device)
        )
    return 0


def _files(given: "Sequence[Path]", suffixes: "frozenset[str]") -> list[Path]:
    """The files given, and those in the folders given, by name."""
    found: list[Path] = []
    for path in given:
        found += (
            sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes)
            if path.is_dir()
            else [path]
        )
    return found


def _names(files: "Sequence[Path]") -> list[str]:
    """Names of the pictures: the image's own as PNG; the same name from another folder gets a
    number.
    """
    names: list[str] = []
    for file in files:
        name, number = f"{file.stem}.png", 2
        while name in names:
            name, number = f"{file.stem}-{number}.png", number + 1
        names.append(name)
    return names


def _factor(pixels: int) -> int:
    """By how much a picture of so many pixels is shrunk, a whole number from 1."""
    return max(1, math.ceil(math.sqrt(pixels / MOST_PIXELS)))


def _opener(file: Path, factor: int) -> "Callable[[], Image.Image]":
    """Opens one picture, upright, shrunk by its factor."""
    from topwork.dataset.images import rgb_upright
    from topwork.errors import DataError

    def open_picture() -> "Image.Image":
        try:
            picture = rgb_upright(file.read_bytes())
        except Exception as error:  # Pillow's plugins raise almost anything on broken data
            raise DataError(
                f"{file}: can't be read as a picture ({error}). Leave it out, or save it again as"
                " JPEG or PNG."
            ) from error
        return picture if factor == 1 else picture.reduce(factor)

    return open_picture
