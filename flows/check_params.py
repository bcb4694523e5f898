"""Hold params.yaml of the current folder against the typed model of the topwork that is imported
there: the revision's own, when a run in a worktree calls it.

    python -P flows/check_params.py
"""

import sys
from importlib import import_module


def main() -> int:
    """Check; exit code 1 with one line where a key or value is at fault."""
    try:
        document = import_module("topwork.params.document")
        section = import_module("topwork.params.section")
        errors = import_module("topwork.errors")
        read, parse, tracked = section.read_document, document.parse_params, document.check_tracked
    except (ImportError, AttributeError) as error:
        print(
            f"error: this revision's topwork can't check params.yaml ({error}): it is older than"
            " this layout. Run it with the flows of its own time, in a clone of its own.",
            file=sys.stderr,
        )
        return 1
    try:
        found = read()
        parse(found)
        tracked(found)
    except errors.TopworkError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
