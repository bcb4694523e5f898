"""Class axes: found, proved, and refused where they can't be."""

import pytest
import torch

from detectors import efficient, tiny
from topwork import graft
from topwork.detectors.axes import head_spec
from topwork.detectors.builders import build, shapes_of, torchvision_builders
from topwork.errors import SurgeryError

SCORES = "roi_heads.box_predictor.cls_score"
BOXES = "roi_heads.box_predictor.bbox_pred"
MASKS = "roi_heads.mask_predictor.mask_fcn_logits"
# builder -> (softmax, {module: (layout, rows a class)}); read off torchvision's sources by hand
EXPECTED = {
    **{
        name: (True, {SCORES: ("plain", 1), BOXES: ("class-major", 4)})
        for name in (
            "fasterrcnn_mobilenet_v3_large_320_fpn",
            "fasterrcnn_mobilenet_v3_large_fpn",
            "fasterrcnn_resnet50_fpn",
            "fasterrcnn_resnet50_fpn_v2",
            "keypointrcnn_resnet50_fpn",
        )
    },
    **{
        name: (True, {SCORES: ("plain", 1), BOXES: ("class-major", 4), MASKS: ("plain", 1)})
        for name in ("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2")
    },
    "fcos_resnet50_fpn": (False, {"head.classification_head.cls_logits": ("plain", 1)}),
    "retinanet_resnet50_fpn": (False, {"head.classification_head.cls_logits": ("anchor-major", 9)}),
    "retinanet_resnet50_fpn_v2": (
        False,
        {"head.classification_head.cls_logits": ("anchor-major", 9)},
    ),
    "ssd300_vgg16": (
        True,
        {
            f"head.classification_head.module_list.{level}": ("anchor-major", rows)
            for level, rows in enumerate([4, 6, 6, 6, 4, 4])
        },
    ),
    "ssdlite320_mobilenet_v3_large": (
        True,
        {
            f"head.classification_head.module_list.{level}.1": ("anchor-major", 6)
            for level in range(6)
        },
    ),
}


def test_the_table_speaks_of_every_torchvision_detector():
    assert sorted(EXPECTED) == sorted(torchvision_builders())


@pytest.mark.parametrize("builder", sorted(EXPECTED))
def test_class_axes_of_torchvision(builder):
    softmax, modules = EXPECTED[builder]
    found = head_spec(builder, 91)
    assert found.softmax is softmax
    assert {axis.tensor: (axis.layout, axis.multiplicity) for axis in found.axes} == {
        f"{module}.{kind}": expected
        for module, expected in modules.items()
        for kind in ("weight", "bias")
    }
    assert all(axis.axis == 0 and axis.background and axis.columns == 91 for axis in found.axes)
    # what is computed from two small detectors is what the builder makes
    assert found.shapes == shapes_of(builder, 91)


def test_rows_by_hand():
    ssd = {axis.tensor: axis for axis in head_spec("ssdlite320_mobilenet_v3_large", 3).axes}[
        "head.classification_head.module_list.0.1.bias"
    ]
    assert ssd.rows(1) == [1, 4, 7, 10, 13, 16]  # [6 anchors, 3 columns]
    boxes = {axis.tensor: axis for axis in head_spec(tiny.faster_rcnn, 3).axes}[f"{BOXES}.bias"]
    assert boxes.rows(2) == [8, 9, 10, 11]  # [3 columns, 4 numbers]
    assert boxes.rows(3) == []


def test_absorbed_columns_widen_scores_alone():
    axes = {axis.tensor: axis for axis in head_spec(tiny.mask_rcnn, 3, absorbed=2).axes}
    assert {axis.role: axis.columns for axis in axes.values()} == {
        "scores": 5,
        "boxes": 3,
        "masks": 3,
    }
    found = head_spec(tiny.mask_rcnn, 3, absorbed=2)
    assert found.shapes == {
        name: tuple(tensor.shape)
        for name, tensor in build(tiny.mask_rcnn, 3, absorbed=2).state_dict().items()
    }


def test_effdet_from_pypi():
    found = head_spec(efficient.build, 21)
    assert not found.softmax
    assert [
        (axis.tensor, axis.layout, axis.multiplicity, axis.background) for axis in found.axes
    ] == [
        ("class_net.predict.conv_pw.weight", "anchor-major", 9, False),
        ("class_net.predict.conv_pw.bias", "anchor-major", 9, False),
    ]
    assert found.axes[1].rows(0) == []
    assert found.axes[1].rows(1) == [20 * anchor for anchor in range(9)]


def test_an_unusual_layout_is_proved_without_being_declared():
    found = head_spec(tiny.unusual, 4)
    assert [(axis.tensor, axis.layout, axis.outer, axis.inner) for axis in found.axes] == [
        ("logits.weight", "2 x class x 3", 2, 3),
        ("logits.bias", "2 x class x 3", 2, 3),
    ]
    assert found.axes[0].rows(2) == [3, 4, 5, 12, 13, 14]  # [2, 3 classes, 3]
    assert not found.softmax


def test_shared_rows_are_found_under_each_name():
    assert [(axis.tensor, axis.outer, axis.inner) for axis in head_spec(tiny.tied, 4).axes] == [
        (f"{name}.{kind}", 2, 3) for name in ("logits", "again") for kind in ("weight", "bias")
    ]
    state_dict = tiny.tied(4).state_dict()
    done = graft(state_dict, ["b"], builder=tiny.tied, columns=("__background__", "a", "b", "c"))
    assert torch.equal(done.state_dict["logits.weight"], done.state_dict["again.weight"])
    tiny.tied(2).load_state_dict(done.state_dict, strict=True)


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (
            tiny.scrambled,
            (
                r"scrambled: no layout can be proved with 5 columns for logits.weight \[24, 8, 1,"
                r" 1\] \(axis 0, 6 rows a class\)"
            ),
        ),
        (tiny.silent, r"silent: its head can.t be probed .*Expected torchvision.s output"),
        (
            tiny.deaf,
            r"deaf: ignores num_classes: no tensor's shape differs between 5 and 6 columns",
        ),
        (
            tiny.crossed,
            r"don't grow by whole classes along one axis: confusion \[5, 5\] -> \[6, 6\]",
        ),
    ],
    ids=["scrambled", "silent", "deaf", "crossed"],
)
def test_what_cannot_be_proved_is_refused(builder, message):
    with pytest.raises(SurgeryError, match=message):
        head_spec(builder, 9)


def test_a_wrongly_declared_layout_is_refused():
    from dataclasses import replace

    def build_wrongly(num_classes):
        return efficient.build(num_classes)

    build_wrongly.family = replace(efficient.build.family, layouts={"scores": "class-major"})
    with pytest.raises(SurgeryError, match=r"class_net.predict.conv_pw.weight \[36, 64, 1, 1\]"):
        head_spec(build_wrongly, 9)
