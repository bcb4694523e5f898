"""Measure the trained detector on held-out street pictures and put it where the package ships it.

Reads params.yaml, data/, run/street.safetensors and run/curve.json; writes the safetensors file with its metadata, and its
record, into src/topwork/demo/. The figures are those of the half-precision file itself, on pictures never trained on.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torchvision
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from street_data import COLUMNS, build_detector, coco_figures, load_split, predict
from torchvision.models.detection.ssd import SSD

from topwork.download.shipped import RECORD, WEIGHTS
from topwork.files import atomic_path, canonical_json, sha256_file

BUILDER = "ssdlite320_mobilenet_v3_large"
LICENCE = "Apache-2.0"
MAX_BYTES = 8_000_000


def load_model(path: Path, params: dict[str, Any]) -> tuple[SSD, dict[str, torch.Tensor]]:
    """The detector in float32 with the half-precision file's weights, and those weights as stored."""
    stored = load_file(path)
    model = build_detector(**params["evaluate"])
    model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in stored.items()}, strict=True)
    return model, stored


def ship(stored: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
    """Write weights and record, each to a temporary file first, then renamed."""
    provenance = {
        "source": record["source"],
        "recipe": record["recipe"],
        "licence": LICENCE,
        "figures": record["figures"],
    }
    metadata = {
        "topwork": "1",
        "builder": BUILDER,
        "columns": json.dumps(COLUMNS),
        "provenance": json.dumps(provenance, sort_keys=True),
    }
    with atomic_path(WEIGHTS) as temporary:
        save_file(stored, temporary, metadata=metadata)
        temporary.chmod(0o644)  # safetensors leaves its files to their owner alone
        size = temporary.stat().st_size
        if size > MAX_BYTES:
            raise SystemExit(f"{WEIGHTS.name} has {size} bytes, may have {MAX_BYTES}")
    with atomic_path(RECORD) as temporary:
        temporary.write_text(canonical_json({**record, "sha256": sha256_file(WEIGHTS), "bytes": size}), encoding="utf-8")


def main() -> None:
    """Evaluate, then ship."""
    params: dict[str, Any] = YAML(typ="safe").load(Path("params.yaml"))
    torch.set_num_threads(params["train"]["threads"])
    torch.manual_seed(params["seed"])
    model, stored = load_model(Path("run/street.safetensors"), params)
    test = load_split(Path("data"), "pretrain_test")
    curve = json.loads(Path("run/curve.json").read_text(encoding="utf-8"))
    figures = {
        **coco_figures(test, predict(model, test)),
        "images": len(test.image_ids),
        "split": "street pretrain_test, held out",
        "epochs_trained": len(curve),
        "train_seconds": round(sum(epoch["seconds"] for epoch in curve), 1),
    }
    ship(stored, {
        "builder": BUILDER,
        "classes": COLUMNS,
        "dtype": "float16",
        "figures": figures,
        "file": WEIGHTS.name,
        "licence": LICENCE,
        "recipe": dict(params),
        "source": "trained from nothing on topwork's own drawn street world (pretrain/)",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    })  # fmt: skip
    print(json.dumps(figures, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
