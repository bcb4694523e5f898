"""Choosing and drawing test images."""

import pandas as pd

from topwork.report.pictures import Box, _overlay, choose
from topwork.report.run import Run
from topwork.report.story import Thresholds, before_after


def table(
    rows: list[tuple[int, str, float, float, float, float]], scores: list[float] | None = None
) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["image_id", "name", "x", "y", "width", "height"])
    return frame if scores is None else frame.assign(score=scores)


def test_choose_spreads_from_best_to_worst() -> None:
    scores = {image_id: 1 - image_id / 10 for image_id in range(10)}
    assert choose(scores, 4) == [0, 3, 6, 9]
    assert choose(scores, 0) == []
    assert choose(scores, 1) == [5]
    assert choose(scores, 99) == list(range(10))
    assert choose({}, 3) == []
    assert choose({7: 0.5, 3: 0.5}, 2) == [3, 7]


def test_labels_stay_inside_and_apart() -> None:
    boxes = [
        Box(0, 0, 60, 40, "person", "kept", 0.9),
        Box(2, 0, 30, 20, "helmet", "new", 0.8),
        Box(600, 440, 39, 39, "forklift", "new"),
    ]
    drawn = _overlay(boxes, 640, 480)
    import re

    labels = [
        tuple(map(float, place))
        for place in re.findall(
            r'class="label \w+" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', drawn
        )
    ]
    assert len(labels) == 3
    for x, y, width, height in labels:
        assert x >= 0
        assert y >= 0
        assert x + width <= 640.01
        assert y + height <= 480.01
    for index, first in enumerate(labels):
        for second in labels[index + 1 :]:
            apart = (
                first[0] + first[2] <= second[0]
                or second[0] + second[2] <= first[0]
                or first[1] + first[3] <= second[1]
                or second[1] + second[3] <= first[1]
            )
            assert apart


def test_thresholds_take_each_class_its_own() -> None:
    frame = table(
        [(1, "person", 0, 0, 1, 1), (1, "person", 0, 0, 1, 1), (1, "helmet", 0, 0, 1, 1)],
        [0.7, 0.5, 0.55],
    )
    strong = Thresholds(0.6, {("finetuned", "person"): 0.5, ("pretrained", "helmet"): 0.1}).strong(
        frame, "finetuned"
    )
    assert list(strong["score"]) == [0.7, 0.5]


def test_image_bytes_stand_once_and_are_used_thrice(finished_run: Run) -> None:
    pictures, why = before_after(finished_run, 3, Thresholds(0.5, {}))
    assert why == ""
    assert [len(picture.panels) for picture in pictures] == [3, 3, 3]
    for picture in pictures:
        assert [panel.title for panel in picture.panels] == [
            "Ground truth",
            "Pretrained",
            "Fine-tuned",
        ]
        assert picture.panels[0].drawing.count("data:image/jpeg;base64,") == 1
        assert all(
            "data:" not in panel.drawing and "<use " in panel.drawing
            for panel in picture.panels[1:]
        )
