"""What surgery keeps and what it costs, on real COCO weights: `python benchmarks/surgery.py
../shared/real`.

Prints two tables and writes them as JSON where `--out` says:

1. Person AP on coco128 of the pretrained detector, after `remove` and after `absorb` (person alone,
   and with two new classes), and after a graft by position (the wrong way: the new head's columns
   take the rows that stood at the same index, as peers do that match rows by number).
2. CPU time on one thread of the whole detector and the score head alone on one image, and of a
   training step's forward and backward on two; pretrained, `remove` and `absorb` in turn, so that
   all suffer the same neighbours. Medians, and the median ratio to pretrained of the same round
   with its quartiles.
3. Memory: how far a graft's resident peak, mapped file included, goes beyond what was resident
   before, against the file's size.
"""

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.transforms.functional import pil_to_tensor

from topwork import graft, load, read_weights, write_weights
from topwork.classes import category_set
from topwork.detectors.axes import head_spec
from topwork.detectors.builders import UninitializedParameters, build, builder_name
from topwork.download.shipped import WEIGHTS as DEMO_WEIGHTS
from topwork.weights.format import Weights

PLAN = {"hard_hat": "new", "person": "keep", "forklift": {"like": ["truck", "car"]}}
LABEL = 2  # person's, in the grafted heads
LARGE = (
    "fasterrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "retinanet_resnet50_fpn",
    "ssd300_vgg16",
)
POSITION_ROWS = {"hard_hat": 1, "person": 2, "forklift": 3}  # COCO-91: person, bicycle, car


def pretrained(real: Path) -> Weights:
    """The real weights, with the names of their columns."""
    folder = real / "ssdlite_mobilenet_v2_coco"
    state_dict = torch.load(folder / "ssdlite_mobilenet_v2_coco.pth", weights_only=True, mmap=True)
    return Weights(state_dict, category_set("coco-91"), f"{folder / 'builder.py'}:build")


def by_position(weights: Weights) -> Weights:
    """The wrong way: column k of the new head is column k of the old one."""
    names = [weights.columns[index] for index in POSITION_ROWS.values()]
    done = graft(weights, names, dropped="remove")
    return Weights(done.state_dict, ("__background__", *PLAN), weights.builder)


def person_ap(model: torch.nn.Module, label: int, truth: COCO, images: Path) -> dict[str, float]:
    """COCO AP of person, by pycocotools."""
    found = []
    for image_id, record in truth.imgs.items():
        picture = (
            pil_to_tensor(Image.open(images / record["file_name"]).convert("RGB")).float() / 255
        )
        with torch.inference_mode():
            detections = model([picture])[0]
        for box, score, got in zip(
            detections["boxes"].tolist(),
            detections["scores"].tolist(),
            detections["labels"].tolist(),
            strict=True,
        ):
            if got == label:
                x1, y1, x2, y2 = box
                found.append(
                    {
                        "image_id": image_id,
                        "category_id": 1,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "score": score,
                    }
                )
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.params.catIds = [1]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {
        "ap": float(evaluation.stats[0]),
        "ap_50": float(evaluation.stats[1]),
        "detections": len(found),
    }


def cpu_times(
    models: dict[str, torch.nn.Module], rounds: int
) -> dict[str, dict[str, dict[str, float]]]:
    """What was timed -> head -> median milliseconds, and the ratio to the first head: median and
    quartiles over rounds.
    """
    image = torch.rand(3, 300, 300)
    target = {"boxes": torch.tensor([[40.0, 40.0, 200.0, 240.0]]), "labels": torch.tensor([1])}
    names = list(models)
    times: dict[str, dict[str, list[float]]] = {
        what: {name: [] for name in names}
        for what in ("detector, 1 image", "score head, 1 image", "training step, 2 images")
    }

    def timed(what: str, name: str, work: Callable[[], object]) -> None:
        started = time.process_time()
        work()
        times[what][name].append(1000 * (time.process_time() - started))

    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            model = models[name].eval()
            with torch.inference_mode():
                features = list(model.backbone(image[None]).values())
                timed("score head, 1 image", name, lambda: model.head.classification_head(features))  # noqa: B023 (called at once)
                timed("detector, 1 image", name, lambda: model([image]))  # noqa: B023
            model.train()
            timed(
                "training step, 2 images",
                name,
                lambda: sum(model([image, image], [target, target]).values()).backward(),  # noqa: B023
            )
            model.zero_grad()
    return {
        what: {name: _figures(values, by_name[names[0]]) for name, values in by_name.items()}
        for what, by_name in times.items()
    }


def _figures(values: list[float], reference: list[float]) -> dict[str, float]:
    ratios = [one / other for one, other in zip(values, reference, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"ms": statistics.median(values), "ratio": middle, "low": low, "high": high}


def graft_memory(builder: str, dropped: str) -> dict[str, float]:
    """Peak resident memory of a graft beyond the imports, file pages included, in units of the
    file; in a process of its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source.safetensors")
        with UninitializedParameters():
            state_dict = {
                name: torch.zeros_like(tensor)
                for name, tensor in build(builder, 91).state_dict().items()
            }
        write_weights(source, Weights(state_dict, category_set("coco-91"), builder))
        command = [
            sys.executable,
            __file__,
            folder,
            "--memory-of",
            str(source),
            "--dropped",
            dropped,
        ]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        size = source.stat().st_size
    return {
        "file_mb": round(size / 1e6, 1),
        "peak_mb": round(peak / 1e6, 1),
        "ratio": round(peak / size, 3),
    }


def _memory_of(source: Path, dropped: str) -> int:
    """Graft a file, write the result, and say by how many bytes the peak grew."""
    read_weights(DEMO_WEIGHTS)
    # with the line before: loads what is loaded on first use
    head_spec("ssdlite320_mobilenet_v3_large", 3)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts again
    before = _resident("VmRSS")
    write_weights(
        source.with_name("result.safetensors"),
        graft(read_weights(source), PLAN, dropped=dropped).weights,
    )
    return max(_resident("VmHWM") - before, 0)


def _resident(field: str) -> int:
    """Resident bytes of this process, now (VmRSS) or at most (VmHWM).

    Unlike getrusage's, the peak isn't the parent's at first.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(
        next(line for line in status.splitlines() if line.startswith(f"{field}:")).split()[1]
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("real", type=Path, help="folder with ssdlite_mobilenet_v2_coco and coco128")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--skip-ap", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dropped", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        print(_memory_of(arguments.memory_of, arguments.dropped))
        return
    weights = pretrained(arguments.real)
    heads = {
        "pretrained": (weights, 1),
        "remove": (graft(weights, PLAN, dropped="remove").weights, LABEL),
        "absorb": (graft(weights, PLAN, dropped="absorb").weights, LABEL),
    }
    figures: dict[str, object] = {"builder": builder_name(weights.builder).rpartition("/")[2]}
    models = {name: load(one) for name, (one, _) in heads.items()}
    if not arguments.skip_ap:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(arguments.real / "coco128" / "instances.json"))
        images = arguments.real / "coco128" / "images"
        table = {
            name: person_ap(models[name], label, truth, images)
            for name, (_, label) in heads.items()
        }
        for dropped in ("remove", "absorb"):
            table[f"{dropped}, person alone"] = person_ap(
                load(graft(weights, ["person"], dropped=dropped).weights), 1, truth, images
            )
        table["by position (wrong)"] = person_ap(load(by_position(weights)), LABEL, truth, images)
        figures["person on coco128"] = table
        print(f"{'person on coco128':<22}{'AP':>8}{'AP50':>8}{'retention':>11}")
        for name, row in table.items():
            kept = row["ap"] / table["pretrained"]["ap"]
            print(f"{name:<22}{row['ap']:>8.4f}{row['ap_50']:>8.4f}{kept:>11.3f}")
    if arguments.rounds:
        figures["cpu"] = times = cpu_times(models, arguments.rounds)
        print(f"\n{'CPU ms on one thread':<26}" + "".join(f"{name:>34}" for name in models))
        for what, by_name in times.items():
            cells = [
                f"{row['ms']:.1f}  x{row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
                for row in by_name.values()
            ]
            print(f"{what:<26}" + "".join(f"{cell:>34}" for cell in cells))
    if not arguments.skip_memory:
        figures["memory"] = memory = {
            f"{name}, {dropped}": graft_memory(name, dropped)
            for name in LARGE
            for dropped in ("remove", "absorb")
        }
        print(f"\n{'peak memory of a graft':<40}{'file MB':>9}{'peak MB':>9}{'ratio':>8}")
        for name, row in memory.items():
            print(f"{name:<40}{row['file_mb']:>9.1f}{row['peak_mb']:>9.1f}{row['ratio']:>8.3f}")
    if arguments.out:
        arguments.out.write_text(
            json.dumps(figures, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
