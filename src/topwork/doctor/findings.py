"""Checks and what they find: one line each, and for a fault what mends it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from topwork.errors import TopworkError

Level = Literal["ok", "note", "fault"]


class NoteError(TopworkError):
    """Something to know that stops nothing."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name.
        level: `ok`; `note`, which stops nothing; or `fault`, which would stop a run.
        text: what there is, and for a note or a fault the command or line that mends it.
    """

    check: str
    level: Level
    text: str


@dataclass(frozen=True)
class Check:
    """A check by name. `run` gives a line about what is fine, or raises: `NoteError`, or any other
    `TopworkError`, whose message names the mend.
    """

    name: str
    run: Callable[[], str]


def examine(checks: Sequence[Check]) -> Iterator[Finding]:
    """Run checks in their order; a fault of one doesn't keep the others from running. A check that
    ends in an earlier one's fault wasn't made, and says so.
    """
    reported: dict[str, str] = {}
    for check in checks:
        try:
            yield Finding(check.name, "ok", check.run())
        except TopworkError as error:
            text = str(error)
            if (earlier := reported.get(text)) is not None:
                yield Finding(check.name, "note", f"not looked at, because of `{earlier}` above")
                continue
            reported[text] = check.name
            yield Finding(check.name, "note" if isinstance(error, NoteError) else "fault", text)
