"""One thin main a dvc.yaml stage: `python -m topwork.stages.NAME` reads params.yaml and runs that
stage alone.
"""

import sys
from collections.abc import Callable
from contextlib import chdir
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from topwork.environment import check_own_code, run_own_code
from topwork.errors import TopworkError
from topwork.events import ErrorEvent, emit
from topwork.params.section import parse, read_document

Params = TypeVar("Params", bound=BaseModel)


def main_of(run: Callable[[Params], None], sections: type[Params]) -> int:
    """Run a stage on the params.yaml of the current folder; an error that a user can mend becomes
    one paragraph and exit code 1. A stage runs the code of the project that it works on, or not at
    all.

    The whole file is checked first, so that a misspelt key of a later stage is an error before
    hours are spent. That check is imported by name, since it can stop a stage but not change what
    it writes: a stage's code is what the sections it reads are made of.
    """
    try:
        check_own_code()
        document = read_document()
        whole = import_module("topwork.params.document")
        whole.parse_params(document)
        whole.check_tracked(document)
        run(parse(sections, document))
    except TopworkError as error:
        return _failed(str(error))
    except MemoryError as error:
        return _failed(
            f"out of memory ({error}); lower the batch size in params.yaml, then run again."
        )
    return 0


def _failed(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    emit(ErrorEvent(message=message))
    return 1


def in_project(run: Callable[[Params], None]) -> Callable[..., None]:
    """A stage's `run(params)` as `run(params, root)`: all that it names is relative to the
    project's folder, and so it works there.
    """

    @wraps(run)
    def from_anywhere(params: Params, root: Path = Path()) -> None:
        with chdir(root):
            run(params)

    return from_anywhere


if sys.argv[:1] == ["-m"]:  # so it is while `python -m topwork.stages.NAME` looks for that module
    run_own_code()
