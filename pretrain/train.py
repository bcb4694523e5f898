"""Train SSDLite320 from nothing on the drawn street.

Reads params.yaml and data/; writes run/street.safetensors (half precision) and run/curve.json. Bit-exact for one torch build,
one kind of machine and one number of threads, but for the seconds in curve.json. A run that was cut off goes on from
run/checkpoint.pt at the last whole epoch.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from safetensors.torch import save_file
from street_data import SIDE, Split, build_detector, coco_figures, load_split, predict, set_side
from torch import Tensor
from torchvision.models.detection.ssd import SSD

RUN = Path("run")


def augment(picture: Tensor, boxes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirror half of the pictures; vary brightness, contrast and each channel's gain.

    Args:
        picture: uint8[3, H, W].
        boxes: float[N, 4], xyxy.
        generator: what the choices are drawn from.
    """
    draws = torch.rand(6, generator=generator)
    values = picture.float().div_(255)
    gain = (0.8 + 0.4 * draws[1]) * (0.92 + 0.16 * draws[3:6])  # [3]
    values.sub_(0.5).mul_(0.75 + 0.5 * draws[2]).add_(0.5).mul_(gain[:, None, None]).clamp_(0, 1)
    if draws[0] < 0.5:
        values = values.flip(-1)
        boxes = torch.stack([SIDE - boxes[:, 2], boxes[:, 1], SIDE - boxes[:, 0], boxes[:, 3]], dim=1)
    return values, boxes


def learning_rate(step: int, steps: int, train: dict[str, Any]) -> float:
    """Linear warm-up, then a half cosine down to `min_lr`."""
    if step < train["warmup_steps"]:
        return float(train["lr"] * (step + 1) / train["warmup_steps"])
    share = (step - train["warmup_steps"]) / max(1, steps - train["warmup_steps"])
    return float(train["min_lr"] + (train["lr"] - train["min_lr"]) * 0.5 * (1 + math.cos(math.pi * share)))


def train_epoch(model: SSD, optimizer: torch.optim.Optimizer, split: Split, epoch: int, steps: int, params: dict[str, Any]) -> float:
    """One pass over the split; returns the mean loss."""
    train, batch_size = params["train"], params["train"]["batch_size"]
    generator = torch.Generator().manual_seed(params["seed"] + epoch)
    order = torch.randperm(len(split.image_ids), generator=generator)
    batches = [batch for batch in order.split(batch_size) if len(batch) == batch_size]
    model.train()
    total, started = 0.0, time.perf_counter()
    for number, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(epoch * len(batches) + number, steps, train)
        pictures, targets = [], []
        for row in batch.tolist():
            picture, boxes = augment(split.pictures[row], split.boxes[row], generator)
            pictures.append(picture)
            targets.append({"boxes": boxes, "labels": split.labels[row]})
        loss_dict: dict[str, Tensor] = model(pictures, targets)
        loss = torch.stack(list(loss_dict.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train["clip_norm"])
        optimizer.step()
        total += loss.item()
        if (number + 1) % 50 == 0:
            speed = (number + 1) * batch_size / (time.perf_counter() - started)
            print(
                f"epoch {epoch} step {number + 1}/{len(batches)} loss {total / (number + 1):.3f} {speed:.1f} img/s",
                flush=True,
            )
    return total / len(batches)


def save_atomically(path: Path, write: Any) -> None:
    """Let `write(temporary path)` write, then rename into place."""
    temporary = path.with_suffix(".tmp")
    write(temporary)
    temporary.replace(path)


def half_precision(model: SSD) -> dict[str, Tensor]:
    """The state_dict with floating tensors as float16, counters as they are."""
    return {name: (t.half() if t.is_floating_point() else t).contiguous() for name, t in model.state_dict().items()}


def main() -> None:
    """Train, or go on with a run that was cut off."""
    params: dict[str, Any] = YAML(typ="safe").load(Path("params.yaml"))
    train = params["train"]
    torch.set_num_threads(train["threads"])
    torch.use_deterministic_algorithms(True)
    # filling fresh memory guards reads of uninitialised values; none here, and it costs time
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.manual_seed(params["seed"])
    model = build_detector(**params["evaluate"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=train["lr"], weight_decay=train["weight_decay"], fused=True)
    train_split, val_split = load_split(Path("data"), "pretrain"), load_split(Path("data"), "pretrain_val")
    steps = len(train["sides"]) * (len(train_split.image_ids) // train["batch_size"])
    RUN.mkdir(exist_ok=True)
    checkpoint, curve, first = RUN / "checkpoint.pt", [], 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["params"] == json.dumps(params, sort_keys=True):
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            curve, first = state["curve"], len(state["curve"])
    for epoch in range(first, len(train["sides"])):
        started = time.perf_counter()
        set_side(model, train["sides"][epoch])
        loss = train_epoch(model, optimizer, train_split, epoch, steps, params)
        figures = coco_figures(val_split, predict(model, val_split))
        seconds = round(time.perf_counter() - started, 1)
        curve.append({"epoch": epoch, "side": train["sides"][epoch], "loss": loss, "val": figures, "seconds": seconds})
        print(json.dumps(curve[-1]), flush=True)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "curve": curve}
        state["params"] = json.dumps(params, sort_keys=True)
        save_atomically(checkpoint, lambda path, state=state: torch.save(state, path))
        save_atomically(RUN / "street.safetensors", lambda path: save_file(half_precision(model), path))
        (RUN / "curve.json").write_text(json.dumps(curve, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
