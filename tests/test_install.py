"""The base install and its extras: what pyproject.toml promises, tried with all other packages out
of reach; and (long) the wheel in environments of its own.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from topwork.demo.worlds import YARD, draw_split
from topwork.extras import EXTRAS, missing_extra

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BASE = {"torch", "torchvision", "safetensors", "numpy", "pillow", "pydantic"}


def plain(requirement: str) -> str:
    """A requirement's name, as distributions are compared."""
    return re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_the_base_is_lean() -> None:
    assert {plain(entry) for entry in PYPROJECT["dependencies"]} == BASE


@pytest.mark.parametrize("extra", [name for name in EXTRAS if name not in ("s3", "ssh")])
def test_an_extra_brings_what_its_message_promises(extra: str) -> None:
    """Names as they are imported against names as they are installed."""
    known = importlib.metadata.packages_distributions()
    promised = {
        plain(distribution)
        for package in EXTRAS[extra]
        for distribution in known.get(package, [package])
    }
    brought = {plain(entry) for entry in PYPROJECT["optional-dependencies"][extra]}
    # pinned for prefect's sake, and for model-signing's; ruamel is a namespace of several
    assert promised - {"ruamel.yaml.clib"} <= brought
    assert brought - {"topwork", "fastapi", "sqlalchemy", "pyopenssl"} <= promised


def test_a_package_of_no_extra_is_no_extras_fault() -> None:
    assert missing_extra(ModuleNotFoundError("no", name="helmet_detector")) is None
    found = missing_extra(ModuleNotFoundError("no", name="dvc.repo"))
    assert found is not None
    assert found.endswith("pip install 'topwork[pipeline]'")


def allowed() -> set[str]:
    """Import names of the base requirements' closure."""
    todo, seen = list(BASE), set()
    while todo:
        name = plain(todo.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        todo += [need for need in needs if "extra ==" not in need]
    packages = importlib.metadata.packages_distributions()
    return {
        package for package, names in packages.items() if any(plain(name) in seen for name in names)
    }


WITHOUT = """
import sys, importlib.machinery, importlib.metadata
allowed = set({allowed!r}) | {{"topwork"}} | set(sys.stdlib_module_names)
installed = set(importlib.metadata.packages_distributions())

class Lean(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition(".")[0]
        hidden = top in installed and top not in allowed
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[:] = [
    Lean if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path
]
"""
"""Packages that the base install doesn't bring aren't found, as where they aren't installed."""


def lean(code: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the base install's packages alone."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(allowed=sorted(allowed())) + code, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        check=False,
    )


def test_plain_pytorch_needs_the_base_alone(tmp_path: Path) -> None:
    """README's story, files, and a look into them."""
    code = """
import json, pathlib, torch, topwork
weights = topwork.demo_weights()
graft = topwork.graft(weights, {"person": "keep", "helmet": "new"})
topwork.write_weights("grafted.safetensors", graft.weights)
model = topwork.load("grafted.safetensors")
found = topwork.predict(model, [torch.rand(3, 64, 64)])[0]
assert len(found["boxes"]) == len(found["names"])
assert topwork.inspect(model.state_dict())
assert topwork.diff("grafted.safetensors", "grafted.safetensors")
print(topwork.inspect("grafted.safetensors"))
topwork.verify_graft
from topwork.cli import main
assert main(["inspect", "grafted.safetensors"]) == 0
assert main(["diff", "grafted.safetensors", "grafted.safetensors"]) == 0
topwork.write_weights("pretrained.safetensors", weights)
pathlib.Path("receipt.json").write_text(json.dumps(graft.receipt))
command = ["verify-graft", "pretrained.safetensors", "grafted.safetensors", "receipt.json"]
assert main(command) == 0
from PIL import Image
Image.new("RGB", (64, 48)).save("yard.png")
pathlib.Path("params.yaml").write_text("{}")  # of a project; the base install can't read it
command = ["predict", "yard.png", "--weights", "grafted.safetensors", "--out", "seen"]
assert main([*command, "--score", "0"]) == 0
assert json.loads(pathlib.Path("seen/predictions.json").read_text())["images"][0]["objects"]
assert Image.open("seen/yard.png").size == (64, 48)
try:
    topwork.inspect(weights).frame()
except ModuleNotFoundError:
    print("no pandas")
loaded = {name.partition(".")[0] for name in sys.modules}
print("loaded", sorted(loaded & {"pandas", "pyarrow", "dvc", "prefect", "rich", "ruamel"}))
"""
    done = lean(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("no pandas\nloaded []\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["validate", "data"],
        ["fetch", "demo"],
        ["summary"],
        ["init", "site", "--data", "data", "--yes", "--source", "demo"],
        ["doctor"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_an_extra_brings_is_named_with_its_command(
    tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "data").mkdir()
    done = lean("from topwork.cli import main\nsys.exit(main(sys.argv[1:]))", tmp_path, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: topwork {arguments[0]}: the package ")
    assert "It comes with the extra `pipeline`: pip install 'topwork[pipeline]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stage_names_the_extra_too(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("{}\n")
    code = "from topwork.stages import gate\nsys.exit(gate.main())"
    done = lean(code, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the package ruamel isn't installed")
    assert "pip install 'topwork[pipeline]'" in done.stderr


# --- the wheel, outside of the repository


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a venv that has topwork's wheel, and our own packages for the rest: an
    empty home, and no variable of this one.
    """
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory"]
    subprocess.run([*build, str(folder)], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("topwork-*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv/bin/python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    ours = sysconfig.get_path("purelib")
    (Path(packages.stdout.strip()) / "others.pth").write_text(f"{ours}\n")
    (folder / "home").mkdir()
    path = [str(python.parent), str(Path(sys.executable).parent), os.defpath]
    identity = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "a"), ("EMAIL", "a@b.c"))
    }
    return {
        **identity,
        "HOME": str(folder / "home"),
        "PATH": os.pathsep.join(path),
        "OMP_NUM_THREADS": "1",
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
    }


def drawn(folder: Path, kind: str) -> Path:
    """A set of the yard in a format: train, val and test."""
    coco = folder / "coco"
    for split, count in (("train", 16), ("val", 6), ("test", 16)):
        draw_split(YARD, coco, split, count, 7, processes=1)
    if kind == "coco":
        return coco
    target = folder / kind
    names: dict[int, str] = {}
    for split in ("train", "val", "test"):
        document = json.loads((coco / f"{split}.json").read_text())
        names |= {category["id"]: category["name"] for category in document["categories"]}
        for image in document["images"]:
            boxes = [
                (names[row["category_id"]], row["bbox"])
                for row in document["annotations"]
                if row["image_id"] == image["id"]
            ]
            write = _voc if kind == "voc" else _yolo
            write(target, split, image, boxes, list(names.values()))
            places = {"voc": "JPEGImages", "yolo": f"{split}/images"}
            place = target / places[kind] / image["file_name"]
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(coco / split / "images" / image["file_name"], place)
    if kind == "yolo":
        listed = "".join(f"{split}: {split}/images\n" for split in ("train", "val", "test"))
        (target / "data.yaml").write_text(f"{listed}names: {json.dumps(list(names.values()))}\n")
    return target


def _voc(target: Path, split: str, image: dict, boxes: list, names: list[str]) -> None:
    things = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
        for name, (x, y, w, h) in boxes
    )
    stem = Path(image["file_name"]).stem
    file = target / "Annotations" / f"{stem}.xml"
    file.parent.mkdir(parents=True, exist_ok=True)
    size = f"<size><width>{image['width']}</width><height>{image['height']}</height></size>"
    file.write_text(
        f"<annotation><filename>{image['file_name']}</filename>{size}{things}</annotation>"
    )
    lists = target / "ImageSets/Main" / f"{split}.txt"
    lists.parent.mkdir(parents=True, exist_ok=True)
    with lists.open("a") as stream:
        stream.write(f"{stem}\n")


def _yolo(target: Path, split: str, image: dict, boxes: list, names: list[str]) -> None:
    width, height = image["width"], image["height"]
    file = target / split / "labels" / f"{Path(image['file_name']).stem}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "".join(
            f"{names.index(name)} {(x + w / 2) / width} {(y + h / 2) / height} {w / width}"
            f" {h / height}\n"
            for name, (x, y, w, h) in boxes
        )
    )


@pytest.mark.long
@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_the_wheel_takes_data_to_a_verified_report(
    kind: str, installed: dict[str, str], tmp_path: Path
) -> None:
    """Without an edit of params.yaml; a clone pulls everything and runs nothing; the flow finds
    everything fresh.
    """

    def call(folder: Path, *command: str) -> str:
        done = subprocess.run(
            command, cwd=folder, env=installed, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout

    data = drawn(tmp_path, kind)
    where = call(tmp_path, "python", "-c", "import topwork; print(topwork.__file__)")
    assert str(ROOT) not in where
    remote = tmp_path / "remote"
    options = ["--yes", "--source", "demo", "--epochs", "2", "--flows", "--remote", str(remote)]
    call(tmp_path, "topwork", "init", "site", "--data", str(data), *options)
    site = tmp_path / "site"
    assert "0 faults" in call(site, "topwork", "doctor", "--no-time")
    assert "Running stage 'gate'" in call(site, "python", "-m", "dvc", "repro")
    call(site, "git", "add", ".")
    call(site, "git", "commit", "--quiet", "--message", "first run")
    assert not [name for name in call(site, "git", "ls-files").split() if name.endswith(".jpg")]
    call(site, "topwork", "summary")
    call(site, "topwork", "audit", "verify", "HEAD")
    call(site, "python", "-m", "dvc", "push", "--quiet")
    call(tmp_path, "git", "clone", "--quiet", str(site), "clone")
    clone = tmp_path / "clone"
    call(clone, "python", "-m", "dvc", "pull", "--quiet")
    assert "Running" not in call(clone, "python", "-m", "dvc", "repro")
    result = call(site, "python", "-m", "flows.pipeline", "--json").splitlines()[-1]
    assert set(json.loads(result)["stages"].values()) == {"fresh"}
