"""Keeping a class of a two-stage detector: exactly, mostly, or not at all, on the drawn worlds.

    python benchmarks/two_stage.py FOLDER [--images 2000] [--epochs 3] [--seed 0]
        [--modes unprotected weights branch] [--train-epochs 12] [--threads 1]

Real two-stage weights of a few megabytes are rare, so that this makes some: torchvision's
fasterrcnn_mobilenet_v3_large_320_fpn, trained on the drawn street from the trunk of the SSDLite
that topwork ships for its demo (the blocks that both have). Then the demo's project is made in
FOLDER (`topwork init --demo`) and run with these weights in each mode, as a user would: params.yaml
is written, `dvc repro evaluate` runs, metrics are read. Each row is printed as JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from ruamel.yaml import YAML
from torch import nn
from torchvision.models import detection

from topwork.demo.worlds import STREET, draw_split
from topwork.detectors.families import family_of
from topwork.download.shipped import demo_weights
from topwork.files import read_json
from topwork.training.roi_pool import replace_pool_gradient
from topwork.weights.format import Weights, write_weights

BUILDER = "fasterrcnn_mobilenet_v3_large_320_fpn"
ARGUMENTS = {"box_batch_size_per_image": 64}
"""Proposals an image that the box head learns from; torchvision's 512 take ten times as long."""
LR, WEIGHT_DECAY, WARMUP, BATCH, CLIP_NORM = 0.0015, 0.01, 100, 8, 5.0
STREET_SEED = 20261122
UNPROTECTED = {"distill": 0.0, "replay": 0.0, "interpolation": "off"}
MODES: dict[str, dict[str, Any]] = {
    "unprotected": UNPROTECTED,
    "weights": {"distill": 0.0, "replay": 0.5, "interpolation": "retention"},
    "branch": {**UNPROTECTED, "protect": "branch"},
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000, help="drawn to pretrain on")
    parser.add_argument("--epochs", type=int, default=3, help="of the pretraining")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--train-epochs", type=int, default=12, help="of each fine-tuning")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    project = arguments.folder / "project"
    if not project.exists():
        run(["topwork", "init", "--demo", str(project.resolve())], Path())
    weights = project / "weights" / "street_frcnn.safetensors"
    if not weights.exists():
        pretrain(arguments, weights)
    for mode in arguments.modes:
        print(json.dumps({"mode": mode, **measured(arguments, project, weights, mode)}), flush=True)
    return 0


def pretrain(arguments: argparse.Namespace, file: Path) -> None:
    """Train the street's detector, and write it with its class names."""
    drawn = arguments.folder / "street"
    if not drawn.exists():
        draw_split(STREET, drawn, "pretrain", arguments.images, STREET_SEED, 1)
    coco = json.loads((drawn / "pretrain.json").read_text(encoding="utf-8"))
    boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in coco["images"]}
    for item in coco["annotations"]:
        x, y, w, h = item["bbox"]
        boxes[item["image_id"]].append([x, y, x + w, y + h, item["category_id"]])
    torch.manual_seed(STREET_SEED)
    columns = ("__background__", *STREET.classes)
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=len(columns), **ARGUMENTS
    )
    replace_pool_gradient(model, family_of(model))
    print(f"{take_trunk(model)} tensors of the shipped SSDLite's trunk", flush=True)
    for part in model.modules():  # one running mean of many small batches
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.03
    model.to(memory_format=torch.channels_last).train()
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=LR, weight_decay=WEIGHT_DECAY)
    images = [
        (image["id"], drawn / "pretrain/images" / image["file_name"]) for image in coco["images"]
    ]
    steps = arguments.epochs * (len(images) // BATCH)
    warmup = min(WARMUP / steps, 0.3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps, pct_start=warmup)
    began, total = time.perf_counter(), 0.0
    for step in range(steps):
        place = step % (len(images) // BATCH)
        if place == 0:
            order = np.random.default_rng(STREET_SEED + step).permutation(len(images))
        batch = [images[index] for index in order[place * BATCH : (place + 1) * BATCH]]
        losses = model(*loaded(batch, boxes))
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learning, CLIP_NORM)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if (step + 1) % 25 == 0:
            rate = (step + 1) * BATCH / (time.perf_counter() - began)
            print(f"step {step + 1}/{steps} loss {total / 25:.3f} {rate:.1f} images/s", flush=True)
            total = 0.0
    facts = {"recipe": f"{arguments.images} drawn street pictures, {arguments.epochs} epochs"}
    tensors = model.eval().state_dict()
    write_weights(file, Weights(tensors, columns, BUILDER, ARGUMENTS, provenance=facts))


def take_trunk(model: nn.Module) -> int:
    """Copy what the shipped SSDLite's trunk has under the same place and shape; how much it was."""
    own = model.state_dict()
    found = {}
    for name, tensor in demo_weights().state_dict.items():
        place = name.replace("backbone.features.0.", "backbone.body.")
        if place in own and own[place].shape == tensor.shape:
            found[place] = tensor.float() if tensor.is_floating_point() else tensor
    model.load_state_dict({**own, **found})
    return len(found)


def loaded(
    batch: list[tuple[int, Path]], boxes: dict[int, list[list[float]]]
) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    pictures, targets = [], []
    for image_id, path in batch:
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        rows = torch.tensor(boxes[image_id], dtype=torch.float32).reshape(-1, 5)
        picture, corners = pixels.float().div_(255), rows[:, :4]
        if torch.rand(()) < 0.5:
            picture, width = picture.flip(-1), picture.shape[-1]
            corners = torch.stack(
                [width - corners[:, 2], corners[:, 1], width - corners[:, 0], corners[:, 3]], dim=1
            )
        pictures.append(picture)
        targets.append({"boxes": corners, "labels": rows[:, 4].long()})
    return pictures, targets


def measured(
    arguments: argparse.Namespace, project: Path, weights: Path, mode: str
) -> dict[str, Any]:
    """Figures of one mode: the demo's params, with other weights and another protection."""
    yaml = YAML()
    params = yaml.load((project / "params.yaml").read_text(encoding="utf-8"))
    params["fetch"] = {"source": f"weights/{weights.name}"}
    params["finetune"] |= {
        "protect": "weights",
        "epochs": arguments.train_epochs,
        "batch_size": BATCH,
        "lr": 0.001,
        "validate_every": 0,
        "seed": arguments.seed,
        "threads": arguments.threads,
        **MODES[mode],
    }
    exact = {"exact": True, "on": "source"}
    params["retention"]["person"] = exact if mode == "branch" else {"min": 0.5, "on": "source"}
    with (project / "params.yaml").open("w", encoding="utf-8") as stream:
        yaml.dump(params, stream)
    began = time.perf_counter()
    run(["dvc", "repro", "--quiet", "evaluate"], project)
    record = read_json(project / "out/finetune/record.json")
    return {
        "seed": arguments.seed,
        "seconds": round(time.perf_counter() - began),
        "interpolation": record["interpolation"],
        "metrics": read_json(project / "out/metrics.json"),
        "contract": read_json(project / "out/evaluate/verdict.json")["contracts"][0]["sentence"],
    }


def run(command: list[str], folder: Path) -> None:
    """Run a command of the environment that this runs in, in a folder."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    subprocess.run(command, cwd=folder, env={**os.environ, "PATH": tools}, check=True)


if __name__ == "__main__":
    sys.exit(main())
