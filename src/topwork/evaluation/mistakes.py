"""Error kinds: every wrong detection and every missed object gets one kind, and every kind its cost
in AP.

Kinds, at IoU 0.5 (found) and 0.1 (near), tried in this order for a detection that isn't true and
that no crowd took:

- `localisation`: it overlaps an object of its class by 0.1 or more, but none by 0.5;
- `class`: it overlaps an object of another class by 0.5 or more;
- `duplicate`: it overlaps an object of its class by 0.5 or more, which a better detection has
  taken;
- `background`: it overlaps no object by 0.1;
- `both`: whatever is left: near an object of another class.

An object is `missed` when no detection found it, and none of kind `localisation` or `class` was
meant for it.

To fix a kind: of the detections of kind `localisation` and `class`, the best one meant for an
object becomes true (under the object's class), unless the object is found already; the others are
removed. `duplicate`, `background` and `both` are removed. `missed` objects no longer count. With
all six fixed, AP is 1.

Two measures: `cost` is how much AP at IoU 0.5 rises when this kind alone is fixed, as in TIDE;
costs don't add up, since fixes help or hide each other. `share` is the kind's part of what is
missing from 1: its mean rise over all orders of fixing the six (Shapley value); shares add up to
exactly 1 - AP.

Source: Bolya et al., TIDE: A General Toolbox for Identifying Object Detection Errors (ECCV 2020);
Shapley, A Value for n-Person Games (1953).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from topwork.metrics.coco import RECALL_THRESHOLDS
from topwork.metrics.matching import Matches

KINDS = ("localisation", "class", "both", "duplicate", "background", "missed")
FOUND_IOU = 0.5
NEAR_IOU = 0.1
_TRUE, _IGNORED = len(KINDS), len(KINDS) + 1


@dataclass(frozen=True)
class Mistakes:
    """The kinds of one set of matches; detections are in the order of `Matches`.

    Attributes:
        matches: the matches; their first threshold is 0.5.
        kept: bool[D], the detections looked at.
        kind: int64[D], index into `KINDS`; 6 for true detections, 7 for those that a crowd took or
            that aren't looked at.
        claim: int64[D], the object that a wrong detection of kind localisation or class was meant
            for; else -1.
        missed: bool[G].
    """

    matches: Matches
    kept: NDArray[np.bool_]
    kind: NDArray[np.int64]
    claim: NDArray[np.int64]
    missed: NDArray[np.bool_]

    def counts(self, label: int | None = None) -> dict[str, int]:
        """How many there are of each kind; of one class (as predicted; as annotated for missed
        ones) or of all.
        """
        mine = self.kind if label is None else self.kind[self.matches.of(label)]
        gone = self.missed if label is None else self.missed & (self.matches.truth.label == label)
        return {
            kind: int(np.sum(gone if kind == "missed" else mine == code))
            for code, kind in enumerate(KINDS)
        }

    @cached_property
    def ap_50(self) -> float | None:
        """Mean AP at IoU 0.5 as it is; None for a truth without objects."""
        return self.fixed(()) if self._objects.any() else None

    def costs(self) -> dict[str, float | None]:
        """How much the mean AP at IoU 0.5 rises when a kind alone is fixed."""
        base = self.ap_50
        return {kind: None if base is None else self.fixed((kind,)) - base for kind in KINDS}

    def shares(self) -> dict[str, float | None]:
        """Each kind's part of 1 - AP; they add up to it."""
        if self.ap_50 is None:
            return dict.fromkeys(KINDS)
        count = len(KINDS)
        value = {
            frozenset(chosen): self.fixed(chosen)
            for size in range(count + 1)
            for chosen in combinations(KINDS, size)
        }
        shares: dict[str, float | None] = {}
        for kind in KINDS:
            rises = [
                math.factorial(len(others))
                * math.factorial(count - 1 - len(others))
                / math.factorial(count)
                * (value[others | {kind}] - before)
                for others, before in value.items()
                if kind not in others
            ]
            shares[kind] = math.fsum(rises)
        return shares

    def fixed(self, kinds: Sequence[str]) -> float:
        """Mean AP at IoU 0.5 were these kinds fixed."""
        truth, matches = self.matches.truth, self.matches
        codes = [KINDS.index(kind) for kind in kinds]
        label, true = matches.label.copy(), self.kind == _TRUE
        gone = np.isin(self.kind, [*codes, _IGNORED])
        repaired = self._best_claims[gone[self._best_claims]]
        true[repaired], gone[repaired] = True, False
        label[repaired] = truth.label[self.claim[repaired]]
        left = np.flatnonzero(~gone)
        left = left[np.lexsort((-matches.score[left], label[left]))]
        asked = self._objects - (
            np.bincount(truth.label[self.missed], minlength=len(self._objects))
            if "missed" in kinds
            else 0
        )
        bounds = np.searchsorted(label[left], np.arange(len(self._objects) + 1))
        hits = true[left]
        values = [
            _ap(hits[bounds[name] : bounds[name + 1]], int(asked[name]))
            for name in range(1, len(self._objects))
            if self._objects[name]
        ]
        return float(np.mean(values))

    @cached_property
    def _objects(self) -> NDArray[np.int64]:
        """int64[classes + 1], objects of each label."""
        truth = self.matches.truth
        return np.bincount(truth.label[~truth.crowd], minlength=len(truth.classes) + 1)

    @cached_property
    def _best_claims(self) -> NDArray[np.int64]:
        """For each object that no detection found, the best of those meant for it."""
        found = np.zeros(len(self.matches.truth), dtype=np.bool_)
        found[self.matches.taken[0, self.kind == _TRUE]] = True
        meant = np.flatnonzero(self.claim >= 0)
        meant = meant[~found[self.claim[meant]]]
        by_score = meant[np.argsort(-self.matches.score[meant], kind="stable")]
        _, first = np.unique(self.claim[by_score], return_index=True)
        return by_score[first]


def _ap(hits: NDArray[np.bool_], objects: int) -> float:
    """Interpolated AP of detections in order of score; nothing left to find counts as 1, whatever
    else was detected aside.
    """
    if not objects:
        return 1.0
    places = np.flatnonzero(hits)
    if not len(places):
        return 0.0
    found = np.arange(1, len(places) + 1)
    envelope = np.maximum.accumulate((found / (places + 1))[::-1])[::-1]
    reached = np.searchsorted(found / objects, RECALL_THRESHOLDS, side="left")
    return float(np.append(envelope, 0.0)[reached].mean())


def find_mistakes(matches: Matches, kept: NDArray[np.bool_] | None = None) -> Mistakes:
    """Find the kind of every wrong detection and every missed object.

    Args:
        matches: matches whose first threshold is 0.5 and whose pairs reach down to 0.1.
        kept: bool[D], look at these detections alone (the confident ones, say); all where left out.
    """
    truth, count = matches.truth, len(matches)
    chosen = np.ones(count, dtype=np.bool_) if kept is None else kept
    pairs = matches.pairs
    real = ~truth.crowd[pairs.object] & (pairs.iou >= NEAR_IOU)
    detection, thing, iou = pairs.detection[real], pairs.object[real], pairs.iou[real]
    same = matches.label[detection] == truth.label[thing]
    own, own_thing = _best(detection[same], thing[same], iou[same], count)
    other, other_thing = _best(detection[~same], thing[~same], iou[~same], count)
    kind = np.select(
        [
            ~chosen | matches.ignored[0],
            matches.true[0],
            (own >= NEAR_IOU) & (own < FOUND_IOU),
            other >= FOUND_IOU,
            own >= FOUND_IOU,
            np.maximum(own, other) < NEAR_IOU,
        ],
        [
            _IGNORED,
            _TRUE,
            *(KINDS.index(name) for name in ("localisation", "class", "duplicate", "background")),
        ],
        default=KINDS.index("both"),
    ).astype(np.int64)
    claim = np.where(
        kind == KINDS.index("localisation"),
        own_thing,
        np.where(kind == KINDS.index("class"), other_thing, -1),
    )
    missed = ~truth.crowd
    missed[matches.taken[0, kind == _TRUE]] = False
    missed[claim[claim >= 0]] = False
    return Mistakes(matches, chosen, kind, claim, missed)


def _best(
    detection: NDArray[np.int64], thing: NDArray[np.int64], iou: NDArray[np.float64], count: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Largest overlap of each detection, and with what; 0 and -1 where there's none."""
    best, with_what = np.zeros(count), np.full(count, -1, dtype=np.int64)
    rising = np.lexsort((-thing, iou))  # of equals the first object
    best[detection[rising]], with_what[detection[rising]] = iou[rising], thing[rising]
    return best, with_what


@dataclass(frozen=True)
class WorstImage:
    """An image with many or confident mistakes of one kind.

    Attributes:
        image_id: the image.
        count: mistakes of the kind there.
        weight: sum of their scores; for missed objects their number.
    """

    image_id: int
    count: int
    weight: float


def worst_images(mistakes: Mistakes, kind: str, most: int = 12) -> list[WorstImage]:
    """Images with the heaviest mistakes of a kind, heaviest first; of equals the lower id."""
    truth, matches = mistakes.matches.truth, mistakes.matches
    if kind == "missed":
        image, weight = truth.image[mistakes.missed], np.ones(int(mistakes.missed.sum()))
    else:
        mine = mistakes.kind == KINDS.index(kind)
        image, weight = matches.image[mine], matches.score[mine]
    total = np.bincount(image, weights=weight, minlength=len(truth.image_ids))
    number = np.bincount(image, minlength=len(truth.image_ids))
    order = np.lexsort((np.arange(len(total)), -total))[:most]
    return [
        WorstImage(int(truth.image_ids[i]), int(number[i]), float(total[i]))
        for i in order
        if number[i]
    ]
