"""The page's sections on what went in: pictures before and after, data findings, the surgery's
receipt.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from topwork.project.evaluate import MISTAKES
from topwork.project.names import MODEL_TITLES, SPLITS
from topwork.project.surgery import ChangedTensor, PlanRecord, PlanRow
from topwork.report.pictures import Box, ChosenImage, Picture, boxes_of, choose, draw
from topwork.report.run import Run
from topwork.report.sections import Table

SPLIT_NAMES = dict(zip(SPLITS, ("training", "validation", "test", "source", "replay"), strict=True))


def named(frame: pd.DataFrame, names: Mapping[int, str]) -> pd.DataFrame:
    """Annotations with their category's name as `name`; crowds left out."""
    rows = frame[~frame["iscrowd"].astype(bool)]
    return rows.assign(name=rows["category_id"].map(names).fillna("?"))


def kinds_of(run: Run) -> dict[str, str]:
    """Class name -> `kept` or `new` by the surgery's plan."""
    rows = run.receipt.plan.classes if run.receipt else []
    return {row.name: "kept" if row.origin == "keep" else "new" for row in rows}


@dataclass(frozen=True)
class Thresholds:
    """The score from which detections are drawn, by (model, class); `other` for those that aren't
    named.
    """

    other: float
    by_class: Mapping[tuple[str, str], float]

    def strong(self, frame: pd.DataFrame, model: str) -> pd.DataFrame:
        """The detections of a model that reach their threshold."""
        least = (
            frame["name"]
            .map({name: value for (of, name), value in self.by_class.items() if of == model})
            .fillna(self.other)
        )
        return frame[frame["score"] >= least.astype(float)]


def before_after(run: Run, count: int, thresholds: Thresholds) -> tuple[list[Picture], str]:
    """Test images with ground truth, pretrained and fine-tuned boxes; and, where there are none,
    why.
    """
    tuned = run.predictions("finetuned", "test")
    if count == 0:
        return [], "report.pictures is 0, so none is shown."
    if "test" not in run.tables.splits:
        return [], "The run has no test set, so there are no pictures of it."
    if tuned is None:
        return [], "evaluate left no predictions on the test set."
    scores = run.image_f1("finetuned", "test")
    if scores is None:
        return [], "evaluate left no scores of single images."
    test = run.tables.split("test")
    truth = named(test.annotations, run.tables.names("test"))
    kinds = kinds_of(run)
    before = run.predictions("pretrained", "test")
    models = [] if before is None else [("pretrained", thresholds.strong(before, "pretrained"))]
    models.append(("finetuned", thresholds.strong(tuned, "finetuned")))
    images = test.images.set_index("image_id")
    chosen: list[ChosenImage] = []
    for index, image_id in enumerate(choose(scores, count)):
        image = images.loc[image_id]
        panels = [
            (
                "Ground truth",
                boxes_of(
                    truth[truth["image_id"] == image_id], lambda name: kinds.get(name, "other")
                ),
            )
        ]
        for model, frame in models:
            panels.append(
                (
                    MODEL_TITLES[model].capitalize(),
                    boxes_of(
                        frame[frame["image_id"] == image_id], lambda name: kinds.get(name, "other")
                    ),
                )
            )
        chosen.append(
            _chosen(
                f"test-{index}",
                f"{image['file_name']}: F1 {scores[image_id]:.2f}",
                image,
                tuple(panels),
            )
        )
    return draw(run, chosen), ""


def mistake_pictures(run: Run, worst: Mapping[str, int], count: int) -> list[Picture]:
    """The worst test image of each error kind: what was annotated in grey, the mistakes in amber.

    Args:
        run: the run.
        worst: error kind -> id of its worst image, costliest kind first.
        count: how many kinds at most.
    """
    boxes = run.frame(MISTAKES)
    if boxes is None or "test" not in run.tables.splits:
        return []
    boxes = boxes[(boxes["set"] == "test") & (boxes["model"] == "finetuned")]
    test = run.tables.split("test")
    truth, images = (
        named(test.annotations, run.tables.names("test")),
        test.images.set_index("image_id"),
    )
    chosen: list[ChosenImage] = []
    for kind, image_id in list(worst.items())[:count]:
        here = boxes[(boxes["kind"] == kind) & (boxes["image_id"] == image_id)]
        wrong = boxes_of(here.drop(columns="score") if kind == "missed" else here, lambda _: "new")
        known = boxes_of(truth[truth["image_id"] == image_id], lambda _: "other")
        chosen.append(
            _chosen(
                f"mistake-{len(chosen)}",
                f"{kind}: {images.loc[image_id]['file_name']}",
                images.loc[image_id],
                (("Annotated dashed, mistakes amber", (*known, *wrong)),),
            )
        )
    return draw(run, chosen)


def _chosen(
    key: str, name: str, image: Any, panels: tuple[tuple[str, tuple[Box, ...]], ...]
) -> ChosenImage:
    size = int(image["width"]), int(image["height"])
    return ChosenImage(key, name, str(image["image_root"]), str(image["file_name"]), *size, panels)


@dataclass(frozen=True)
class DataStory:
    """The data set: its size by split, and what validate found in it."""

    sizes: Table
    findings: Table | None
    verdict: str
    pictures: list[Picture]
    dropped: int


def data_story(run: Run, pictures: int) -> DataStory:
    """Counts by split and class, findings by rule, and a picture for each of the worst rules."""
    tables = run.tables
    splits = tables.splits
    classes = list(dict.fromkeys(str(name) for name in tables.categories["name"]))
    counted = {
        split: Counter(named(tables.split(split).annotations, tables.names(split))["name"])
        for split in splits
    }
    used = [name for name in classes if any(counted[split][name] for split in splits)]
    kinds = kinds_of(run)
    targets = [name for name in used if name in kinds]
    others = [name for name in used if name not in kinds]
    rows: list[list[Any]] = [
        ["Images", *(f"{len(tables.split(split).images):,}" for split in splits)]
    ]
    rows += [[name, *(f"{counted[split][name]:,}" for split in splits)] for name in targets]
    if others:
        label = others[0] if len(others) == 1 else f"{len(others)} other classes"
        rows.append(
            [label, *(f"{sum(counted[split][name] for name in others):,}" for split in splits)]
        )
    heads = ("", *(SPLIT_NAMES.get(split, split).capitalize() for split in splits))
    sizes = Table(
        "Data set",
        "Images, and boxes by class, in each split.",
        heads,
        rows,
        tuple(range(1, len(heads))),
    )
    found = run.finding_rows
    dropped = len(run.findings.dropped) if run.findings else 0
    if found.empty:
        return DataStory(sizes, None, "The data gate found nothing at fault.", [], dropped)
    order = {"error": 0, "warning": 1, "note": 2}
    counts = Counter(zip(found["severity"].astype(str), found["rule"].astype(str), strict=True))
    findings_rows: list[list[Any]] = []
    for (severity, rule), count in sorted(
        counts.items(), key=lambda item: (order.get(item[0][0], 3), -item[1], item[0][1])
    ):
        first = found[found["rule"] == rule].iloc[0]
        findings_rows.append([rule, severity, f"{count:,}", str(first.get("message", ""))])
    by_severity = found.groupby("severity").size()
    numbers = ", ".join(
        f"{by_severity.get(severity, 0):,}"
        f" {severity}{'s' if by_severity.get(severity, 0) != 1 else ''}"
        for severity in order
    )
    table = Table(
        "Findings",
        "Findings of the data gate by rule; the example is the rule's first.",
        ("Rule", "Severity", "Count", "Example"),
        findings_rows,
        (2,),
    )
    return DataStory(
        sizes,
        table,
        f"The data gate found {numbers}.",
        finding_pictures(run, pictures),
        dropped,
    )


def finding_pictures(run: Run, count: int) -> list[Picture]:
    """One picture a rule that names an image which can be opened, the severest rules first."""
    rows = run.finding_rows
    if count == 0 or rows.empty or "image_id" not in rows:
        return []
    images = run.tables.images.set_index(["split", "image_id"])
    chosen: list[ChosenImage] = []
    seen: set[str] = set()
    order = {"error": 0, "warning": 1, "note": 2}
    for _, row in (
        rows.assign(rank=rows["severity"].map(order)).sort_values("rank", kind="stable").iterrows()
    ):
        if (
            row["rule"] in seen
            or len(chosen) >= count
            or pd.isna(row["image_id"])
            or pd.isna(row.get("x"))
        ):
            continue
        key = (row["split"], int(row["image_id"]))
        if key not in images.index:
            continue
        image = images.loc[key]
        box = Box(
            float(row["x"]),
            float(row["y"]),
            float(row["width"]),
            float(row["height"]),
            str(row["rule"]),
            "new",
        )
        seen.add(row["rule"])
        chosen.append(
            _chosen(
                f"finding-{len(chosen)}",
                f"{row['rule']}: {image['file_name']}",
                image,
                (("Finding", (box,)),),
            )
        )
    return draw(run, chosen)


def unlabelled_pictures(run: Run, count: int) -> list[Picture]:
    """Training images where the pretrained detector is sure of a kept class that the annotations
    lack, surest first.
    """
    boxes = run.unlabelled_boxes
    if boxes is None or boxes.empty or count == 0 or "train" not in run.tables.splits:
        return []
    train = run.tables.split("train")
    truth = named(train.annotations, run.tables.names("train"))
    images = train.images.set_index("image_id")
    ids = list(
        dict.fromkeys(boxes.sort_values("score", ascending=False, kind="stable")["image_id"])
    )
    chosen: list[ChosenImage] = []
    for image_id in [image_id for image_id in ids if image_id in images.index][:count]:
        image = images.loc[image_id]
        found = boxes_of(boxes[boxes["image_id"] == image_id], lambda _: "new")
        known = boxes_of(truth[truth["image_id"] == image_id], lambda _: "other")
        chosen.append(
            _chosen(
                f"unlabelled-{len(chosen)}",
                str(image["file_name"]),
                image,
                (("Labelled: dashed; perhaps missing: amber", (*known, *found)),),
            )
        )
    return draw(run, chosen)


@dataclass(frozen=True)
class Surgery:
    """The receipt for readers: totals, a row a class, a row a changed tensor."""

    facts: list[tuple[str, str]]
    classes: Table
    tensors: Table


def surgery_story(run: Run) -> Surgery | None:
    """What the graft kept, seeded, started new and dropped."""
    receipt = run.receipt
    if receipt is None or not receipt.tensors:
        return None
    changed, untouched = receipt.changed(), receipt.untouched()
    same = all(tensor.sha256_before == tensor.sha256_after for tensor in untouched)
    names = receipt.dropped.classes
    done = {
        "absorbed": "folded, frozen, into background (absorb)",
        "removed": "taken out (remove)",
    }[receipt.dropped.done]
    listed = f": {', '.join(names[:30])}{', …' if len(names) > 30 else ''}" if names else ""
    hashes = ", each with the same hash before and after" if same else ""
    facts = [
        ("Detector", f"{receipt.builder} ({receipt.activation} head)"),
        ("Untouched tensors", f"{len(untouched)} of {len(receipt.tensors)}{hashes}"),
        ("Changed tensors", f"{len(changed)}, along the class axis only"),
        ("Dropped classes", f"{len(names)}, {done}{listed}"),
    ]
    return Surgery(facts, _row_table(receipt.plan, changed), _tensor_table(changed))


def _row_table(plan: PlanRecord, changed: Sequence[ChangedTensor]) -> Table:
    rows: list[list[Any]] = []
    for planned in plan.classes:
        mine = [row for tensor in changed for row in tensor.rows if row.name == planned.name]
        count = sum(len(row.rows) for row in mine)
        same = sum(len(row.sources) == 1 and row.sources[0].sha256 == row.sha256 for row in mine)
        copied = planned.origin == "keep" or len(planned.sources) == 1
        rows.append(
            [
                planned.name,
                _origin_words(planned),
                f"{count:,}",
                f"{same} of {len(mine)} tensors" if copied else "–",
            ]
        )
    caption = (
        "Where each target class's head rows come from; bit-identical: tensors in which the copied"
        " rows have the source's very hash."
    )
    return Table(
        "Head rows by class",
        caption,
        ("Class", "Rows start as", "Rows", "Bit-identical"),
        rows,
        (2, 3),
    )


def _origin_words(row: PlanRow) -> str:
    if row.origin == "keep":
        (source,) = row.sources
        return "kept" if source == row.name else f"kept, from {source}"
    if row.origin == "like":
        even = len(set(row.sources.values())) <= 1
        parts = [name if even else f"{weight:.2f} {name}" for name, weight in row.sources.items()]
        return f"copied from {parts[0]}" if len(parts) == 1 else f"mean of {', '.join(parts)}"
    return f"new ({row.init or 'prior'})"


def _tensor_table(changed: Sequence[ChangedTensor]) -> Table:
    rows: list[list[Any]] = [
        [
            tensor.name,
            " × ".join(map(str, tensor.shape_before)),
            " × ".join(map(str, tensor.shape_after)),
            f"{tensor.layout.name}, axis {tensor.axis}",
            tensor.sha256_before[:12],
            tensor.sha256_after[:12],
        ]
        for tensor in changed
    ]
    return Table(
        "Changed tensors",
        "Every tensor that the surgery changed; the others are byte for byte what they were.",
        ("Tensor", "Shape before", "Shape after", "Class axis", "Hash before", "Hash after"),
        rows,
    )
