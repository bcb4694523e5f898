"""Images that look the same: perceptual hashes a few bits apart, found by their equal pieces
instead of by all pairs.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from topwork.validation.probe import Probe
from topwork.validation.raw_split import RawSplit

PHASH_BITS = 4
DHASH_BITS = 8
PIECES = PHASH_BITS + 1  # of five pieces one is equal when four bits differ at most
MAX_BUCKET = 256


def check_near(raw_splits: Sequence[RawSplit], probes: Mapping[str, Mapping[str, Probe]]) -> None:
    """Near-duplicates within and across splits; identical bytes are another rule."""
    places: list[tuple[int, int]] = []
    found: list[Probe] = []
    for index, raw in enumerate(raw_splits):
        for row, name in enumerate(raw.file_name):
            entry = probes.get(raw.root, {}).get(name)
            if entry is not None and entry.phash:
                places.append((index, row))
                found.append(entry)
    one, two, apart = near_pairs([entry.phash for entry in found], [entry.dhash for entry in found])
    reported: set[tuple[int, str]] = set()
    for first, second, distance in zip(one.tolist(), two.tolist(), apart.tolist(), strict=True):
        if found[first].sha256 == found[second].sha256:
            continue
        (index_a, row_a), (index_b, row_b) = places[first], places[second]
        a, b = raw_splits[index_a], raw_splits[index_b]
        rule = "near-duplicate" if a.split == b.split else "near-duplicate-across"
        if (second, rule) in reported:
            # one finding an image and rule: a series of alike frames would give all its pairs
            continue
        reported.add((second, rule))
        where = f"{a.file_name[row_a]} (image {a.image_id[row_a]}, {a.split})"
        twin = (a.split, int(a.image_id[row_a]))
        b.find_image(
            rule, row_b, f"looks like {where}: {distance} of 64 hash bits differ", other=twin
        )


def near_pairs(
    phashes: Sequence[str], dhashes: Sequence[str]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pairs (first < second) whose hashes are close, sorted by second, with the bits by which their
    phash differs.
    """
    p, d = (
        np.array([int(text, 16) for text in hashes], np.uint64) for hashes in (phashes, dhashes)
    )
    none = np.empty(0, np.int64)
    if len(p) < 2:
        return none, none, none
    edges = np.linspace(0, 64, PIECES + 1).astype(np.uint64)
    pairs = []
    for low, high in pairwise(edges):
        piece = (p >> low) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(piece, kind="stable")
        ranked = piece[order]
        for lag in range(1, min(MAX_BUCKET, len(order))):
            same = np.flatnonzero(ranked[lag:] == ranked[:-lag])
            if not len(same):
                break
            one, two = order[same], order[same + lag]
            close = (np.bitwise_count(p[one] ^ p[two]) <= PHASH_BITS) & (
                np.bitwise_count(d[one] ^ d[two]) <= DHASH_BITS
            )
            if close.any():
                pairs.append(np.sort(np.stack([one[close], two[close]]), axis=0))
    if not pairs:
        return none, none, none
    both = np.unique(np.concatenate(pairs, axis=1), axis=1)
    both = both[:, np.lexsort((both[0], both[1]))]
    return both[0], both[1], np.bitwise_count(p[both[0]] ^ p[both[1]]).astype(np.int64)
