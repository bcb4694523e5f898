"""All twelve torchvision detectors, and two others: grafts hold by the bit, and kept classes score
as they did.
"""

import copy

import pytest
import torch

from detectors import efficient, tiny
from topwork import graft
from topwork.detectors.axes import head_spec, randomize
from topwork.detectors.builders import UninitializedParameters, build, resolve, torchvision_builders
from topwork.detectors.families import family_of
from topwork.surgery import receipt
from topwork.surgery.rows import rows_of
from topwork.surgery.verification import same_bits

COLUMNS = ("__background__", "person", "car", "N/A", "dog", "tree")
NAMED = ("__background__", "person", "car", "cone", "dog", "tree")
BUILDERS = [*torchvision_builders(), efficient.build, tiny.unusual]


def _id(builder):
    return (
        builder
        if isinstance(builder, str)
        else f"{builder.__module__.rpartition('.')[2]}.{builder.__name__}"
    )


@pytest.fixture(autouse=True)
def _quick_hashes(monkeypatch):
    """Receipts have their own tests; here the trunks' hundreds of megabytes aren't hashed each
    time.
    """
    whole = receipt.sha256_tensor
    monkeypatch.setattr(
        receipt,
        "sha256_tensor",
        lambda tensor: whole(tensor) if tensor.numel() < 10_000 else "0" * 64,
    )


@pytest.fixture(scope="module", params=BUILDERS, ids=_id)
def source(request):
    """A builder and random weights of five classes; the trunk's large tensors are left as they
    come, since nothing is computed from them.
    """
    torch.manual_seed(0)
    with UninitializedParameters():
        model = build(request.param, len(COLUMNS))
    for name, module in model.named_children():
        if name not in ("backbone", "rpn"):
            randomize(module)
    return request.param, model.state_dict()


def test_identity_plan_is_bit_identical(source):
    builder, state_dict = source
    done = graft(state_dict, list(NAMED[1:]), builder=builder, columns=NAMED)
    assert done.state_dict.keys() == state_dict.keys()
    assert all(same_bits(done.state_dict[name], tensor) for name, tensor in state_dict.items())


def test_everything_outside_the_class_axes_is_passed_on_uncopied(source):
    builder, state_dict = source
    done = graft(state_dict, ["dog", "person"], builder=builder, columns=COLUMNS)
    classes = {axis.tensor for axis in head_spec(builder, len(COLUMNS)).axes}
    assert {
        name for name, tensor in done.state_dict.items() if tensor is not state_dict[name]
    } == classes


@pytest.mark.parametrize("dropped", ["remove", "absorb"])
def test_graft_and_graft_back(source, dropped):
    builder, state_dict = source
    there = graft(
        state_dict,
        {"dog": "keep", "helmet": "new", "person": "keep"},
        builder=builder,
        columns=COLUMNS,
        dropped=dropped,
    )
    back = graft(there.weights, ["person", "dog"], builder=builder, dropped="remove")
    before, after = head_spec(builder, len(COLUMNS)), head_spec(builder, 3)
    for old, new in zip(before.axes, after.axes, strict=True):
        for was, now in ((0, 0), (1, 1), (4, 2)):
            assert same_bits(
                rows_of(state_dict[old.tensor], old, was),
                rows_of(back.state_dict[new.tensor], new, now),
            )


def _logits(builder, state_dict, columns, absorbed, dtype):
    """Class logits [..., columns] of a detector on seeded random features, by its own head."""
    with UninitializedParameters():
        model = build(builder, columns, absorbed=absorbed)
    model.load_state_dict(state_dict, strict=True)
    family = family_of(model, resolve(builder))
    if family.isolate is not None:
        family.isolate(model)
    model.to(dtype).eval()
    seen = []
    head = model.get_submodule(family.score_head)
    head.register_forward_hook(
        lambda module, inputs, output: seen.append(
            output[0] if isinstance(output, tuple) else output
        )
    )
    torch.manual_seed(1)
    with torch.no_grad():
        family.probe(model)
    return seen[0]


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float64, 1e-12)],
    ids=["float32", "float64"],
)
def test_kept_logits_and_absorbed_probabilities(source, dtype, tolerance):
    builder, state_dict = source
    if not isinstance(builder, str):
        pytest.skip("not torchvision's: the next test")
    plan = {"tree": "keep", "people": {"keep": "person"}}
    pretrained = _logits(builder, state_dict, 6, 0, dtype)
    removed = _logits(
        builder,
        graft(state_dict, plan, builder=builder, columns=COLUMNS, dropped="remove").state_dict,
        3,
        0,
        dtype,
    )
    torch.testing.assert_close(
        removed[..., 1:], pretrained[..., [5, 1]], rtol=tolerance, atol=tolerance
    )
    wide = graft(state_dict, plan, builder=builder, columns=COLUMNS, dropped="absorb")
    softmax = head_spec(builder, 6).softmax
    assert wide.weights.absorbed == (("car", "N/A", "dog") if softmax else ())
    absorbed = _logits(builder, wide.state_dict, 3, len(wide.weights.absorbed), dtype)
    assert absorbed.shape == removed.shape
    if softmax:
        torch.testing.assert_close(
            absorbed.softmax(-1)[..., 1:],
            pretrained.softmax(-1)[..., [5, 1]],
            rtol=0,
            atol=max(tolerance, 1e-12) / 10,
        )
        assert (
            removed.softmax(-1)[..., 1:] - pretrained.softmax(-1)[..., [5, 1]]
        ).abs().max() > 0.01
        new = graft(
            state_dict,
            {**plan, "helmet": "new", "vest": "new"},
            builder=builder,
            columns=COLUMNS,
            dropped="absorb",
            prior=0.01,
        )
        shifted = _logits(builder, new.state_dict, 5, len(new.weights.absorbed), dtype).softmax(-1)
        shift = pretrained.softmax(-1)[..., [5, 1]] - shifted[..., 1:3]
        assert shift.min() > -1e-6
        assert shift.max() <= 2 * 0.01
        background = pretrained.softmax(-1)[..., 0]
        torch.testing.assert_close(
            shifted[..., 3], 0.01 * background / (1 + 0.02 * background), rtol=1e-4, atol=1e-9
        )
    else:
        torch.testing.assert_close(absorbed, removed, rtol=0, atol=0)


def _scores(builder, state_dict, columns):
    """Label -> scores, highest first, of a detector that isn't torchvision's, on random pixels."""
    model = build(builder, columns).double().eval()
    model.load_state_dict(state_dict, strict=True)
    torch.manual_seed(1)
    with torch.no_grad():
        (item,) = (
            builder.family.probe(model)
            if hasattr(builder, "family")
            else model([torch.rand(3, 32, 32, dtype=torch.float64)])
        )
    return {
        label: item["scores"][item["labels"] == label].sort(descending=True).values
        for label in range(1, columns)
    }


@pytest.mark.parametrize("builder", [efficient.build, tiny.unusual], ids=_id)
def test_kept_scores_of_detectors_that_are_not_torchvisions(builder):
    torch.manual_seed(0)
    model = build(builder, 6).double()
    randomize(model)
    done = graft(
        model.state_dict(),
        {"tree": "keep", "hat": "new", "people": {"keep": "person"}},
        builder=builder,
        columns=COLUMNS,
    )
    before, after = _scores(builder, model.state_dict(), 6), _scores(builder, done.state_dict, 4)
    assert len(before[5].unique()) > 50
    torch.testing.assert_close([after[1], after[3]], [before[5], before[1]], rtol=1e-12, atol=0)
    torch.testing.assert_close(after[2], torch.full_like(after[2], 0.01), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dropped", ["remove", "absorb"])
def test_the_grafted_detector_loads_strictly_and_keeps_the_source_untouched(source, dropped):
    builder, state_dict = source
    original = {name: tensor.clone() for name, tensor in state_dict.items() if tensor.numel() < 1e5}
    done = graft(
        state_dict,
        {"car": "keep", "van": {"like": {"car": 3, "dog": 1}}},
        builder=builder,
        columns=COLUMNS,
        dropped=dropped,
    )
    with UninitializedParameters():
        model = build(builder, 3, absorbed=len(done.weights.absorbed))
    model.load_state_dict(copy.copy(done.state_dict), strict=True)
    for axis, old in zip(
        head_spec(builder, 3, absorbed=len(done.weights.absorbed)).axes,
        head_spec(builder, 6).axes,
        strict=True,
    ):
        expected = (
            0.75 * rows_of(state_dict[old.tensor], old, 2).double()
            + 0.25 * rows_of(state_dict[old.tensor], old, 4).double()
        )
        torch.testing.assert_close(
            rows_of(done.state_dict[axis.tensor], axis, 2), expected.float(), rtol=1e-6, atol=1e-7
        )
    assert all(
        torch.equal(state_dict[name], tensor)
        for name, tensor in original.items()
        if not tensor.is_floating_point() or not tensor.isnan().any()
    )
