"""Out of the stage `check`."""

from pathlib import Path

from topwork.project.record import Record

VERDICT = Path("out/check/verdict.json")


class CheckRecord(Record):
    """What was compared and fits; a fault is an error instead, so that the file is always
    the same.
    """

    checked: tuple[str, ...]
