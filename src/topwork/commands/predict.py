"""`topwork predict`: run a detector on images."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL import Image

    from topwork.dataset.images import ImageStore


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
    from topwork.dataset.images import IMAGE_SUFFIXES, ImageStore
    from topwork.detectors.builders import load
    from topwork.errors import EvaluationError
    from topwork.files import write_json
    from topwork.inference.drawing import draw_boxes, write_picture
    from topwork.inference.prediction import predict

    if not 0 <= args.score <= 1:
        raise EvaluationError(f"predict: --score {args.score:g}, expected 0 to 1.")
    files = _files(args.images, IMAGE_SUFFIXES)
    if not files:
        raise EvaluationError(
            f"predict: no image in {', '.join(map(str, args.images))}; images end with"
            f" {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    stores = {folder: ImageStore(folder) for folder in {file.parent for file in files}}
    pictures = [
        (index, _opener(stores[file.parent], file.name)) for index, file in enumerate(files)
    ]
    model = load(read(args.weights, args.builder), builder=args.builder)
    table = predict(
        model,
        pictures,
        batch_size=args.batch_size,
        device=args.device,
        precision=args.precision,
    )
    table = table[table["score"] >= args.score]
    entries = []
    for index, (file, name) in enumerate(zip(files, _names(files), strict=True)):
        rows = table[table["image_id"] == index]
        entries.append(
            {
                "file_name": file.as_posix() if not file.is_absolute() else file.name,
                "picture": name,
                "objects": [
                    {
                        "class": row["name"],
                        "score": round(row["score"], 6),
                        "bbox": [round(row[key], 2) for key in ("x", "y", "width", "height")],
                    }
                    for row in rows.to_dict("records")
                ],
            }
        )
        write_picture(args.out / name, draw_boxes(pictures[index][1](), rows))
    write_json(args.out / "predictions.json", {"least_score": args.score, "images": entries})
    found = table["name"].value_counts().sort_index()
    counts = ", ".join(f"{count} {name}" for name, count in found.items()) or "nothing"
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


def _opener(store: "ImageStore", name: str) -> "Callable[[], Image.Image]":
    return lambda: store.open(name)
