"""One thin main a dvc.yaml stage: `python -m topwork.stages.NAME` reads params.yaml and runs that stage alone."""

import sys
from collections.abc import Callable

from topwork.errors import TopworkError
from topwork.params import Params, load_params


def main_of(run: Callable[[Params], None]) -> int:
    """Run a stage on the params.yaml of the current folder; an error that a user can mend becomes one paragraph and exit code 1."""
    try:
        run(load_params())
    except TopworkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except MemoryError as error:
        print(f"error: out of memory ({error}); lower the batch size in params.yaml, then run again.", file=sys.stderr)
        return 1
    return 0
