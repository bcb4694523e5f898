"""For each rule on Pascal VOC and YOLO sets: what triggers it, and the nearest thing that
doesn't.
"""

from collections.abc import Callable

from validation.scene import Scene, encoded, picture

Case = Callable[[Scene], Scene]

DATA_YAML = "path: .\ntrain: images/train\nval: images/val\nnames: {0: helmet, 1: forklift}\n"


def voc_object(name: str = "helmet", box: tuple[object, ...] = (11, 21, 30, 50)) -> str:
    corners = "".join(
        f"<{key}>{value}</{key}>"
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"


def voc_file(name: str, *objects: str) -> bytes:
    size = "<size><width>100</width><height>80</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{size}{''.join(objects)}</annotation>".encode()


def voc(scene: Scene, **files: bytes) -> Scene:
    """A VOC folder `voc` with two images; `files` replace or add XML files by stem."""
    given = {
        "a": voc_file("a.jpg", voc_object()),
        "b": voc_file("b.jpg", voc_object("forklift")),
        **files,
    }
    for stem, data in given.items():
        scene.file(f"voc/Annotations/{stem}.xml", data)
    for seed, stem in enumerate("ab"):
        scene.file(f"voc/JPEGImages/{stem}.jpg", encoded(picture(seed)))
    return scene.use("voc")


def yolo(scene: Scene, data: str = DATA_YAML, **labels: str) -> Scene:
    """A YOLO set `yolo` with two images; `labels` replace or add label files by stem."""
    given = {"a": "0 0.5 0.5 0.2 0.25\n", "b": "1 0.25 0.5 0.1 0.5\n", **labels}
    scene.file("yolo/data.yaml", data.encode())
    for stem, text in given.items():
        scene.file(f"yolo/labels/train/{stem}.txt", text.encode())
    for seed, stem in enumerate("ab"):
        scene.file(f"yolo/images/train/{stem}.jpg", encoded(picture(seed)))
    return scene.use("yolo/data.yaml")


FORMAT_CASES: dict[str, tuple[Case, Case]] = {
    "file-not-voc": (
        lambda s: voc(s, a=b"<annotation><object>"),
        lambda s: voc(s, a=voc_file("a.jpg")),
    ),
    "file-not-yolo": (
        lambda s: yolo(s, "train: images/train\n"),
        lambda s: yolo(s, "train: images/train\nnames: [helmet, forklift]\n"),
    ),
    "label-without-image": (
        lambda s: yolo(s, c="0 0.5 0.5 0.2 0.2\n"),
        lambda s: yolo(s, classes="helmet\n"),
    ),
}
