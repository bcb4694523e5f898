"""What surgery keeps and what it costs, on real COCO weights: `python benchmarks/surgery.py ../shared/real`.

Prints two tables and writes them as JSON where `--out` says:

1. Person AP on coco128 of the pretrained detector, after `remove`, after `absorb`, and after a graft by position (the wrong way: the new
   head's columns take the rows that stood at the same index, as peers do that match rows by number).
2. CPU time of one image (one thread, interleaved, least of many): the whole detector and the score head alone, pretrained, `remove` and
   `absorb`, and a training step's forward and backward.
3. Memory: how far a graft's peak goes beyond what was resident before, against the file's size.
"""

import argparse
import contextlib
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.transforms.functional import pil_to_tensor

from topwork import graft, load, read_weights, write_weights
from topwork.detectors.axes import anatomy
from topwork.detectors.builders import UninitializedParameters, build, builder_name
from topwork.weights.categories import category_set
from topwork.weights.weights import Weights

PLAN = {"hard_hat": "new", "person": "keep", "forklift": {"like": ["truck", "car"]}}
LABEL = 2  # person's, in the grafted heads
POSITION_ROWS = {"hard_hat": 1, "person": 2, "forklift": 3}  # COCO-91: person, bicycle, car


def pretrained(real: Path) -> Weights:
    """The real weights, with the names of their columns."""
    folder = real / "ssdlite_mobilenet_v2_coco"
    state_dict = torch.load(folder / "ssdlite_mobilenet_v2_coco.pth", weights_only=True, mmap=True)
    return Weights(state_dict, category_set("coco-91"), f"{folder / 'builder.py'}:build")


def by_position(weights: Weights) -> Weights:
    """The wrong way: column k of the new head is column k of the old one."""
    names = [weights.columns[index] for index in POSITION_ROWS.values()]
    done = graft(weights, names)
    return Weights(done.state_dict, ("__background__", *PLAN), weights.builder)


def person_ap(model: torch.nn.Module, label: int, truth: COCO, images: Path) -> dict[str, float]:
    """COCO AP of person, by pycocotools."""
    found = []
    for image_id, record in truth.imgs.items():
        picture = pil_to_tensor(Image.open(images / record["file_name"]).convert("RGB")).float() / 255
        with torch.inference_mode():
            detections = model([picture])[0]
        for box, score, got in zip(detections["boxes"].tolist(), detections["scores"].tolist(), detections["labels"].tolist(), strict=True):
            if got == label:
                x1, y1, x2, y2 = box
                found.append({"image_id": image_id, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.params.catIds = [1]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"ap": float(evaluation.stats[0]), "ap_50": float(evaluation.stats[1]), "detections": len(found)}


def cpu_milliseconds(models: dict[str, torch.nn.Module], rounds: int) -> dict[str, dict[str, float]]:
    """Least and median CPU time, interleaved so that all suffer the same neighbours."""
    image = torch.rand(3, 300, 300)
    target = {"boxes": torch.tensor([[40.0, 40.0, 200.0, 240.0]]), "labels": torch.tensor([1])}
    times: dict[str, dict[str, list[float]]] = {name: {"detector": [], "score head": [], "training step": []} for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            with torch.inference_mode():
                features = list(model.backbone(image[None]).values())
                started = time.process_time()
                model.head.classification_head(features)
                times[name]["score head"].append(time.process_time() - started)
                started = time.process_time()
                model([image])
                times[name]["detector"].append(time.process_time() - started)
            model.train()
            started = time.process_time()
            sum(model([image, image], [target, target]).values()).backward()
            times[name]["training step"].append(time.process_time() - started)
            model.zero_grad()
            model.eval()
    return {
        name: {
            f"{what}, {how}": round(1000 * figure(values), 2)
            for what, values in by_what.items()
            for how, figure in (("least", min), ("median", statistics.median))
        }
        for name, by_what in times.items()
    }


def graft_memory(builder: str = "fasterrcnn_resnet50_fpn") -> dict[str, float]:
    """Peak resident memory of a graft beyond the imports, file pages included, in units of the file; in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source.safetensors")
        with UninitializedParameters():
            state_dict = {name: torch.zeros_like(tensor) for name, tensor in build(builder, 91).state_dict().items()}
        write_weights(source, Weights(state_dict, category_set("coco-91"), builder))
        command = [sys.executable, __file__, folder, "--memory-of", str(source)]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        size = source.stat().st_size
    return {
        "builder": builder,
        "file_mb": round(size / 1e6, 1),
        "peak_beyond_imports_mb": round(peak / 1e6, 1),
        "ratio": round(peak / size, 3),
    }


def _memory_of(source: Path) -> int:
    """Graft a file, write the result, and say by how many bytes the peak grew."""
    anatomy("ssdlite320_mobilenet_v3_large", 3)  # imports what torch imports on first use
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_weights(source.with_name("result.safetensors"), graft(read_weights(source), PLAN, dropped="absorb").weights)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path, help="folder with ssdlite_mobilenet_v2_coco and coco128")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--skip-ap", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        print(_memory_of(arguments.memory_of))
        return
    weights = pretrained(arguments.real)
    heads = {
        "pretrained": (weights, 1),
        "remove": (graft(weights, PLAN).weights, LABEL),
        "absorb": (graft(weights, PLAN, dropped="absorb").weights, LABEL),
    }
    figures: dict[str, object] = {"builder": builder_name(weights.builder).rpartition("/")[2]}
    models = {name: load(one) for name, (one, _) in heads.items()}
    if not arguments.skip_ap:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(arguments.real / "coco128" / "instances.json"))
        images = arguments.real / "coco128" / "images"
        table = {name: person_ap(models[name], label, truth, images) for name, (_, label) in heads.items()}
        table["by position (wrong)"] = person_ap(load(by_position(weights)), LABEL, truth, images)
        figures["person on coco128"] = table
        print(f"{'person on coco128':<22}{'AP':>8}{'AP50':>8}{'retention':>11}")
        for name, row in table.items():
            print(f"{name:<22}{row['ap']:>8.4f}{row['ap_50']:>8.4f}{row['ap'] / table['pretrained']['ap']:>11.3f}")
    figures["cpu_ms"] = times = cpu_milliseconds(models, arguments.rounds)
    print(f"\n{'CPU ms, one thread':<26}" + "".join(f"{name:>12}" for name in times))
    for what in times["pretrained"]:
        print(f"{what:<26}" + "".join(f"{by_what[what]:>12.2f}" for by_what in times.values()))
    figures["memory"] = graft_memory()
    print(f"\nmemory of a graft: {figures['memory']}")
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
