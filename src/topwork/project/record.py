"""Records: JSON files with one typed schema each, read and written through it."""

import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from topwork.errors import TopworkError
from topwork.files import write_json


class Record(BaseModel):
    """A JSON document of the project; unknown keys and values of another kind are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    def document(self) -> Any:
        """The record as JSON values, under the names that the file has."""
        return self.model_dump(mode="json", by_alias=True)

    def write(self, path: Path) -> None:
        """Write the record as canonical JSON, whole or not at all."""
        write_json(path, self.document())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record that a stage wrote.

        Raises:
            TopworkError: the file is missing, isn't JSON, or isn't such a record; the first fault
                is named.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise TopworkError(
                f"{path}: can't be read ({error.strerror}). Run the stage that writes it: dvc"
                " repro."
            ) from error
        return cls.parse(content, path)

    @classmethod
    def parse(cls, content: bytes, path: Path) -> Self:
        """A record from its file's content; `path` is for messages.

        Raises:
            TopworkError: it isn't JSON, or isn't such a record.
        """
        try:
            return cls.model_validate(json.loads(content))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the document"
            found = repr(first["input"])
            found = found if len(found) <= 80 else f"{found[:77]}..."
            raise TopworkError(
                f"{path}: {place} is {found}: {first['msg'][:1].lower()}{first['msg'][1:]}. The"
                " file is damaged, or another version of topwork wrote it; run the stage that"
                " writes it again: dvc repro --force."
            ) from error
        except (ValueError, RecursionError) as error:
            raise TopworkError(
                f"{path}: not readable as JSON ({error}). Run the stage that writes it again: dvc"
                " repro --force."
            ) from error
