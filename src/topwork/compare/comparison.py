"""Several runs side by side: params, data, weights and metrics of each against the first.

Where two runs were evaluated on the same test set, the difference of two AP has an interval of
its own, from a paired bootstrap: each resample of the images gives both figures. That separates far
smaller differences from chance than two separate intervals do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from topwork.errors import TopworkError
from topwork.evaluation.assessment import Assessment, assess
from topwork.metrics.bootstrap import interval
from topwork.metrics.sets import truths_of
from topwork.metrics.truth import Truth
from topwork.params.evaluate import EvaluateParams
from topwork.project.evaluate import CLASSES
from topwork.project.finetune import FINETUNED
from topwork.report.figures import ClassFigures, Estimate, class_figures
from topwork.report.lineage import flatten
from topwork.report.run import Run
from topwork.report.story import named

MODEL = "finetuned"


@dataclass(frozen=True)
class SplitChange:
    """What became of one split between two runs.

    Attributes:
        split: its name.
        images: (added, removed, changed); changed: same file name, other content or size.
        annotations: (added, removed, changed) by annotation id; changed: other image, class, box or
            crowd flag.
        classes: class -> (boxes before, boxes after), where they differ.
    """

    split: str
    images: tuple[int, int, int]
    annotations: tuple[int, int, int]
    classes: Mapping[str, tuple[int, int]]

    @property
    def same(self) -> bool:
        """Whether nothing changed."""
        return not any(self.images) and not any(self.annotations) and not self.classes


@dataclass(frozen=True)
class MetricRow:
    """A class on a set: the fine-tuned AP and the retention of each run, and each later run's
    difference to the first.

    Attributes:
        differences: run's place -> AP minus the first run's, with the paired interval; None where
            there's none.
        elsewhere: places of runs whose images, or objects of the class, differ from the first
            run's, so that no interval can pair them.
    """

    name: str
    on: str
    ap: Sequence[Estimate | None]
    retention: Sequence[Estimate | None]
    differences: Mapping[int, Estimate] = field(default_factory=dict)
    elsewhere: frozenset[int] = frozenset()

    def verdict(self, index: int) -> str:
        """What the difference of a run means: better, worse, or within chance."""
        found = self.differences.get(index)
        if found is None:
            return ""
        if index in self.elsewhere:
            return "other set"
        if abs(found.value) < 1e-12 and found.low in (None, 0.0) and found.high in (None, 0.0):
            return "equal"
        if found.low is None or found.high is None:
            return "no interval"
        return "better" if found.low > 0 else "worse" if found.high < 0 else "within chance"


@dataclass(frozen=True)
class Comparison:
    """All of it; the others are compared with the first run."""

    runs: Sequence[Run]
    params: list[tuple[str, list[str]]]
    data: list[list[SplitChange]]
    weights: list["pd.DataFrame | str"]
    metrics: list[MetricRow]

    @property
    def names(self) -> list[str]:
        """The runs' names."""
        return [run.name for run in self.runs]


def compare_runs(runs: Sequence[Run], documents: Sequence[Mapping[str, Any]]) -> Comparison:
    """Compare runs.

    Args:
        runs: two or more, each with a name.
        documents: each run's params.yaml, untyped: an older revision may hold keys that are unknown
            today.

    Raises:
        TopworkError: fewer than two runs, or a run without an evaluation.
    """
    if len(runs) < 2:
        raise TopworkError(
            "compare: one revision given, expected two or more, such as `topwork compare HEAD~1"
            " HEAD`."
        )
    for run in runs:
        if not run.has(CLASSES):
            raise TopworkError(
                f"compare: {run.name} has no {CLASSES}: nothing was evaluated there, or its cache"
                " is gone (try `dvc fetch --all-commits`)."
            )
    first, *others = runs
    return Comparison(
        runs,
        changed_params(documents),
        [changed_data(first, other) for other in others],
        [moved_rows(first, other) for other in others],
        metric_rows(runs),
    )


def changed_params(documents: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Keys whose values aren't the same in all, with each run's value (empty where it has none)."""
    flat = [dict(flatten(document)) for document in documents]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    return [
        (key, values) for key in keys if len(set(values := [one.get(key, "") for one in flat])) > 1
    ]


def changed_data(first: Run, other: Run) -> list[SplitChange]:
    """Images and annotations added, removed and changed, split by split; only splits where
    something did.
    """
    splits = list(dict.fromkeys([*first.tables.splits, *other.tables.splits]))
    changes = [_split_change(first, other, split) for split in splits]
    return [change for change in changes if not change.same]


def _split_change(first: Run, other: Run, split: str) -> SplitChange:
    images = [_images(run, split) for run in (first, other)]
    shared = set(images[0]) & set(images[1])
    other_picture = {name for name in shared if images[0][name] != images[1][name]}
    rows = [_annotations(run, split) for run in (first, other)]
    both = rows[0].index.intersection(rows[1].index)
    changed = int((rows[0].loc[both] != rows[1].loc[both]).any(axis=1).sum()) if len(both) else 0
    counts = [run["name"].value_counts() for run in rows]
    classes = {
        str(name): (int(counts[0].get(name, 0)), int(counts[1].get(name, 0)))
        for name in dict.fromkeys([*sorted(counts[0].index), *sorted(counts[1].index)])
        if counts[0].get(name, 0) != counts[1].get(name, 0)
    }
    return SplitChange(
        split,
        (len(set(images[1]) - shared), len(set(images[0]) - shared), len(other_picture)),
        (len(rows[1]) - len(both), len(rows[0]) - len(both), changed),
        classes,
    )


def _images(run: Run, split: str) -> dict[str, tuple[Any, ...]]:
    """File name -> (width, height, hash of the content or None)."""
    rows = run.tables.images[run.tables.images["split"] == split]
    return {
        str(name): (int(width), int(height), run.files.fingerprint(f"{folder}/{name}"))
        for name, folder, width, height in zip(
            rows["file_name"], rows["image_root"], rows["width"], rows["height"], strict=True
        )
    }


def _annotations(run: Run, split: str) -> pd.DataFrame:
    """Rows by annotation id: file name, class, box, crowd flag."""
    columns = ["file_name", "name", "x", "y", "width", "height", "iscrowd"]
    if split not in run.tables.splits:
        return pd.DataFrame(columns=columns)
    tables = run.tables.split(split)
    files = dict(zip(tables.images["image_id"], tables.images["file_name"], strict=True))
    rows = tables.annotations
    rows = rows.assign(
        file_name=rows["image_id"].map(files), name=rows["category_id"].map(run.tables.names(split))
    )
    return rows.set_index("annotation_id")[columns]


def moved_rows(first: Run, other: Run) -> "pd.DataFrame | str":
    """Distance of each class's head rows, of all absorbed ones together, and of the rest, between
    two fine-tuned weights; or why there is none. The columns are those of
    `surgery.inspection.by_class`.
    """
    from topwork.surgery.inspection import by_class, diff

    if not first.has(FINETUNED) or not other.has(FINETUNED):
        return f"{FINETUNED} isn't there in both."
    before, after = first.read_bytes(FINETUNED), other.read_bytes(FINETUNED)
    if before == after:
        return "The two files are equal, byte for byte."
    try:
        return by_class(diff(_weights(before), _weights(after))).frame()
    except TopworkError as error:
        return f"They can't be compared: {error}"


def _weights(content: bytes) -> Any:
    import tempfile
    from pathlib import Path

    from topwork.weights.format import read_weights

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        path.write_bytes(content)
        found = read_weights(path, trust=True)  # the project's own, of another revision
        # the file goes, its mapping with it
        state = {name: tensor.clone() for name, tensor in found.state_dict.items()}
        return replace(found, state_dict=state)


def metric_rows(runs: Sequence[Run]) -> list[MetricRow]:
    """Each class on each set that any run evaluated, in the order of the first that has it."""
    tables = [{(figure.on, figure.name): figure for figure in class_figures(run)} for run in runs]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    resampling = next(
        (
            run.params.evaluate
            for run in runs
            if run.params is not None and run.params.evaluate.bootstrap
        ),
        EvaluateParams(),
    )
    assessed = [_assessed(run, resampling) for run in runs]
    rows = []
    for on, name in keys:
        figures: list[ClassFigures | None] = [table.get((on, name)) for table in tables]
        aps = [figure.ap[MODEL] if figure else None for figure in figures]
        differences = {
            index: found
            for index in range(1, len(runs))
            if (
                found := _difference(
                    aps[0], aps[index], assessed[0].get(on), assessed[index].get(on), name
                )
            )
            is not None
        }
        truths = [models[on].truth if on in models else None for models in assessed]
        elsewhere = frozenset(
            index for index in differences if not _same_set(truths[0], truths[index], name)
        )
        rows.append(
            MetricRow(
                name,
                on,
                aps,
                [figure.retention if figure else None for figure in figures],
                differences,
                elsewhere,
            )
        )
    return rows


def _assessed(run: Run, resampling: EvaluateParams) -> dict[str, Assessment]:
    """Set -> the fine-tuned detector's assessment, computed from the run's predictions, with the
    same resamples for every run.
    """
    if run.params is None:
        return {}
    plan = run.params.surgery.plan()
    found = {}
    for on, truth in truths_of(plan, run.tables).items():
        predictions = run.predictions(MODEL, on)
        if predictions is not None:
            found[on] = assess(
                truth,
                predictions,
                resampling,
                classes=plan.names,
                what=f"predictions of {run.name} on {on}",
            )
    return found


def _difference(
    before: Estimate | None,
    after: Estimate | None,
    first: Assessment | None,
    other: Assessment | None,
    name: str,
) -> Estimate | None:
    if before is None or after is None:
        return None
    value = after.value - before.value
    if first is None or other is None or not _same_set(first.truth, other.truth, name):
        return Estimate(value)
    one, two = first.resampled.get(name), other.resampled.get(name)
    if one is None or two is None:
        return Estimate(value)
    defined = np.isfinite(one) & np.isfinite(two)
    between = interval((two - one)[defined], first.confidence)
    return Estimate(value, *between) if between else Estimate(value)


def _same_set(first: Truth | None, other: Truth | None, name: str) -> bool:
    """Whether two truths have the same images, and the same objects of a class; an unknown one
    counts as the same.
    """
    if first is None or other is None:
        return True
    if (
        name not in first.classes
        or name not in other.classes
        or not np.array_equal(first.image_ids, other.image_ids)
    ):
        return False
    pairs = []
    for truth in (first, other):
        mine = truth.label == truth.classes.index(name) + 1
        pairs.append((truth.image[mine], truth.boxes[mine], truth.crowd[mine]))
    return all(np.array_equal(one, two) for one, two in zip(*pairs, strict=True))


def same_images(runs: Sequence[Run]) -> list[int]:
    """Ids of test images that every run has under the same file name."""
    tables = []
    for run in runs:
        if "test" not in run.tables.splits:
            return []
        images = run.tables.split("test").images
        tables.append(set(zip(images["image_id"], images["file_name"], strict=True)))
    return sorted(int(image_id) for image_id, _ in set.intersection(*tables))


def truth_of_test(run: Run) -> pd.DataFrame:
    """The test set's annotations with class names, crowds left out."""
    return named(run.tables.split("test").annotations, run.tables.names("test"))
