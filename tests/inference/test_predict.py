"""Prediction: the bare model's own detections, in one table."""

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from evaluation.colours import BUILDER, COLOURS, ColourDetector, colour_set, colour_weights
from topwork.dataset.images import ImageStore
from topwork.dataset.split_images import SplitImages
from topwork.detectors.builders import load
from topwork.errors import DataError, DeviceError, EvaluationError
from topwork.inference import device, prediction
from topwork.inference.device import choose_device, computing_at
from topwork.inference.outputs import coco_results
from topwork.inference.prediction import _to_device, detect, predict


@pytest.fixture
def model() -> nn.Module:
    return load(colour_weights(("person", "truck", "N/A", "forklift"), {"truck": 0.5}))


def pictures(count: int) -> list[tuple[int, object]]:
    """Image i (id 100 - i) has a person at x = i, and the odd ones a truck."""
    opened = []
    for index in range(count):
        pixels = np.zeros((40, 80, 3), dtype=np.uint8)
        pixels[5:15, index : index + 10] = np.asarray(COLOURS["person"]) * 255
        if index % 2:
            pixels[20:30, 50:60] = np.asarray(COLOURS["truck"]) * 255
        image = Image.fromarray(pixels)
        opened.append((100 - index, lambda image=image: image))
    return opened


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_table_by_hand(model: nn.Module, batch_size: int) -> None:
    table = predict(model, pictures(5), batch_size=batch_size, device="cpu")  # type: ignore[arg-type]
    assert table["image_id"].tolist() == [100, 99, 99, 98, 97, 97, 96]
    assert table["name"].tolist() == [
        "person",
        "person",
        "truck",
        "person",
        "person",
        "truck",
        "person",
    ]
    assert table["label"].tolist() == [1, 1, 2, 1, 1, 2, 1]
    assert table.loc[1, ["x", "y", "width", "height"]].tolist() == [1, 5, 10, 10]
    assert table.loc[2, ["x", "y", "width", "height"]].tolist() == [52.5, 22.5, 5, 5]
    assert table["score"].tolist() == [float(np.float32(0.9))] * 7
    assert [str(kind) for kind in table.dtypes] == ["int64", "int64", "str", *["float64"] * 5]


def test_first_pass_of_a_process_isnt_taken(model: nn.Module) -> None:
    """On a CPU the first pass can differ in the last digits; here it does so for certain."""
    nudged: list[int] = []

    def nudge(module: nn.Module, inputs: object, outputs: list[dict[str, Tensor]]) -> None:
        nudged.append(len(outputs))
        if len(nudged) == 1:
            for output in outputs:
                output["scores"].sub_(1e-6)

    handle = model.register_forward_hook(nudge)
    first = predict(model, pictures(5), batch_size=2, device="cpu")  # type: ignore[arg-type]
    assert nudged == [2, 2, 2, 1]
    second = predict(model, pictures(5), batch_size=2, device="cpu")  # type: ignore[arg-type]
    assert nudged == [2, 2, 2, 1, 2, 2, 1], "once for each model"
    handle.remove()
    assert first.equals(second)
    assert (first["score"] == float(np.float32(0.9))).all()


def test_equals_the_bare_model() -> None:
    """torchvision's SSDLite on the same batches: the same numbers, to the bit."""
    from topwork.detectors.builders import build

    torch.manual_seed(0)
    detector = build("ssdlite320_mobilenet_v3_large", 4).eval()
    random = np.random.default_rng(0)
    images = [
        Image.fromarray(random.integers(0, 255, (120, 160, 3), dtype=np.uint8)) for _ in range(3)
    ]
    table = predict(
        detector,
        [(index, lambda image=image: image) for index, image in enumerate(images)],
        batch_size=2,
        device="cpu",
        columns=("__background__", "a", "b", "c"),
    )  # type: ignore[misc]
    tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 for image in images]
    with torch.inference_mode():
        bare = [*detector(tensors[:2]), *detector(tensors[2:])]
    assert len(table) == sum(len(found["scores"]) for found in bare) > 0
    assert table["score"].tolist() == [
        value for found in bare for value in found["scores"].tolist()
    ]
    xyxy = np.concatenate([found["boxes"].double().numpy() for found in bare])
    np.testing.assert_array_equal(table["width"], xyxy[:, 2] - xyxy[:, 0])


def test_no_images_no_rows(model: nn.Module) -> None:
    table = predict(model, [], device="cpu")
    assert len(table) == 0
    assert [str(kind) for kind in table.dtypes] == ["int64", "int64", "str", *["float64"] * 5]


def test_nothing_found_keeps_the_columns(model: nn.Module) -> None:
    grey = Image.new("RGB", (30, 30), (128, 128, 128))
    table = predict(model, [(1, lambda: grey)], device="cpu")
    assert len(table) == 0
    assert list(table) == ["image_id", "label", "name", "score", "x", "y", "width", "height"]


@pytest.mark.parametrize(("batch_size", "ahead"), [(1, 8), (3, 6), (8, 8), (20, 20)])
def test_images_for_a_cpu_are_opened_by_eights_between_forward_passes(
    model: nn.Module, batch_size: int, ahead: int
) -> None:
    opened: list[int] = []

    def counted(number: int) -> Callable[[], Image.Image]:
        def picture() -> Image.Image:
            opened.append(number)
            return Image.new("RGB", (8, 8))

        return picture

    images = [(number, counted(number)) for number in range(40)]
    seen: list[int] = []
    detect(model, images, batch_size=batch_size, device="cpu", watch=seen.append)
    assert seen[-1] == 40
    assert sorted(opened) == list(range(40))
    opened.clear()
    batches = prediction._batches(images, batch_size, torch.device("cpu"))
    assert next(batches)[0] == list(range(batch_size))
    batches.close()
    assert len(opened) == ahead


class Library:
    """A C library that allows a threshold of `most` bytes."""

    def __init__(self, most: int) -> None:
        self.most, self.set = most, dict[int, int]()

    def mallopt(self, option: int, value: int) -> int:
        if option == device._M_MMAP_THRESHOLD and value > self.most:
            return 0
        self.set[option] = value
        return 1


@pytest.mark.parametrize(("most", "taken"), [(1 << 40, 1 << 30), (32 << 20, 32 << 20), (0, None)])
def test_freed_memory_is_kept_as_far_as_the_c_library_allows(
    monkeypatch: pytest.MonkeyPatch, most: int, taken: int | None
) -> None:
    library = Library(most)
    monkeypatch.setattr(device.ctypes, "CDLL", lambda _: library)
    device.keep_freed_memory()
    trimmed = {device._M_TRIM_THRESHOLD: 1 << 30, device._M_MMAP_THRESHOLD: taken}
    assert library.set == (trimmed if taken else {})


def test_mode_is_left_as_it_was(model: nn.Module) -> None:
    model.train()
    predict(model, pictures(1), device="cpu")  # type: ignore[arg-type]
    assert model.training


def test_unused_columns_are_no_classes() -> None:
    detector = ColourDetector(3)
    with torch.no_grad():
        detector.colour[1], detector.colour[2] = (
            torch.tensor(COLOURS["person"]),
            torch.tensor(COLOURS["truck"]),
        )
    table = predict(detector, pictures(2), device="cpu", columns=("__background__", "N/A", "truck"))  # type: ignore[arg-type]
    assert table["name"].tolist() == ["truck"]


class Fixed(nn.Module):
    """Says the same of each image."""

    def __init__(self, **fields: Tensor) -> None:
        super().__init__()
        self.fields = fields

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self.fields for _ in images]


BOX = torch.tensor([[1.0, 2.0, 11.0, 22.0]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"boxes": BOX, "scores": torch.tensor([float("nan")]), "labels": torch.tensor([1])},
            "image 100: 1 boxes or scores are NaN",
        ),
        (
            {
                "boxes": BOX * float("inf"),
                "scores": torch.tensor([0.5]),
                "labels": torch.tensor([1]),
            },
            "image 100: 1 boxes or scores are NaN or infinite",
        ),
        (
            {"boxes": BOX, "scores": torch.tensor([0.5]), "labels": torch.tensor([7])},
            "label 7 .*columns are 0 to 1",
        ),
    ],
    ids=["nan score", "infinite box", "unknown label"],
)
def test_unsound_detections_are_refused(fields: dict[str, Tensor], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        predict(Fixed(**fields), pictures(1), device="cpu", columns=("__background__", "a"))  # type: ignore[arg-type]


def test_columns_are_needed() -> None:
    with pytest.raises(EvaluationError, match="the model has no `columns`"):
        predict(Fixed(), pictures(1))  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match="batch_size is 0, expected 1 or more"):
        predict(Fixed(), pictures(1), columns=("__background__", "a"), batch_size=0)  # type: ignore[arg-type]


def test_masks_become_rle() -> None:
    """Soft masks are cut at 0.5; pycocotools reads the text back."""
    from pycocotools import mask

    soft = torch.zeros(1, 1, 40, 80)
    soft[0, 0, 2:22, 1:11], soft[0, 0, 0, 0] = 0.5, 0.49
    table = predict(
        Fixed(boxes=BOX, scores=torch.tensor([0.5]), labels=torch.tensor([1]), masks=soft),
        pictures(2),
        device="cpu",
        columns=("__background__", "a"),
    )  # type: ignore[arg-type]
    assert len(table) == 2
    np.testing.assert_array_equal(
        mask.decode(json.loads(table["segmentation"][0])), (soft[0, 0] >= 0.5).numpy()
    )
    assert coco_results(table, {"a": 3})[0]["segmentation"] == json.loads(table["segmentation"][0])


def test_unreadable_image_is_named(tmp_path: Path, model: nn.Module) -> None:
    tables = colour_set(tmp_path, "test", {1: "person"}, [["person"], ["person"]])
    image = tmp_path / "data/test/1.png"
    image.write_bytes(image.read_bytes()[:60])
    with pytest.raises(DataError, match=r"1\.png"):
        predict(model, SplitImages(tables, tmp_path).openers("test"), device="cpu")
    with pytest.raises(DataError, match=r"gone\.png: no such image"):
        predict(
            model, [(1, lambda: ImageStore(tmp_path / "data/test").open("gone.png"))], device="cpu"
        )


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    found = torch.accelerator.current_accelerator(check_available=True)
    assert choose_device().type == ("cpu" if found is None else found.type)
    with pytest.raises(
        DeviceError, match=r"device 'toaster': not a device of torch .*write `auto`"
    ):
        choose_device("toaster")
    with pytest.raises(DeviceError, match=r"device 'cuda:99': torch .*sees"):
        choose_device("cuda:99")


def test_results_are_read_by_pycocotools(model: nn.Module) -> None:
    from pycocotools.coco import COCO

    results = coco_results(predict(model, pictures(3), device="cpu"), {"person": 17})  # type: ignore[arg-type]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": 100 - index} for index in range(3)],
        "categories": [{"id": 17, "name": "person"}],
        "annotations": [],
    }
    with redirect_stdout(io.StringIO()):
        coco.createIndex()
        loaded = coco.loadRes([dict(result) for result in results])  # it adds to them
    assert sorted(loaded.getImgIds()) == [98, 99, 100]
    assert results[0] == {
        "image_id": 100,
        "category_id": 17,
        "bbox": [0.0, 5.0, 10.0, 10.0],
        "score": 0.9,
    }


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from topwork.cli import main
    from topwork.weights.format import write_weights

    colour_set(tmp_path, "test", {1: "person"}, [["person", "truck"], ["truck"], []])
    write_weights(tmp_path / "w.safetensors", colour_weights(("person", "truck")))
    images = [str(tmp_path / "data/test"), str(tmp_path / "data/test/0.png")]
    assert (
        main(
            [
                "predict",
                *images,
                "--weights",
                str(tmp_path / "w.safetensors"),
                "--builder",
                BUILDER,
                "--out",
                str(tmp_path / "out"),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "4 images: 2 person, 3 truck (score 0.5 or more)" in printed
    written = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [entry["picture"] for entry in written["images"]] == [
        "0.png",
        "1.png",
        "2.png",
        "0-2.png",
    ]
    assert written["images"][1]["objects"] == [
        {"class": "truck", "score": 0.9, "bbox": [2.0, 2.0, 20.0, 20.0]}
    ]
    with (
        Image.open(tmp_path / "out/2.png") as untouched,
        Image.open(tmp_path / "out/1.png") as drawn,
    ):
        assert np.unique(np.asarray(untouched)).tolist() == [128]
        assert drawn.size == (64, 64)
        assert len(np.unique(np.asarray(drawn).reshape(-1, 3), axis=0)) > 2
    assert (
        main(
            [
                "predict",
                str(tmp_path / "none"),
                "--weights",
                str(tmp_path / "w.safetensors"),
                "--builder",
                BUILDER,
                "--out",
                str(tmp_path / "out2"),
            ]
        )
        == 1
    )
    assert "none" in capsys.readouterr().err
    assert not (tmp_path / "out2").exists()


def predicted(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The command on a folder `in`; its exit code and predictions.json by file name."""
    from topwork.cli import main
    from topwork.weights.format import write_weights

    write_weights(folder / "w.safetensors", colour_weights(("person", "truck")))
    command = ["predict", str(folder / "in"), "--weights", str(folder / "w.safetensors")]
    command += ["--builder", BUILDER, "--out", str(folder / "out"), "--device", "cpu", *arguments]
    code = main(command)
    written = folder / "out" / "predictions.json"
    entries = json.loads(written.read_text())["images"] if written.is_file() else []
    return code, {Path(entry["file_name"]).name: entry for entry in entries}


def red_block(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """A picture with a person (red) in a box (x1, y1, x2, y2)."""
    image = Image.new("RGB", size, (128, 128, 128))
    image.paste((255, 0, 0), box)
    return image


def test_every_picture_of_a_folder_is_read_upright(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    image = red_block((80, 40), (8, 4, 24, 12))
    image.save(tmp_path / "in/a.avif", quality=100, subsampling="4:4:4")
    image.save(tmp_path / "in/b.jfif", "JPEG", quality=100, subsampling=0)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "in/c.jpg", quality=100, subsampling=0, exif=exif)
    code, found = predicted(tmp_path)
    assert code == 0
    assert {name: entry["objects"][0]["bbox"] for name, entry in found.items()} == {
        "a.avif": [8, 4, 16, 8],
        "b.jfif": [8, 4, 16, 8],
        "c.jpg": [28, 8, 8, 16],  # (x, y) is at (40 - y, x) of the upright picture
    }
    with Image.open(tmp_path / "out/c.png") as drawn:
        assert drawn.size == (40, 80)


def test_boxes_of_a_huge_picture_are_in_its_own_pixels(tmp_path: Path) -> None:
    """20 million pixels are seen at half the size."""
    (tmp_path / "in").mkdir()
    red_block((5000, 4000), (400, 800, 1200, 1000)).save(tmp_path / "in/a.png")
    code, found = predicted(tmp_path)
    assert code == 0
    assert found["a.png"]["objects"][0]["bbox"] == [400, 800, 800, 200]
    with Image.open(tmp_path / "out/a.png") as drawn:
        assert drawn.size == (2500, 2000)


def test_a_broken_picture_is_advice_for_prediction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(b"<html>not found</html>")
    assert predicted(tmp_path)[0] == 1
    message = capsys.readouterr().err
    assert "a.jpg: can't be read as a picture" in message
    assert "Leave it out" in message
    assert "dataset" not in message


def test_benchmark_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from topwork.inference.latency import measure, print_latency

    rows = measure(
        load(colour_weights(("person",))),
        [Image.new("RGB", (20, 20))],
        batch_sizes=(1, 3),
        device="cpu",
        repeats=2,
        warmup=1,
    )
    assert [row.batch_size for row in rows] == [1, 3]
    assert all(
        row.median_s > 0 and row.images_per_s == pytest.approx(row.batch_size / row.median_s)
        for row in rows
    )
    print_latency(rows)
    assert "images/s" in capsys.readouterr().out


def test_precision_is_that_of_the_forward_pass_and_nothing_else(model: nn.Module) -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
            seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
            return model(images)  # type: ignore[no-any-return]

    columns = model.columns
    for precision in ("float32", "bfloat16"):
        predict(Spy(), pictures(1), device="cpu", columns=columns, precision=precision)  # type: ignore[arg-type]
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2  # a first batch is computed twice
    assert not torch.is_autocast_enabled("cpu")


def test_tf32_is_set_for_the_block_alone() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with computing_at("tf32", torch.device("cuda")):
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    with computing_at("float32", torch.device("cuda")):
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_tf32_without_a_cuda_device_is_refused(model: nn.Module) -> None:
    with pytest.raises(DeviceError, match="tf32 is a mode of CUDA devices, and this is 'cpu'"):
        predict(model, pictures(1), device="cpu", precision="tf32")  # type: ignore[arg-type]


def test_a_batch_goes_up_in_one_copy_with_the_same_pixels() -> None:
    """The way of a GPU, taken on the CPU: what the CPU's own way gives, to the bit."""
    random = np.random.default_rng(0)
    opened = [
        torch.from_numpy(random.integers(0, 256, (height, 7, 3), dtype=np.uint8))
        for height in (5, 9)
    ]
    for image, moved in zip(opened, _to_device(opened, torch.device("cpu")), strict=True):
        assert torch.equal(moved, image.permute(2, 0, 1).contiguous().float().div_(255))
        assert moved.is_contiguous()


def test_a_batch_of_a_gpu_lies_there() -> None:
    with FakeTensorMode():
        device = torch.device("cuda", 0)
        opened = [torch.empty((4, 5, 3), dtype=torch.uint8)]
        pinned = torch.empty
        try:
            torch.empty = lambda *a, pin_memory=False, **k: pinned(*a, **k)
            (image,) = _to_device(opened, device)
        finally:
            torch.empty = pinned
    assert image.device == device
    assert image.shape == (3, 4, 5)
    assert image.dtype == torch.float32
