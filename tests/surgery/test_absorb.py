"""Absorbed models train, save, load, script, compile and export like any other."""

import copy
import io

import pytest
import torch
from torch import nn

from detectors import tiny
from topwork import graft, load, read_weights, write_weights
from topwork.classes import ClassPlan
from topwork.detectors.axes import randomize
from topwork.detectors.builders import build
from topwork.detectors.families import fold_background
from topwork.errors import SurgeryError
from topwork.surgery.preview import preview

COLUMNS = ("__background__", "person", "car", "truck", "dog", "tree")
PLAN = {"dog": "keep", "helmet": "new", "person": "keep"}


@pytest.fixture(
    params=[tiny.ssd, tiny.faster_rcnn, tiny.mask_rcnn], ids=lambda builder: builder.__name__
)
def absorbed(request):
    torch.manual_seed(0)
    model = build(request.param, len(COLUMNS))
    randomize(model)
    return graft(model.state_dict(), PLAN, builder=request.param, columns=COLUMNS, dropped="absorb")


def test_fold_by_hand():
    # bg, two targets, two absorbed
    wide = torch.tensor([[0.3, 1.0, -2.0, 0.7, 0.1]], dtype=torch.float64)
    folded = fold_background(wide, 3)
    assert folded.tolist()[0][1:] == [1.0, -2.0]
    torch.testing.assert_close(
        folded[0, 0].exp(), wide[0, 0].exp() + wide[0, 3].exp() + wide[0, 4].exp()
    )
    torch.testing.assert_close(
        folded.softmax(-1)[0, 1:], wide.softmax(-1)[0, 1:3], rtol=1e-14, atol=0
    )


def test_fold_in_extremes():
    wide = torch.tensor([[-1e4, 3.0, -1e4], [1e4, 3.0, 1e4], [0.0, 0.0, -torch.inf]])
    assert torch.isfinite(fold_background(wide, 2)).all()


def _image():
    return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(5))


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_tensor_names_are_the_plain_builders(absorbed):
    plain = build(absorbed.builder, 4).state_dict()
    assert absorbed.state_dict.keys() == plain.keys()


def test_saves_and_loads(absorbed, tmp_path):
    model = absorbed.build()
    expected = model([_image()])[0]
    assert set(expected["labels"].tolist()) <= {1, 2, 3}
    weights = absorbed.weights
    write_weights(tmp_path / "w.safetensors", weights)
    again = read_weights(tmp_path / "w.safetensors", trust=True)
    assert again.absorbed == ("car", "truck", "tree")
    assert _same(load(again, builder=absorbed.builder)([_image()])[0], expected)
    assert _same(copy.deepcopy(model)([_image()])[0], expected)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert _same(torch.load(buffer, weights_only=False)([_image()])[0], expected)


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning"
)
def test_scripts(absorbed):
    model = absorbed.build()
    scripted = torch.jit.script(model)
    _, detections = scripted([_image()])
    assert _same(detections[0], model([_image()])[0])


def _losses(model):  # a detector in training mode
    torch.manual_seed(0)
    target = {"boxes": torch.tensor([[4.0, 4.0, 20.0, 24.0]]), "labels": torch.tensor([3])}
    if "mask" in type(getattr(model, "module", model)).__name__.lower():
        target["masks"] = torch.ones(1, 32, 32, dtype=torch.uint8)
    return model([_image()], [target])


def test_trains_and_the_loss_is_the_folded_one(absorbed):
    model = absorbed.build().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    values = []
    for _ in range(8):
        loss = sum(_losses(model).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < values[0]


def test_the_loss_is_the_wide_cross_entropy_with_dropped_classes_as_background():
    """An independent peer: -log p of the wide softmax, where every dropped class counts as
    background.
    """
    torch.manual_seed(0)
    wide, labels = torch.randn(50, 7, dtype=torch.float64), torch.randint(0, 4, (50,))
    probabilities = wide.softmax(-1)
    merged = torch.cat(
        [probabilities[:, [0, 4, 5, 6]].sum(1, keepdim=True), probabilities[:, 1:4]], 1
    )
    torch.testing.assert_close(
        nn.functional.cross_entropy(fold_background(wide, 4), labels),
        nn.functional.nll_loss(merged.log(), labels),
        rtol=1e-12,
        atol=0,
    )


def test_compiles_without_a_graph_break_in_the_head():
    torch.manual_seed(0)
    head = build(tiny.points, 4, absorbed=3).eval()
    x = torch.randn(5, 5)
    compiled = torch.compile(head, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), head(x))
    assert head(x).shape == (5, 4)


def test_exported_program_holds_the_fold():
    head = build(tiny.points, 4, absorbed=3).eval()
    x = torch.randn(5, 5)
    program = torch.export.export(head, (x,))
    torch.testing.assert_close(program.module()(x), head(x))
    assert any("logsumexp" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize(
    "builder", [tiny.retinanet, tiny.fcos], ids=lambda builder: builder.__name__
)
def test_sigmoid_heads_absorb_by_removal(builder):
    torch.manual_seed(0)
    state_dict = build(builder, len(COLUMNS)).state_dict()
    one, other = (
        graft(state_dict, PLAN, builder=builder, columns=COLUMNS, dropped=dropped)
        for dropped in ("remove", "absorb")
    )
    assert other.weights.absorbed == ()
    assert other.receipt["dropped"] == {
        "done": "removed",
        "exact": True,
        "classes": ["car", "truck", "tree"],
    }
    assert all(
        torch.equal(one.state_dict[name], tensor) for name, tensor in other.state_dict.items()
    )
    with pytest.raises(SurgeryError, match="its head can't absorb classes"):
        build(builder, 4, absorbed=2)


def test_an_absorbed_head_gives_its_classes_back():
    torch.manual_seed(0)
    state_dict = build(tiny.ssd, len(COLUMNS)).state_dict()
    absorbed = graft(state_dict, PLAN, builder=tiny.ssd, columns=COLUMNS, dropped="absorb")
    back = graft(absorbed.weights, list(COLUMNS[1:]), builder=tiny.ssd, dropped="remove")
    assert all(torch.equal(back.state_dict[name], tensor) for name, tensor in state_dict.items())


def test_cut_box_rows_are_not_invented():
    state_dict = build(tiny.faster_rcnn, len(COLUMNS)).state_dict()
    absorbed = graft(state_dict, PLAN, builder=tiny.faster_rcnn, columns=COLUMNS, dropped="absorb")
    with pytest.raises(
        SurgeryError,
        match=r"bbox_pred.weight: truck wants the rows of an absorbed class, which were cut",
    ):
        graft(absorbed.weights, ["truck"], builder=tiny.faster_rcnn)
    with pytest.raises(SurgeryError, match=r"truck wants the rows of an absorbed class"):
        preview(absorbed.weights, ClassPlan.parse(["truck"]), builder=tiny.faster_rcnn)


@pytest.mark.filterwarnings("ignore")
def test_exports_to_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    head = build(tiny.points, 4, absorbed=3).eval()
    x = torch.randn(5, 5)
    torch.onnx.export(head, (x,), tmp_path / "points.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(
        tmp_path / "points.onnx", providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), head(x).detach(), rtol=1e-5, atol=1e-6)


def test_trains_under_ddp(absorbed, tmp_path):
    """One process is enough to see that the hooks and names survive the wrapper; the training room
    runs two.
    """
    import torch.distributed as dist

    plain = absorbed.build().train()
    expected = {name: value.detach() for name, value in _losses(plain).items()}
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(absorbed.build().train())
        losses = _losses(wrapped)
        sum(losses.values()).backward()
        assert {name: float(value.detach()) for name, value in losses.items()} == pytest.approx(
            {name: float(value) for name, value in expected.items()}
        )
        assert {name.removeprefix("module.") for name in wrapped.state_dict()} == set(
            absorbed.state_dict
        )
    finally:
        dist.destroy_process_group()
