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


POSE = (  # a box and three keypoints of two numbers
    "0 0.5 0.5 0.4 0.4 0.35 0.35 0.65 0.5 0.5 0.65\n"
    "0 0.3 0.5 0.4 0.4 0.15 0.35 0.45 0.5 0.3 0.65\n"
    "1 0.5 0.3 0.2 0.4 0.45 0.15 0.55 0.3 0.5 0.45\n"
)


def two_yolo(scene: Scene, names: str) -> Scene:
    """val in a YOLO set of its own, with names of its own."""
    yolo(scene).file("other/data.yaml", f"val: images\n{names}\n".encode())
    scene.file("other/images/c.jpg", encoded(picture(8))).file("other/labels/c.txt", LABEL)
    return scene.also("val", "other/data.yaml")


LABEL = b"0 0.5 0.5 0.2 0.25\n"


def listed(scene: Scene, *lines: str) -> Scene:
    """train as a text file of images."""
    return yolo(scene, DATA_YAML.replace("train: images/train", "train: train.txt")).file(
        "yolo/train.txt", "".join(f"{line}\n" for line in lines).encode()
    )


FORMAT_CASES: dict[str, tuple[Case, Case]] = {
    "file-not-voc": (
        lambda s: voc(s, a=b"<annotation><object>"),
        lambda s: voc(s, a=voc_file("a.jpg")),
    ),
    "file-not-yolo": (
        lambda s: yolo(s, "train: images/train\n"),
        lambda s: yolo(s, "train: images/train\nnames: [helmet, forklift]\n"),
    ),
    "yolo-class-count": (
        lambda s: yolo(s, f"nc: 3\n{DATA_YAML}"),
        lambda s: yolo(s, f"nc: 2\n{DATA_YAML}"),
    ),
    "yolo-names-differ": (
        lambda s: two_yolo(s, "names: [forklift, helmet]"),
        lambda s: two_yolo(s, "names: [helmet]"),
    ),
    "yolo-pose-undeclared": (
        lambda s: yolo(s, a=POSE),
        lambda s: yolo(s, f"task: segment\n{DATA_YAML}", a=POSE),
    ),
    "yolo-rows-mixed": (
        lambda s: yolo(s, a="0 0.1 0.25 0.5 0.25 0.5 0.75\n"),
        lambda s: yolo(
            s, a="0 0.1 0.25 0.5 0.25 0.5 0.75\n", b="0 0.1 0.25 0.5 0.25 0.5 0.75 0.1 0.7\n"
        ),
    ),
    "voc-corners": (voc, yolo),
    "list-path-matched": (
        lambda s: listed(s, "/home/me/set/images/train/a.jpg"),
        lambda s: listed(s, "./images/train/a.jpg"),
    ),
    "label-shared": (
        lambda s: yolo(s).file("yolo/images/train/a.png", encoded(picture(7), "PNG")),
        lambda s: yolo(s).file("yolo/images/train/c.png", encoded(picture(7), "PNG")),
    ),
    "label-without-image": (
        lambda s: yolo(s, c="0 0.5 0.5 0.2 0.2\n"),
        lambda s: yolo(s, classes="helmet\n"),
    ),
}
