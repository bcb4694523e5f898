"""Out of the stage `check`."""

from pathlib import Path

from topwork.project.record import Record

VERDICT = Path("out/check/verdict.json")


class CheckRecord(Record):
    """What was held against each other and fits; a fault is an error instead, so that the file says
    the same whenever it is there.
    """

    checked: tuple[str, ...]
