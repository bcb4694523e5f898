"""Draw the street world's pretraining, validation and test images.

Reads params.yaml; writes data/. Bit-exact for one Pillow version. The demo's own street images come from other seeds.
"""

from pathlib import Path

from ruamel.yaml import YAML

from topwork.demo.worlds import STREET, draw_split

SPLITS = {"pretrain": "train", "pretrain_val": "val", "pretrain_test": "test"}
"""Split of the world -> the key of params.yaml that says how many images."""


def main() -> None:
    """Draw every split."""
    params = YAML(typ="safe").load(Path("params.yaml"))
    for split, key in SPLITS.items():
        draw_split(STREET, Path("data"), split, params["draw"][key], params["seed"], params["draw"]["processes"])


if __name__ == "__main__":
    main()
