"""Grafts by hand, by property, and refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors import tiny
from topwork import demo_weights, graft, load
from topwork.classes import ClassPlan
from topwork.detectors.axes import head_spec, randomize
from topwork.detectors.builders import build
from topwork.errors import ClassPlanError, SurgeryError, WeightsError
from topwork.surgery.rows import rows_of
from topwork.surgery.verification import same_bits
from topwork.weights.format import Weights

COLUMNS = ("__background__", "person", "car", "truck", "dog", "N/A", "tree")
NAMES = [name for name in COLUMNS[1:] if name != "N/A"]
W, B = "head.weight", "head.bias"


@pytest.fixture
def points():
    """A softmax head of seven columns whose numbers one can read: row k is [k, k, ...], bias -k."""
    state_dict = build(tiny.points, 7).state_dict()
    state_dict[W] = torch.arange(7.0)[:, None].repeat(1, 6)
    state_dict[B] = -torch.arange(7.0)
    return state_dict


def test_rows_by_hand(points):
    plan = {
        "dog": "keep",
        "human": {"keep": "person"},
        "lorry": {"like": ["car", "truck"]},
        "bush": {"like": {"tree": 3, "dog": 1}},
        "helmet": "new",
        "void": {"new": "zero"},
    }
    done = graft(points, plan, builder=tiny.points, columns=COLUMNS, prior=0.25, dropped="remove")
    assert done.state_dict[W][:, 0].tolist() == [0, 4, 1, 2.5, 5.5, 0, 0]
    torch.testing.assert_close(
        done.state_dict[B], torch.tensor([0, -4, -1, -2.5, -5.5, math.log(0.25), 0])
    )
    assert done.weights.columns == (
        "__background__",
        "dog",
        "human",
        "lorry",
        "bush",
        "helmet",
        "void",
    )
    assert done.receipt["dropped"] == {
        "done": "removed",
        "exact": False,
        "classes": ["car", "truck", "N/A", "tree"],
    }
    wide = graft(points, plan, builder=tiny.points, columns=COLUMNS, dropped="absorb")
    assert wide.state_dict[W][:, 0].tolist() == [0, 4, 1, 2.5, 5.5, 0, 0, 2, 3, 5, 6]
    assert wide.weights.absorbed == ("car", "truck", "N/A", "tree")


def test_sigmoid_prior_is_a_probability():
    state_dict = build(tiny.retinanet, 7).state_dict()
    done = graft(
        state_dict,
        {"dog": "keep", "helmet": "new"},
        builder=tiny.retinanet,
        columns=COLUMNS,
        prior=0.02,
    )
    _, bias = head_spec(tiny.retinanet, 3).axes
    weight = done.state_dict["head.classification_head.cls_logits.weight"]
    assert torch.count_nonzero(weight[[2 + 3 * anchor for anchor in range(3)]]) == 0
    torch.testing.assert_close(
        rows_of(done.state_dict[bias.tensor], bias, 2).sigmoid(), torch.full((3,), 0.02)
    )


def test_new_box_and_mask_rows_are_the_mean_of_the_sources_classes():
    torch.manual_seed(0)
    state_dict = build(tiny.mask_rcnn, 7).state_dict()
    done = graft(state_dict, {"helmet": "new"}, builder=tiny.mask_rcnn, columns=COLUMNS)
    boxes = "roi_heads.box_predictor.bbox_pred.weight"
    expected = state_dict[boxes].reshape(7, 4, -1)[[1, 2, 3, 4, 6]].mean(0)  # N/A is no class
    torch.testing.assert_close(done.state_dict[boxes].reshape(2, 4, -1)[1], expected)
    masks = "roi_heads.mask_predictor.mask_fcn_logits.weight"
    torch.testing.assert_close(
        done.state_dict[masks][1], state_dict[masks][[1, 2, 3, 4, 6]].mean(0)
    )


def test_reference_rows_are_the_builders_own_under_the_seed(points):
    done, same, other = (
        graft(
            points,
            {"dog": "keep", "cat": {"new": "reference"}},
            builder=tiny.points,
            columns=COLUMNS,
            seed=seed,
        )
        for seed in (5, 5, 6)
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        reference = build(tiny.points, 3)
    assert torch.equal(done.state_dict[W][2], reference.head.weight[2])
    assert torch.equal(same.state_dict[W], done.state_dict[W])
    assert not torch.equal(other.state_dict[W], done.state_dict[W])


RULES = st.one_of(
    st.just("keep-own"),
    st.builds(lambda name: {"keep": name}, st.sampled_from(NAMES)),
    st.builds(
        lambda names: {"like": names},
        st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True),
    ),
    st.sampled_from([{"new": "prior"}, {"new": "zero"}]),
)


@settings(max_examples=40, deadline=None)
@given(
    rules=st.lists(RULES, min_size=1, max_size=6),
    own=st.permutations(NAMES),
    dropped=st.sampled_from(["remove", "absorb"]),
    builder=st.sampled_from([tiny.ssd, tiny.faster_rcnn, tiny.retinanet, tiny.unusual]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_random_plans(rules, own, dropped, builder, dtype):
    """Kept and absorbed rows are bit-identical, whatever the plan; everything else passes
    untouched; the receipt says so.
    """
    state_dict = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in build(builder, 7).state_dict().items()
    }
    plan = {
        (own[i % 5] if rule == "keep-own" else f"class {i}"): "keep" if rule == "keep-own" else rule
        for i, rule in enumerate(rules)
    }
    done = graft(state_dict, plan, builder=builder, columns=COLUMNS, dropped=dropped)
    before, after = (
        head_spec(builder, 7),
        head_spec(builder, len(plan) + 1, absorbed=len(done.weights.absorbed)),
    )
    everything = [*done.weights.columns, *done.weights.absorbed]
    for name, tensor in done.state_dict.items():
        assert tensor.dtype == state_dict[name].dtype
        axis, old = after.axis_of(name), before.axis_of(name)
        if axis is None:
            assert tensor is state_dict[name]
            continue
        taken = sorted(row for column in range(len(everything)) for row in axis.rows(column))
        assert taken == list(range(tensor.shape[axis.axis]))  # every row belongs to just one class
        for column, target in enumerate(everything):
            rule = plan.get(target)
            source = (
                target
                if rule == "keep" or column == 0 or column >= len(done.weights.columns)
                else rule.get("keep")
            )
            if source is not None and axis.rows(column) and source != "N/A":
                assert same_bits(
                    rows_of(tensor, axis, column),
                    rows_of(state_dict[name], old, COLUMNS.index(source)),
                )
    kept = {
        rule["keep"] if isinstance(rule, dict) else name
        for name, rule in plan.items()
        if rule == "keep" or "keep" in rule
    }
    absorbs = before.softmax and dropped == "absorb"
    assert list(done.weights.absorbed) == (
        [name for name in COLUMNS[1:] if name not in kept] if absorbs else []
    )


def _logits(builder, state_dict, columns, absorbed=0):
    """float64[..., columns] on seeded noise, by the detector's own head."""
    model = build(builder, columns, absorbed=absorbed).double().eval()
    model.load_state_dict(state_dict, strict=True)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        if builder is tiny.points:
            return model(torch.randn(9, 5, generator=generator, dtype=torch.float64))
        features = model.backbone(
            torch.randn(1, 3, 32, 32, generator=generator, dtype=torch.float64)
        )
        return model.head.classification_head(list(features.values()))


@settings(max_examples=40, deadline=None)
@given(
    rules=st.lists(RULES, min_size=1, max_size=6),
    own=st.permutations(NAMES),
    dropped=st.sampled_from(["remove", "absorb"]),
    builder=st.sampled_from([tiny.points, tiny.ssd, tiny.retinanet]),
    prior=st.floats(1e-6, 0.5),
)
def test_random_plans_score_as_they_say(rules, own, dropped, builder, prior):
    """Kept logits agree to 1e-12; like's are the mean; absorbed softmaxes give kept classes what
    new rows leave of their probability.
    """
    torch.manual_seed(0)
    source = build(builder, 7)
    randomize(source)
    state_dict = source.double().state_dict()
    plan = {
        (own[i % 5] if rule == "keep-own" else f"class {i}"): "keep" if rule == "keep-own" else rule
        for i, rule in enumerate(rules)
    }
    done = graft(state_dict, plan, builder=builder, columns=COLUMNS, dropped=dropped, prior=prior)
    before = _logits(builder, state_dict, 7)
    after = _logits(builder, done.state_dict, len(plan) + 1, len(done.weights.absorbed))
    softmax = builder is not tiny.retinanet
    expected, kept = (
        [
            torch.logsumexp(
                before[..., [0, *(COLUMNS.index(name) for name in done.weights.absorbed)]], -1
            )
        ],
        {},
    )
    for label, (name, rule) in enumerate(plan.items(), start=1):
        kind, what = ("keep", name) if rule == "keep" else next(iter(rule.items()))
        if kind == "new":
            fresh = (
                before[..., 0] + math.log(prior)
                if softmax
                else torch.full_like(before[..., 0], math.log(prior / (1 - prior)))
            )
            expected.append(fresh if what == "prior" else torch.zeros_like(fresh))
        else:
            expected.append(
                before[
                    ..., [COLUMNS.index(one) for one in ([what] if isinstance(what, str) else what)]
                ].mean(-1)
            )
        if kind == "keep":
            kept.setdefault(what, []).append(label)
    torch.testing.assert_close(after, torch.stack(expected, -1), rtol=1e-12, atol=1e-12)
    exact = not softmax or (
        all(len(labels) == 1 for labels in kept.values()) and dropped == "absorb"
    )
    assert done.receipt["dropped"]["exact"] is exact
    if softmax and exact:
        was, now = before.softmax(-1), after.softmax(-1)
        fresh = [label for label in range(1, len(plan) + 1) if [label] not in kept.values()]
        left = 1 - now[..., fresh].sum(-1)
        for name, (label,) in kept.items():
            torch.testing.assert_close(
                now[..., label], was[..., COLUMNS.index(name)] * left, rtol=1e-12, atol=1e-15
            )


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn], ids=str
)
def test_other_precisions(points, dtype):
    state_dict = {name: tensor.to(dtype) for name, tensor in points.items()}
    done = graft(state_dict, {"dog": "keep", "helmet": "new"}, builder=tiny.points, columns=COLUMNS)
    assert {tensor.dtype for tensor in done.state_dict.values()} == {dtype}
    torch.testing.assert_close(
        done.state_dict[B][2].double(), torch.tensor(math.log(0.01)).to(dtype).double()
    )
    assert load(done.weights, builder=tiny.points).head.bias.dtype == torch.float32


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_rows_that_are_not_finite(points, value):
    points[W][4, 2] = value
    with pytest.raises(
        SurgeryError, match=r"head.weight: NaN or infinite numbers in the rows of dog"
    ):
        graft(points, {"person": "keep", "dog": "keep"}, builder=tiny.points, columns=COLUMNS)
    # the row is gone
    options = {"builder": tiny.points, "columns": COLUMNS}
    assert graft(points, {"person": "keep"}, **options, dropped="remove")
    with pytest.raises(SurgeryError, match="dog"):
        graft(points, {"person": "keep"}, builder=tiny.points, columns=COLUMNS, dropped="absorb")


def test_misfit_weights_name_every_tensor(points):
    points["head.bias"] = torch.zeros(9)
    points["extra.weight"] = points.pop("backbone.weight")
    with pytest.raises(
        WeightsError,
        match=(
            r"missing: backbone.weight \[6, 5\].*left over: extra.weight \[6, 5\].*head.bias"
            r" \(found \[9\], expected \[7\]\)"
        ),
    ):
        graft(points, {"person": "keep"}, builder=tiny.points, columns=COLUMNS)


@pytest.mark.parametrize(
    "builder", [tiny.ssd, tiny.mask_rcnn, tiny.unusual], ids=lambda builder: builder.__name__
)
def test_a_wrong_number_of_columns_is_seen_in_the_shapes(builder):
    state_dict = build(builder, 9).state_dict()
    with pytest.raises(WeightsError, match=r"class columns are 9, not 7: mend fetch\.classes"):
        graft(state_dict, {"person": "keep"}, builder=builder, columns=COLUMNS)


def test_every_fault_is_named_however_many(points):
    with pytest.raises(WeightsError, match=r"60 left over: extra 0 \[1\], .*extra 59 \[1\]\."):
        graft(
            {**points, **{f"extra {i}": torch.zeros(1) for i in range(60)}},
            ["person"],
            builder=tiny.points,
            columns=COLUMNS,
        )


def test_prefixed_weights_get_a_hint(points):
    wrapped = {f"module.{name}": tensor for name, tensor in points.items()}
    with pytest.raises(
        WeightsError,
        match=(
            r"4 tensors don't fit .* begin with 'module\.', and without it every tensor"
            r" fits.*fetch.prefix: module\."
        ),
    ):
        graft(wrapped, {"person": "keep"}, builder=tiny.points, columns=COLUMNS)
    del wrapped["module.head.bias"]
    with pytest.raises(
        WeightsError,
        match=r"missing: .*head.bias \[7\].*left over: .*The names begin with 'module\.'",
    ):
        graft(wrapped, {"person": "keep"}, builder=tiny.points, columns=COLUMNS)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            {"persn": "keep"},
            r"persn wants 'persn', which isn't among the weights' 5 classes; near: person",
        ),
        ({"cone": {"like": ["car", "cat"]}}, r"cone wants 'cat', which isn't among"),
        (["person", "person"], r"person named twice"),
        ({"": "keep"}, r"'' is no class name"),
        ({}, r"no class named"),
        ({"__background__": "keep"}, r"'__background__' is reserved"),
        ({"N/A": "keep"}, r"'N/A' is reserved"),
        ({"a": {"like": []}}, r"a: like: \[\], expected a class"),
        ({"a": {"like": {"car": -1}}}, r"classes with positive weights"),
        ({"a": {"new": "best"}}, r"is no rule, expected"),
        ({"a": {"like": {"car": 1e308, "dog": 1e308}}}, r"classes with positive weights"),
        ({"a": {"like": {"car": math.nan}}}, r"classes with positive weights"),
        ({" hat": "new"}, r"' hat' begins or ends with a space .* expected 'hat'"),
        ({"hard\nhat": "new"}, r"'hard\\nhat' begins .* expected 'hard hat'"),
        (
            {"a": "Keep", "": "new", "b": {"like": []}},
            r"a: 'Keep' is no rule.*; '' is no class name.*; b: like: \[\], expected",
        ),
    ],
    ids=[
        "misspelt",
        "unknown",
        "double",
        "empty name",
        "empty plan",
        "background",
        "unused",
        "no source",
        "negative",
        "unknown init",
        "infinite sum",
        "NaN",
        "space",
        "line break",
        "all faults together",
    ],
)
def test_plans_that_contradict(points, plan, message):
    with pytest.raises(ClassPlanError, match=message):
        graft(points, plan, builder=tiny.points, columns=COLUMNS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": 0}, "prior is 0"),
        ({"prior": math.nan}, "prior is nan"),
        ({"seed": 1 << 64}, "seed is 18"),
    ],
)
def test_numbers_out_of_range(points, options, message):
    with pytest.raises(ClassPlanError, match=message):
        graft(points, {"person": "keep"}, builder=tiny.points, columns=COLUMNS, **options)


def test_a_doubled_class_is_not_called_exact(points):
    """Two columns with one source's rows share its probability in a softmax; in a sigmoid head each
    has the whole of it.
    """
    plan = {"person": "keep", "human": {"keep": "person"}}
    assert (
        graft(points, plan, builder=tiny.points, columns=COLUMNS, dropped="absorb").receipt[
            "dropped"
        ]["exact"]
        is False
    )
    sigmoid = build(tiny.unusual, 7).state_dict()
    assert (
        graft(sigmoid, plan, builder=tiny.unusual, columns=COLUMNS).receipt["dropped"]["exact"]
        is True
    )
    everything = ["a", "b", "c", "d", "e", "f"]  # nothing is dropped
    assert (
        graft(
            points, everything, builder=tiny.points, columns=("__background__", *everything)
        ).receipt["dropped"]["exact"]
        is True
    )


def test_a_name_that_two_columns_bear(points):
    with pytest.raises(
        ClassPlanError, match="car wants 'car', which 2 columns of the weights have"
    ):
        graft(
            points,
            ["car"],
            builder=tiny.points,
            columns=("__background__", "person", "car", "car", "dog", "N/A", "tree"),
        )


def test_a_plain_state_dict_needs_builder_and_columns(points):
    with pytest.raises(SurgeryError, match="without `builder` and `columns`"):
        graft(points, ["person"])
    with pytest.raises(
        SurgeryError,
        match=r"found str, expected weights or a state_dict\. Give `topwork\.read_weights\(FILE\)`",
    ):
        graft("weights.pth", ["person"])
    with pytest.raises(
        SurgeryError, match=r"epoch \(int\) in the state_dict; expected tensors alone"
    ):
        graft({**points, "epoch": 3}, ["person"], builder=tiny.points, columns=COLUMNS)
    with pytest.raises(
        ClassPlanError, match=r"columns begin with 'person', expected '__background__'"
    ):
        graft(points, ["person"], builder=tiny.points, columns=COLUMNS[1:])
    with pytest.raises(
        ClassPlanError, match=r"class plan: found 'person', expected rules by class name"
    ):
        graft(points, "person", builder=tiny.points, columns=COLUMNS)
    assert (
        graft(
            build(tiny.points, 21).state_dict(), ["cat"], builder=tiny.points, columns="voc-21"
        ).weights.columns[1]
        == "cat"
    )


def test_prior_needs_a_bias():
    from torch import nn

    class Model(tiny.SoftmaxLinear):
        def __init__(self, num_classes):
            super().__init__(num_classes)
            self.head = nn.Linear(6, num_classes, bias=False)

    def build_model(num_classes):
        return Model(num_classes)

    build_model.family = tiny.points.family
    state_dict = build_model(7).state_dict()
    with pytest.raises(
        SurgeryError, match=r"head.weight: helmet: `new: prior` needs a bias next to it"
    ):
        graft(state_dict, {"helmet": "new"}, builder=build_model, columns=COLUMNS)
    assert (
        graft(state_dict, {"helmet": {"new": "zero"}}, builder=build_model, columns=COLUMNS)
        .state_dict[W][1]
        .abs()
        .sum()
        == 0
    )


def test_the_ten_lines():
    """What the README shows, on torchvision's own detector."""
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    weights = demo_weights()
    done = graft(
        weights.state_dict,
        {"person": "keep", "helmet": "new", "forklift": {"like": ["truck", "car"]}},
        builder=ssdlite320_mobilenet_v3_large,
        columns=weights.columns,
        dropped="remove",
    )
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    model.load_state_dict(done.state_dict, strict=True)
    assert model.eval()([torch.rand(3, 64, 64)])[0].keys() == {"boxes", "scores", "labels"}


def test_plan_object_and_weights_object_agree_with_plain_ones(points):
    weights = Weights(points, COLUMNS, "unused")
    one = graft(weights, ClassPlan.parse(["dog", "car"]), builder=tiny.points)
    other = graft(points, ["dog", "car"], builder=tiny.points, columns=COLUMNS)
    assert all(
        torch.equal(one.state_dict[name], tensor) for name, tensor in other.state_dict.items()
    )
    with pytest.raises(ClassPlanError, match="graft: dropped, seed given with a ClassPlan"):
        graft(weights, ClassPlan.parse(["dog"]), builder=tiny.points, dropped="absorb", seed=1)
    with pytest.raises(SurgeryError, match="bring their own columns"):
        graft(weights, ["dog"], builder=tiny.points, columns=COLUMNS)
