"""Exports as labelling tools write them, drawn here: two images with a box each, [10, 20, 20, 30]
(helmet) and [40, 10, 30, 20] (forklift).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from validation.cases_formats import voc_file, voc_object
from validation.scene import HEIGHT, WIDTH, encoded, picture

BOXES = {"a.jpg": ("helmet", (10, 20, 20, 30)), "b.jpg": ("forklift", (40, 10, 30, 20))}
NAMES = ("helmet", "forklift")


def write(folder: Path, files: dict[str, bytes | str | dict[str, Any]]) -> Path:
    """Files of a folder: bytes, text, or JSON."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, dict):
            data = json.dumps(data)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def pictures(prefix: str, first_seed: int = 0) -> dict[str, bytes | str | dict[str, Any]]:
    """The two pictures below a folder."""
    return {
        f"{prefix}{name}": encoded(picture(first_seed + seed)) for seed, name in enumerate(BOXES)
    }


def coco(prefix: str = "", first_id: int = 1, **more: Any) -> dict[str, Any]:
    """The set as COCO; `prefix` goes before file names, `more` into each annotation."""
    images, annotations = [], []
    for place, (name, (category, box)) in enumerate(BOXES.items()):
        images.append(
            {"id": place + first_id, "file_name": prefix + name, "width": WIDTH, "height": HEIGHT}
        )
        annotations.append(
            {
                "id": place + first_id,
                "image_id": place + first_id,
                "category_id": NAMES.index(category) + first_id,
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": 0,
                **more,
            }
        )
    categories = [{"id": place + first_id, "name": name} for place, name in enumerate(NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def label(name: str) -> str:
    """A picture's YOLO row."""
    category, (x, y, width, height) = BOXES[name]
    numbers = (
        (x + width / 2) / WIDTH,
        (y + height / 2) / HEIGHT,
        width / WIDTH,
        height / HEIGHT,
    )
    return f"{NAMES.index(category)} {' '.join(map(str, numbers))}\n"


def labels(prefix: str, suffix: str = ".txt") -> dict[str, bytes | str | dict[str, Any]]:
    """Both label files below a folder."""
    return {f"{prefix}{name[0]}{suffix}": label(name) for name in BOXES}


def xml(name: str, *, first: int = 1, more: str = "") -> bytes:
    """A picture's Pascal VOC annotation, counted from `first`."""
    category, (x, y, width, height) = BOXES[name]
    corners = (x + first, y + first, x + width - 1 + first, y + height - 1 + first)
    return voc_file(name, voc_object(category, corners).replace("</object>", f"{more}</object>"))


def cvat_coco(folder: Path) -> Path:
    attributes = {"occluded": False, "rotation": 0.0}
    return write(
        folder,
        {
            "annotations/instances_default.json": coco(attributes=attributes, segmentation=[]),
            **pictures("images/default/"),
        },
    )


def cvat_voc(folder: Path) -> Path:
    more = (
        "<occluded>0</occluded><attributes><attribute><name>rotation</name><value>0.0</value>"
        "</attribute></attributes>"
    )

    def at(name: str) -> bytes:
        category, (x, y, width, height) = BOXES[name]
        box = (x, y, x + width, y + height)
        text = voc_file(name, voc_object(category, tuple(f"{value:.1f}" for value in box))).decode()
        return text.replace("</object>", f"{more}</object>").encode()

    # CVAT writes places between pixels; one that isn't whole shows it
    half = voc_object("helmet", ("60.5", "50.5", "70.5", "60.5"))
    files: dict[str, Any] = {f"Annotations/{name[0]}.xml": at(name) for name in BOXES}
    for name in ("a", "b"):
        text = files[f"Annotations/{name}.xml"].decode()
        files[f"Annotations/{name}.xml"] = text.replace("<object>", f"{half}{half}<object>", 1)
    files["ImageSets/Main/default.txt"] = "a\nb\n"
    files["labelmap.txt"] = "# label:color_rgb:parts:actions\nhelmet:::\nforklift:::\n"
    return write(folder, {**files, **pictures("JPEGImages/")})


def cvat_yolo(folder: Path) -> Path:
    return write(
        folder,
        {
            "obj.data": (
                "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
            ),
            "obj.names": "helmet\nforklift\n",
            "train.txt": "data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n",
            **pictures("obj_train_data/"),
            **labels("obj_train_data/"),
        },
    )


def label_studio_coco(folder: Path) -> Path:
    return write(folder, {"result.json": coco("images/", 0), **pictures("images/")})


def label_studio_yolo(folder: Path) -> Path:
    return write(
        folder,
        {
            "classes.txt": "helmet\nforklift\n",
            "notes.json": {"categories": [{"id": 0, "name": "helmet"}], "info": {}},
            **pictures("images/"),
            **labels("labels/"),
        },
    )


def label_studio_voc(folder: Path) -> Path:
    files: dict[str, Any] = {f"Annotations/{name[0]}.xml": xml(name) for name in BOXES}
    return write(folder, {**files, **pictures("images/")})


def roboflow_coco(folder: Path) -> Path:
    files: dict[str, Any] = {}
    for place, split in enumerate(("train", "valid", "test")):
        record = coco()
        # Roboflow adds a category without boxes that names the project
        record["categories"].insert(0, {"id": 0, "name": "hats", "supercategory": "none"})
        files[f"{split}/_annotations.coco.json"] = record
        files |= pictures(f"{split}/", 10 * place)
    return write(folder, files)


def roboflow_yolo(folder: Path) -> Path:
    files: dict[str, Any] = {
        "data.yaml": (
            "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\n"
            "names: ['helmet', 'forklift']\n\nroboflow:\n  workspace: w\n  version: 1\n"
        ),
        "README.roboflow.txt": "hats\n",
    }
    for place, split in enumerate(("train", "valid", "test")):
        files |= pictures(f"{split}/images/", 10 * place)
        files |= labels(f"{split}/labels/")
    return write(folder, files)


def roboflow_voc(folder: Path) -> Path:
    files: dict[str, Any] = {}
    for place, split in enumerate(("train", "valid")):
        files |= {f"{split}/{name[0]}.xml": xml(name) for name in BOXES}
        files |= pictures(f"{split}/", 10 * place)
    return write(folder, files)


def fiftyone_coco(folder: Path) -> Path:
    return write(folder, {"labels.json": coco(first_id=0), **pictures("data/")})


def fiftyone_yolo(folder: Path) -> Path:
    return write(
        folder,
        {
            "dataset.yaml": (
                "names:\n  0: helmet\n  1: forklift\npath: /home/me/export\n"
                "train: ./images/train/\nval: ./images/val/\n"
            ),
            **pictures("images/train/"),
            **labels("labels/train/"),
            **pictures("images/val/", 10),
            **labels("labels/val/"),
        },
    )


def fiftyone_voc(folder: Path) -> Path:
    files: dict[str, Any] = {f"labels/{name[0]}.xml": xml(name) for name in BOXES}
    return write(folder, {**files, **pictures("data/")})


def labelme_coco(folder: Path) -> Path:
    record = coco("JPEGImages/", segmentation=None)
    record["categories"].insert(0, {"id": 0, "name": "_background_", "supercategory": None})
    for entry, (_, (x, y, width, height)) in zip(
        record["annotations"], BOXES.values(), strict=True
    ):
        entry["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    return write(folder, {"annotations.json": record, **pictures("JPEGImages/")})


def labelme_voc(folder: Path) -> Path:
    files: dict[str, Any] = {f"Annotations/{name[0]}.xml": xml(name) for name in BOXES}
    files["class_names.txt"] = "_background_\nhelmet\nforklift\n"
    return write(folder, {**files, **pictures("JPEGImages/")})


def via_coco(folder: Path) -> Path:
    record = coco()
    for entry in record["annotations"]:
        entry["image_id"] = str(entry["image_id"])  # as VIA 2 writes it
    return write(folder, {"via_export_coco.json": record, **pictures("")})


def ultralytics(folder: Path) -> Path:
    return write(
        folder,
        {
            "hats.yaml": (
                "path: ../datasets/hats\ntrain: images/train\nval: images/val\ntest:\n\n"
                "names:\n  0: helmet\n  1: forklift\n\ndownload: https://example.org/hats.zip\n"
            ),
            **pictures("images/train/"),
            **labels("labels/train/"),
            **pictures("images/val/", 10),
            **labels("labels/val/"),
        },
    )


def datumaro_coco(folder: Path) -> Path:
    return write(
        folder,
        {
            "annotations/instances_train.json": coco(),
            "annotations/instances_val.json": coco(),
            **pictures("images/train/"),
            **pictures("images/val/", 10),
        },
    )


def datumaro_voc(folder: Path) -> Path:
    files: dict[str, Any] = {f"Annotations/{name[0]}.xml": xml(name) for name in BOXES}
    files["ImageSets/Main/train.txt"] = "a\n"
    files["ImageSets/Main/val.txt"] = "b\n"
    files["labelmap.txt"] = "# label:color_rgb:parts:actions\nhelmet:::\nforklift:::\n"
    return write(folder, {**files, **pictures("JPEGImages/")})


def datumaro_yolo(folder: Path) -> Path:
    return write(
        folder,
        {
            "obj.data": (
                "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\n"
                "names = data/obj.names\nbackup = backup/\n"
            ),
            "obj.names": "helmet\nforklift\n",
            "train.txt": "data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n",
            "valid.txt": "data/obj_valid_data/a.jpg\ndata/obj_valid_data/b.jpg\n",
            **pictures("obj_train_data/"),
            **labels("obj_train_data/"),
            **pictures("obj_valid_data/", 10),
            **labels("obj_valid_data/"),
        },
    )


LAYOUTS: dict[str, tuple[Callable[[Path], Path], str, tuple[str, ...]]] = {
    "CVAT: COCO 1.0": (cvat_coco, "coco", ("train",)),
    "CVAT: PASCAL VOC 1.1": (cvat_voc, "voc", ("train",)),
    "CVAT: YOLO 1.1": (cvat_yolo, "yolo", ("train",)),
    "Label Studio: COCO with images": (label_studio_coco, "coco", ("train",)),
    "Label Studio: YOLO with images": (label_studio_yolo, "yolo", ("train",)),
    "Label Studio: Pascal VOC XML": (label_studio_voc, "voc", ("train",)),
    "Roboflow: COCO": (roboflow_coco, "coco", ("train", "val", "test")),
    "Roboflow: YOLOv5 to YOLO26": (roboflow_yolo, "yolo", ("train", "val", "test")),
    "Roboflow: Pascal VOC": (roboflow_voc, "voc", ("train", "val")),
    "FiftyOne: COCODetectionDataset": (fiftyone_coco, "coco", ("train",)),
    "FiftyOne: YOLOv5Dataset": (fiftyone_yolo, "yolo", ("train", "val")),
    "FiftyOne: VOCDetectionDataset": (fiftyone_voc, "voc", ("train",)),
    "LabelMe: labelme2coco.py": (labelme_coco, "coco", ("train",)),
    "LabelMe: labelme2voc.py": (labelme_voc, "voc", ("train",)),
    "VIA: COCO": (via_coco, "coco", ("train",)),
    "Ultralytics": (ultralytics, "yolo", ("train", "val")),
    "Datumaro: coco_instances": (datumaro_coco, "coco", ("train", "val")),
    "Datumaro: voc": (datumaro_voc, "voc", ("train", "val")),
    "Datumaro: yolo": (datumaro_yolo, "yolo", ("train", "val")),
}
"""Row of the table in docs/data.md -> what draws the export, its format, its splits."""
