"""`topwork export WEIGHTS --out DIR`: ONNX, checked against PyTorch, and a model card."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from topwork.report.run import Run

MOST_IMAGES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "weights", type=Path, metavar="WEIGHTS", help="weights that topwork wrote (.safetensors)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for model.onnx, model.safetensors and README.md (the card)",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        type=Path,
        default=[],
        metavar="IMAGE",
        help=(
            f"images to check on, or folders of them; left out: the first {MOST_IMAGES} of the"
            " project's test set"
        ),
    )
    parser.add_argument("--name", help="the model's name on its card (default: the out folder's)")
    parser.add_argument(
        "--builder",
        help="in place of the builder that the weights name, and to say that you trust it",
    )
    parser.epilog = "Example: topwork export out/finetune/weights.safetensors --out export"


def run(args: argparse.Namespace) -> int:
    """Export, check, describe."""
    from topwork.commands.reading import read
    from topwork.detectors.builders import load
    from topwork.export.onnx import TOLERANCE, export_onnx
    from topwork.files import atomic_path, write_text
    from topwork.params.document import load_params
    from topwork.params.section import PARAMS_FILE
    from topwork.report.card import model_card
    from topwork.report.run import Run, WorkingFiles

    weights = read(args.weights, args.builder)
    project = Run(WorkingFiles(Path()), load_params()) if PARAMS_FILE.is_file() else None
    images, where = _images(args.images, project)
    model = load(weights, builder=args.builder)
    parity = export_onnx(
        model, args.out / "model.onnx", images, details={"builder": args.builder or weights.builder}
    )
    content = args.weights.read_bytes()
    with atomic_path(args.out / "model.safetensors") as temporary:
        temporary.write_bytes(content)
    name = args.name or args.out.resolve().name
    write_text(
        args.out / "README.md",
        model_card(
            name,
            content,
            weights.columns,
            args.builder or weights.builder,
            project,
            parity.__dict__,
        ).lstrip(),
    )
    if not parity.detections:
        print(
            f"{args.out / 'model.onnx'}: written, but nothing was compared with PyTorch: neither"
            f" has a detection on the {parity.images} images ({where}). Give some that show its"
            f" classes: --images PICTURE.jpg. Card: {args.out / 'README.md'}"
        )
        return 0
    alone = f", and {parity.at_the_edge} that one of the two has alone where rounding decides"
    print(
        f"{args.out / 'model.onnx'}: agrees with PyTorch on {parity.images} images ({where}),"
        f" {parity.detections} detections: boxes within {parity.boxes_px:.2g} pixels"
        f" ({parity.boxes:.2g} of the longer side), scores within {parity.scores:.2g}; allowed"
        f" {TOLERANCE:g}{alone if parity.at_the_edge else ''}."
        f" Card: {args.out / 'README.md'}"
    )
    return 0


def _images(given: list[Path], project: "Run | None") -> "tuple[list[Tensor], str]":
    """Images to check on, and where they come from in words."""
    from topwork.dataset.images import IMAGE_SUFFIXES
    from topwork.errors import ExportError
    from topwork.project.validate import FOLDER

    if given:
        files = [
            path
            for entry in given
            for path in (sorted(entry.iterdir()) if entry.is_dir() else [entry])
        ]
        files = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
        if gone := [str(path) for path in given if not path.exists()]:
            raise ExportError(
                f"export: {', '.join(gone)}: no such file or folder. Give images after --images."
            )
        if not files:
            raise ExportError(
                f"export: no image in {', '.join(map(str, given))}; images end with"
                f" {', '.join(sorted(IMAGE_SUFFIXES))}."
            )
        return [_tensor(path.read_bytes(), str(path)) for path in files], "as given"
    if project is not None and "test" in project.tables.splits:
        rows = project.tables.split("test").images.head(MOST_IMAGES)
        files_of = zip(rows["image_root"], rows["file_name"], strict=True)
        return [
            _tensor(project.files.image(str(root), str(name)), str(name)) for root, name in files_of
        ], "of the test set"
    raise ExportError(
        "export: no image to check ONNX against PyTorch on: there's no test set in"
        f" {FOLDER} here. Give some: --images PICTURE.jpg"
    )


def _tensor(content: bytes, name: str) -> "Tensor":
    import numpy as np
    import torch

    from topwork.dataset.images import rgb_upright
    from topwork.errors import ExportError

    try:
        pixels: Any = np.array(rgb_upright(content))
    except (OSError, ValueError) as error:
        raise ExportError(f"{name}: can't be read as an image ({error}).") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32).div(255).contiguous()
