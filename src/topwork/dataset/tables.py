"""The annotation tables: three pandas frames that every later stage reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from topwork.errors import DataError
from topwork.files import atomic_path
from topwork.project.names import SPLITS

IMAGE_COLUMNS: dict[str, pa.DataType] = {
    "split": pa.string(),
    "image_id": pa.int64(),
    "file_name": pa.string(),
    "width": pa.int64(),
    "height": pa.int64(),
    "image_root": pa.string(),
}
ANNOTATION_COLUMNS: dict[str, pa.DataType] = {
    "split": pa.string(),
    "annotation_id": pa.int64(),
    "image_id": pa.int64(),
    "category_id": pa.int64(),
    "x": pa.float64(),
    "y": pa.float64(),
    "width": pa.float64(),
    "height": pa.float64(),
    "area": pa.float64(),
    "iscrowd": pa.bool_(),
    "segmentation": pa.large_string(),
}
CATEGORY_COLUMNS: dict[str, pa.DataType] = {
    "split": pa.string(),
    "category_id": pa.int64(),
    "name": pa.string(),
}
SCHEMAS = {
    "images": IMAGE_COLUMNS,
    "annotations": ANNOTATION_COLUMNS,
    "categories": CATEGORY_COLUMNS,
}


@dataclass(frozen=True)
class Tables:
    """A data set as three frames; boxes are COCO's (x, y, width, height) in absolute pixels.

    Attributes:
        images: split, image_id, file_name, width, height, image_root; (split, image_id) is unique
            in a set without errors.
        annotations: split, annotation_id, image_id, category_id, x, y, width, height, area,
            iscrowd, segmentation (JSON text or None).
        categories: split, category_id, name.
    """

    images: pd.DataFrame
    annotations: pd.DataFrame
    categories: pd.DataFrame

    @property
    def splits(self) -> list[str]:
        """Names of the splits present: train, val, test, source, replay, then others by name."""
        found = {str(name) for name in self.images["split"].unique()} | {
            str(name) for name in self.categories["split"].unique()
        }
        known = [name for name in SPLITS if name in found]
        return known + sorted(found.difference(known))

    def split(self, name: str) -> "Tables":
        """The rows of one split, numbered again from 0.

        Raises:
            DataError: no such split.
        """
        if name not in self.splits:
            raise DataError(
                f"split {name!r}: not in the tables; found {', '.join(self.splits) or 'none'}. Name"
                " it in dataset of params.yaml."
            )
        return Tables(
            *(
                frame[frame["split"] == name].reset_index(drop=True)
                for frame in (self.images, self.annotations, self.categories)
            )
        )

    def names(self, split: str) -> dict[int, str]:
        """Category id -> name in one split."""
        rows = self.categories[self.categories["split"] == split]
        return {
            int(key): str(name) for key, name in zip(rows["category_id"], rows["name"], strict=True)
        }

    def write(self, folder: Path) -> None:
        """Write images.parquet, annotations.parquet and categories.parquet; the same tables give
        the same bytes.
        """
        for name, columns in SCHEMAS.items():
            with atomic_path(folder / f"{name}.parquet") as temporary:
                pq.write_table(_arrow(getattr(self, name), columns), temporary, compression="zstd")

    @classmethod
    def read(cls, folder: Path, segmentation: bool = True) -> "Tables":
        """Read what `write` wrote; with `segmentation=False` that column is left unread and holds
        None.

        Raises:
            DataError: a file is missing or isn't such a table.
        """
        frames = []
        for name, columns in SCHEMAS.items():
            path = folder / f"{name}.parquet"
            wanted = [column for column in columns if segmentation or column != "segmentation"]
            try:
                frame = pq.read_table(path, columns=wanted).to_pandas()
            except FileNotFoundError as error:
                raise DataError(
                    f"{path}: no such file. Run the stage that writes it: dvc repro validate."
                ) from error
            except (OSError, pa.ArrowException) as error:
                raise DataError(
                    f"{path}: not a table of {', '.join(columns)} ({error}). Run `dvc repro"
                    " validate` again."
                ) from error
            if name == "annotations":
                frame["segmentation"] = _objects(frame["segmentation"]) if segmentation else None
            frames.append(frame)
        return cls(*frames)

    @classmethod
    def join(cls, tables: Sequence["Tables"]) -> "Tables":
        """Rows of several tables, one after another; none give empty tables."""
        if not tables:
            return cls(
                *(
                    pa.schema(list(columns.items())).empty_table().to_pandas()
                    for columns in SCHEMAS.values()
                )
            )
        if len(tables) == 1:
            return tables[0]
        return cls(
            *(
                pd.concat([getattr(entry, name) for entry in tables], ignore_index=True)
                for name in SCHEMAS
            )
        )


def _arrow(frame: pd.DataFrame, columns: dict[str, pa.DataType]) -> pa.Table:
    arrays = []
    for name, kind in columns.items():
        array = pa.array(frame[name], from_pandas=True)
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        arrays.append(array.cast(kind))
    return pa.table(dict(zip(columns, arrays, strict=True)))


def _objects(column: "pd.Series[str]") -> "pd.Series[str]":
    """Text or None, as plain Python objects (pandas' own text columns hold NaN where there's
    none).
    """
    values = np.asarray(column, dtype=object)
    values[pd.isna(values)] = None
    return pd.Series(values, index=column.index, dtype=object)
