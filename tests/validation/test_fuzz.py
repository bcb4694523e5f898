"""Mutated COCO, VOC and YOLO inputs in every layout that is read: no crash, no hang, no silent
drop; every input box is in the tables, in the findings, or in both.
"""

import copy
import json
import os
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from topwork.dataset.tables import Tables
from topwork.errors import DataError
from topwork.files import canonical_json
from topwork.params.dataset import DatasetParams, SetParams
from topwork.validation.find_layout import find_layout
from topwork.validation.gate import Validation, validate
from topwork.validation.outputs import findings_record, write_all
from validation.cases_formats import DATA_YAML, voc_file, voc_object
from validation.scene import encoded, picture, small_set

FATAL = ("file-not-json", "file-not-coco")
SECONDS = 20.0  # for one small input; a hang is far above
SCALAR = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, -1, 2, 11, 2**63, 1e999, -1e999, float("nan"), 1e308, 0.5, 1e-320]),
    st.text(max_size=8),
    st.sampled_from(["", "../x", "/etc/passwd", "1", "NaN", "\0", "\ud800", "a\\b"]),
    st.just([]),
    st.just({}),
    st.lists(st.floats(-200, 200), max_size=6),
    st.dictionaries(st.sampled_from(["rotation", "occluded"]), st.floats(), max_size=2),
)
KEYS = [
    "id",
    "image_id",
    "category_id",
    "bbox",
    "area",
    "iscrowd",
    "segmentation",
    "file_name",
    "width",
    "height",
    "name",
    "extra",
    "attributes",
    "rotation",
]
MUTATION = st.tuples(
    st.sampled_from(["images", "annotations", "categories"]),
    st.integers(0, 30),
    st.sampled_from(KEYS),
    SCALAR,
    st.sampled_from(["set", "delete", "swap"]),
)
CUT = st.one_of(st.none(), st.floats(0, 1))
BYTES = st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3)), max_size=3)


CHOICES = st.fixed_dictionaries(
    {},
    optional={
        "match": st.sampled_from(["exact", "nearest"]),
        "exif": st.sampled_from(["turned", "stored"]),
        "voc_base": st.sampled_from([0, 1]),
        "rotated": st.sampled_from(["hull", "unturned"]),
    },
)
"""What params.yaml may say of how a set is read."""
ORIENTATIONS = st.integers(1, 8)


def turned(seed: int, orientation: int) -> bytes:
    """A picture with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(seed, (100, 80)), exif=exif)


def taken_for(path: Path) -> None:
    """The layout is found, or refused in words."""
    with suppress(DataError):
        assert find_layout(path).lines().startswith("dataset:\n")


def check(dataset: DatasetParams, folder: Path, segmentation: bool = True) -> Validation:
    """Validate within the time, write all outputs, and hold the counts against each other."""
    start = time.perf_counter()
    before = _listing(folder)
    found = validate(dataset, folder, workers=1, segmentation=segmentation)
    assert time.perf_counter() - start < SECONDS
    assert _listing(folder) == before, "something was written into the data"
    assert (
        sum(found.findings.by_rule().values())
        == len(found.findings)
        == sum(found.findings.by_severity().values())
    )
    listed = json.loads(canonical_json(findings_record(found.findings, found.dropped).document()))
    assert listed["counts"]["total"] == len(found.findings) == len(found.findings.frame())
    if len(found.findings) % 10 == 3:  # one in some: writing is slow next to the rest
        with tempfile.TemporaryDirectory() as name:
            write_all(found, Path(name))
            assert len(Tables.read(Path(name)).annotations) == len(found.tables.annotations)
    return found


def mutated(mutations: list[tuple[str, int, str, Any, str]]) -> dict[str, Any]:
    """The small set with records changed, cut out, or replaced."""
    data = copy.deepcopy(small_set())
    for kind, index, key, value, how in mutations:
        rows = data[kind]
        if not rows:
            continue
        index %= len(rows)
        value = copy.deepcopy(value)  # an object that's put in twice is still two
        if how == "swap":
            rows[index] = value
        elif isinstance(rows[index], dict):
            if how == "set":
                rows[index][key] = value
            else:
                rows[index].pop(key, None)
    return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that all inputs share."""
    folder = tmp_path_factory.mktemp("fuzz")
    for seed in range(4):
        place = folder / "train"
        place.mkdir(exist_ok=True)
        (place / f"{seed}.jpg").write_bytes(encoded(picture(seed, (100, 80))))
    return folder


def _coco_records(
    folder: Path,
    mutations: list[tuple[str, int, str, Any, str]],
    segmentation: bool,
    choices: dict[str, Any],
    orientation: int,
) -> None:
    data = mutated(mutations)
    (folder / "train.json").write_text(json.dumps(data))
    (folder / "train" / "0.jpg").write_bytes(turned(0, orientation))
    taken_for(folder / "train.json")
    found = check(
        DatasetParams(
            root=Path(),
            train=SetParams(annotations=Path("train.json"), images=Path("train")),
            **choices,
        ),
        folder,
        segmentation,
    )
    if any(row.rule in FATAL for row in found.findings):
        # half a surrogate pair is no text; nothing else in here makes a file unreadable
        assert "\\ud" in json.dumps(data)
        return
    rows = Counter(found.tables.annotations["annotation_id"].tolist())
    malformed = Counter(
        row.message.split(":")[0] for row in found.findings if row.rule == "record-malformed"
    )
    given_ = [(index, record) for index, record in enumerate(data["annotations"])]
    in_findings = sum(f"annotations[{index}]" in malformed for index, _ in given_)
    assert len(found.tables.annotations) + in_findings == len(given_)
    for index, record in given_:
        if (
            f"annotations[{index}]" not in malformed
            and isinstance(record.get("id"), int)
            and not isinstance(record["id"], bool)
        ):
            assert rows[record["id"]] >= 1
    images = sum(f"images[{index}]" in malformed for index in range(len(data["images"])))
    named = sum(
        row.rule == "record-malformed" and row.message.startswith("images[")
        for row in found.findings
    )
    assert len(found.tables.images) + max(images, named) == len(data["images"])


def _coco_bytes(folder: Path, cut: float | None, edits: list[tuple[float, bytes]]) -> None:
    data = bytearray(json.dumps(small_set()).encode())
    for place, piece in edits:
        at = int(place * (len(data) - 1))
        data[at : at + len(piece)] = piece
    if cut is not None:
        del data[int(cut * len(data)) :]
    (folder / "bytes.json").write_bytes(bytes(data))
    found = check(
        DatasetParams(
            root=Path(), train=SetParams(annotations=Path("bytes.json"), images=Path("train"))
        ),
        folder,
    )
    fatal = any(row.rule in (*FATAL, "file-empty", "file-key-twice") for row in found.findings)
    malformed = sum(
        row.rule == "record-malformed" and row.message.startswith("annotations[")
        for row in found.findings
    )
    assert fatal or len(found.tables.annotations) + malformed == 24


def _voc(
    folder: Path,
    fields: list[Any],
    cut: float | None,
    edits: list[tuple[float, bytes]],
    choices: dict[str, Any],
    orientation: int,
) -> None:
    place = folder / "voc"
    for sub in ("Annotations", "JPEGImages"):
        (place / sub).mkdir(parents=True, exist_ok=True)
    (place / "JPEGImages" / "a.jpg").write_bytes(turned(1, orientation))
    boxes = [tuple(fields[i : i + 4]) for i in range(0, len(fields) - 3, 4)]
    text = bytearray(voc_file("a.jpg", *(voc_object("helmet", box) for box in boxes)))
    for at, piece in edits:
        start = int(at * (len(text) - 1))
        text[start : start + len(piece)] = piece
    if cut is not None:
        del text[int(cut * len(text)) :]
    (place / "Annotations" / "a.xml").write_bytes(bytes(text))
    taken_for(place)
    found = check(
        DatasetParams(root=Path(), train=SetParams(annotations=Path("voc")), **choices), folder
    )
    if not edits and cut is None:
        whole_file = any(row.rule == "file-not-voc" for row in found.findings)
        # what XML can't hold
        assert whole_file == any(
            character < " " and character not in "\t\n\r" for character in text.decode()
        )
        assert whole_file or len(found.tables.annotations) == len(boxes)


def _yolo(
    folder: Path, lines: list[str], data: str, choices: dict[str, Any], orientation: int
) -> None:
    place = folder / "yolo"
    for sub in ("images/train", "labels/train"):
        (place / sub).mkdir(parents=True, exist_ok=True)
    (place / "images/train/a.jpg").write_bytes(turned(1, orientation))
    (place / "data.yaml").write_text(data, encoding="utf-8", errors="surrogatepass")
    (place / "labels/train/a.txt").write_text(
        "\n".join(lines), encoding="utf-8", errors="surrogatepass"
    )
    taken_for(place)
    found = check(
        DatasetParams(root=Path(), train=SetParams(annotations=Path("yolo/data.yaml")), **choices),
        folder,
    )
    _count_rows(found, lines, data in SOUND)


def _listed(
    folder: Path, lines: list[str], names: list[str], images: list[str], darknet: bool
) -> None:
    """obj.data with its lists, or classes.txt alone."""
    place = folder / ("darknet" if darknet else "classes")
    images_at, labels_at = ("obj_train_data", "obj_train_data") if darknet else ("images", "labels")
    for sub in {images_at, labels_at}:
        (place / sub).mkdir(parents=True, exist_ok=True)
    files = {
        f"{images_at}/a.jpg": encoded(picture(1)),
        f"{labels_at}/a.txt": "\n".join(lines).encode("utf-8", "surrogatepass"),
        "obj.names" if darknet else "classes.txt": "\n".join(names).encode(),
    }
    if darknet:
        files["obj.data"] = b"classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n"
        files["train.txt"] = "\n".join(images).encode()
    for name, data in files.items():
        (place / name).write_bytes(data)
    taken_for(place)
    annotations = Path(place.name) / ("obj.data" if darknet else "")
    found = check(DatasetParams(root=Path(), train=SetParams(annotations=annotations)), folder)
    whole = not darknet or {line.strip() for line in images} - {""} == {"obj_train_data/a.jpg"}
    fatal = any(row.rule == "file-not-yolo" for row in found.findings)
    _count_rows(found, lines, whole and not fatal)


def _count_rows(found: Validation, lines: list[str], sound: bool) -> None:
    """Every row that isn't blank is in the table or a finding."""
    if sound:
        rows = [line for line in "\n".join(lines).split("\n") if line.strip()]
        malformed = [row for row in found.findings if row.rule == "record-malformed"]
        whole_file = any("can't be read" in row.message for row in malformed)
        assert whole_file or len(found.tables.annotations) + len(malformed) == len(rows)


NUMBER = st.one_of(
    st.integers(-50, 200),
    st.floats(),
    st.text(max_size=4).filter(lambda t: not set(t) & set("<>&")),
    st.just("1e999"),
    st.just(""),
)
LINE = st.one_of(
    st.lists(st.one_of(st.floats(), st.integers(-3, 3)), max_size=9).map(
        lambda row: " ".join(map(str, row))
    ),
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20),
)
SOUND = (
    DATA_YAML,
    f"kpt_shape: [2, 2]\n{DATA_YAML}",
    f"nc: 5\n{DATA_YAML}",
    *(f"task: {task}\n{DATA_YAML}" for task in ("detect", "segment", "obb")),
)
"""data.yaml whose rows are all read, or named."""
YAML = st.one_of(
    st.just(DATA_YAML),
    st.text(max_size=60),
    st.sampled_from(
        [
            "names: {0: a}\ntrain: ..",
            "names: [a]\ntrain: /etc\n",
            "train: [images/train, 3]\nnames: [a]",
            "{{{",
            "names: {'0': a}\ntrain: images/train\n",
            f"kpt_shape: [17, 5]\n{DATA_YAML}",
            f"kpt_shape: x\n{DATA_YAML}",
            f"task: pose\n{DATA_YAML}",
        ]
    ),
    st.sampled_from(SOUND),
)
NAMES = st.lists(st.text(alphabet="ab \t\u00e9", max_size=4), max_size=3)
IMAGES = st.lists(
    st.sampled_from(
        [
            "obj_train_data/a.jpg",
            "data/obj_train_data/a.jpg",
            "/home/me/obj_train_data/a.jpg",
            "C:\\set\\obj_train_data\\a.jpg",
            "../../etc/passwd",
            "/etc/passwd",
            "",
            "gone.jpg",
            "\0",
            "a\u0301.jpg",
            "x" * 300,
            ":",
            "/",
            ".",
        ]
    ),
    max_size=3,
)
FORMATS = {
    "coco-records": (
        _coco_records,
        st.tuples(st.lists(MUTATION, min_size=1, max_size=5), st.booleans(), CHOICES, ORIENTATIONS),
    ),
    "coco-bytes": (_coco_bytes, st.tuples(CUT, BYTES)),
    "voc": (_voc, st.tuples(st.lists(NUMBER, max_size=12), CUT, BYTES, CHOICES, ORIENTATIONS)),
    "yolo": (_yolo, st.tuples(st.lists(LINE, max_size=5), YAML, CHOICES, ORIENTATIONS)),
    "yolo-lists": (_listed, st.tuples(st.lists(LINE, max_size=5), NAMES, IMAGES, st.booleans())),
}
EXAMPLES = int(os.environ.get("TOPWORK_FUZZ", "2600"))  # each of five formats: over 10,000 in all


@pytest.mark.parametrize("kind", FORMATS)
def test_some_mutated_inputs(kind: str, folder: Path) -> None:
    _fuzz(kind, folder, 60)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", FORMATS)
def test_ten_thousand_mutated_inputs(kind: str, folder: Path) -> None:
    _fuzz(kind, folder, EXAMPLES)


def _fuzz(kind: str, folder: Path, examples: int) -> None:
    act, strategy = FORMATS[kind]

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=examples < 100,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def one(arguments: tuple[Any, ...]) -> None:
        act(folder, *arguments)

    one()


def _listing(folder: Path) -> list[tuple[str, int]]:
    return sorted(
        (path.as_posix(), path.stat().st_size) for path in folder.rglob("*") if path.is_file()
    )
