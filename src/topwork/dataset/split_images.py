"""The images of a data set's splits: opened one by one, recognized again, hashed."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path

from PIL import Image

from topwork.dataset.images import ImageStore
from topwork.dataset.tables import Tables

Picture = tuple[int, Callable[[], Image.Image]]
"""An image's id, and a function that opens it as PIL RGB (called in a thread, once)."""
Stamp = tuple[int, int] | None
_HASHERS = 4


class SplitImages:
    """Images by split, from the folders and archives that the tables name; one store an image root.

    Args:
        tables: the data set.
        root: the project's folder, to which image roots are relative.
    """

    def __init__(self, tables: Tables, root: Path = Path()) -> None:
        self.tables, self.root = tables, root
        self._stores: dict[str, ImageStore] = {}

    def openers(self, split: str) -> list[Picture]:
        """Ids and openers of a split, by id."""
        rows = self.tables.split(split).images.sort_values("image_id", kind="stable")
        return [
            (int(image_id), partial(self._store(str(image_root)).open, str(file_name)))
            for image_id, image_root, file_name in zip(
                rows["image_id"], rows["image_root"], rows["file_name"], strict=True
            )
        ]

    def stamps(self, splits: Iterable[str]) -> dict[str, list[Stamp]]:
        """Split -> size and modification time of each image: equal before and after, if they
        didn't change.
        """
        return {
            split: [self._store(image_root).stamp(name) for image_root, name in self._names(split)]
            for split in splits
        }

    def content_hash(self, splits: Iterable[str]) -> str:
        """SHA-256 over names and content of the images of some splits; an archive is hashed as a
        whole.
        """
        names = sorted({pair for split in splits for pair in self._names(split)})
        with ThreadPoolExecutor(_HASHERS, thread_name_prefix="topwork-hash") as pool:
            hashes = pool.map(lambda pair: self._store(pair[0]).sha256(pair[1]), names)
            lines = [
                f"{image_root}\0{name}\0{found}\n"
                for (image_root, name), found in zip(names, hashes, strict=True)
            ]
        return sha256("".join(lines).encode()).hexdigest()

    def copies(
        self, split: str, ids: Collection[int], among: Mapping[str, Collection[int]]
    ) -> frozenset[int]:
        """Which images of a split have the very bytes of one among others. Only images of the same
        size in bytes are read.

        Args:
            split: theirs.
            ids: which of its images are asked about.
            among: split -> ids of the others.
        """
        others = self._by_size(among)
        return frozenset(
            image_id
            for size, asked in self._by_size({split: ids}).items()
            if (known := {sha256(read()).digest() for _, read in others.get(size, ())})
            for image_id, read in asked
            if sha256(read()).digest() in known
        )

    def _by_size(
        self, wanted: Mapping[str, Collection[int]]
    ) -> dict[int, list[tuple[int, Callable[[], bytes]]]]:
        """Size in bytes -> ids of the images, and functions that read them."""
        found: dict[int, list[tuple[int, Callable[[], bytes]]]] = defaultdict(list)
        for split, ids in wanted.items():
            rows = self.tables.split(split).images
            for image_id, (image_root, name) in zip(
                rows["image_id"], self._names(split), strict=True
            ):
                store = self._store(image_root)
                if image_id in ids and (stamp := store.stamp(name)) is not None:
                    found[stamp[0]].append((int(image_id), partial(store.read, name)))
        return found

    def _names(self, split: str) -> list[tuple[str, str]]:
        rows = self.tables.split(split).images
        return [
            (str(root), str(name))
            for root, name in zip(rows["image_root"], rows["file_name"], strict=True)
        ]

    def _store(self, image_root: str) -> ImageStore:
        if image_root not in self._stores:
            self._stores[image_root] = ImageStore(self.root / image_root)
        return self._stores[image_root]
