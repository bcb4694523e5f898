"""The twelve torchvision detectors whole, on random images: kept classes score and detect as before
the graft.
"""

import copy

import pytest
import torch

from detectors.spread import _settle_norms
from topwork import graft
from topwork.detectors.axes import head_spec, randomize
from topwork.detectors.builders import UninitializedParameters, build, resolve, torchvision_builders
from topwork.detectors.families import family_of

pytestmark = pytest.mark.long

COLUMNS = ("__background__", "person", "car", "N/A", "dog", "tree")
KEPT = {"tree": "keep", "people": {"keep": "person"}}
OLD, NEW = [5, 1], [1, 2]  # columns of the kept classes before and after


@pytest.fixture(scope="module", params=torchvision_builders())
def source(request):
    """A builder, its arguments, and random weights whose features and scores differ from place to
    place.
    """
    small = {} if request.param.startswith("ssd") else {"min_size": 96, "max_size": 128}
    if "rcnn" in request.param:
        small["rpn_post_nms_top_n_test"] = 30
    torch.manual_seed(0)
    with UninitializedParameters():
        model = build(request.param, len(COLUMNS), small).eval()
    randomize(model)
    _settle_norms(model, 0)
    state_dict = model.state_dict()
    logits, _ = _run(request.param, small, state_dict, len(COLUMNS), 0, torch.float32)
    for axis in head_spec(request.param, len(COLUMNS), small).axes:
        if axis.role == "scores":
            state_dict[axis.tensor].mul_(2 / logits.std())
    return request.param, small, state_dict


def _run(builder, small, state_dict, columns, absorbed, dtype):
    """Raw logits [..., columns] and detections of a detector on two random images, every threshold
    open.
    """
    with UninitializedParameters():
        model = build(builder, columns, small, absorbed)
    model.load_state_dict(copy.copy(state_dict), strict=True)
    model.to(dtype).eval()
    last = getattr(model, "roi_heads", model)
    last.score_thresh, last.nms_thresh = 0.0, 0.5
    last.detections_per_img = 100_000
    if hasattr(last, "topk_candidates"):
        last.topk_candidates = 100_000
    last.mask_roi_pool = last.keypoint_roi_pool = (
        None  # masks and keypoints of 100,000 boxes take long
    )
    seen = []
    head = model.get_submodule(family_of(model, resolve(builder)).score_head)
    head.register_forward_hook(
        lambda module, inputs, output: seen.append(
            output[0] if isinstance(output, tuple) else output
        )
    )
    generator = torch.Generator().manual_seed(1)
    images = [
        torch.rand(3, 120, 100, generator=generator).to(dtype),
        torch.rand(3, 90, 128, generator=generator).to(dtype),
    ]
    with torch.no_grad():
        detections = model(images)
    return seen[0], detections


def _of(detections, label):
    """(scores, boxes) of one label in all images, highest first."""
    found = []
    for item in detections:
        chosen = item["labels"] == label
        order = item["scores"][chosen].argsort(descending=True, stable=True)
        found.append((item["scores"][chosen][order], item["boxes"][chosen][order]))
    return found


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float64, 1e-12)],
    ids=["float32", "float64"],
)
def test_kept_classes_on_random_images(source, dtype, tolerance):
    builder, small, state_dict = source
    softmax = head_spec(builder, 6, small).softmax

    def grafted(plan, dropped):
        done = graft(
            state_dict, plan, builder=builder, columns=COLUMNS, builder_args=small, dropped=dropped
        )
        return _run(
            builder, small, done.state_dict, len(plan) + 1, len(done.weights.absorbed), dtype
        )

    logits, detections = _run(builder, small, state_dict, len(COLUMNS), 0, dtype)
    assert logits[..., OLD].std(-2).min() > 0.01  # from place to place
    removed, _ = grafted(KEPT, "remove")
    scale = float(logits.abs().max())
    torch.testing.assert_close(
        removed[..., NEW], logits[..., OLD], rtol=tolerance, atol=tolerance * scale
    )
    absorbed, after = grafted(KEPT, "absorb")
    if not softmax:
        assert torch.equal(absorbed, removed)
    else:
        pretrained = logits.softmax(-1)
        torch.testing.assert_close(
            absorbed.softmax(-1)[..., NEW], pretrained[..., OLD], rtol=0, atol=min(tolerance, 1e-6)
        )
        assert (removed.softmax(-1)[..., NEW] - pretrained[..., OLD]).abs().max() > 0.01
        shifted, _ = grafted({**KEPT, "helmet": "new"}, "absorb")
        shift = pretrained[..., OLD] - shifted.softmax(-1)[..., NEW]
        assert shift.min() > -1e-6
        assert shift.max() <= 0.01  # the new row's prior
    if dtype is torch.float32:
        return  # rounding may change which of two overlapping boxes is the better one
    for old, new in zip(OLD, NEW, strict=True):
        assert any((item["labels"] == old).any() for item in detections)
        for (scores, boxes), (scores_after, boxes_after) in zip(
            _of(detections, old), _of(after, new), strict=True
        ):
            torch.testing.assert_close(scores_after, scores, rtol=1e-9, atol=0)
            torch.testing.assert_close(boxes_after, boxes, rtol=1e-9, atol=1e-9)
