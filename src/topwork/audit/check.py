"""One statement of a revision's record, and whether it holds."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["holds", "broken", "stale", "unchecked"]


@dataclass(frozen=True)
class Check:
    """One statement of the record, and whether it holds.

    Attributes:
        stage: the stage's address.
        what: `out PATH`, `dep PATH`, `params FILE`, `cmd`, `entry`, or what was computed again.
        status: `holds`; `broken` (the message says what was found and what was expected); `stale`
            (a correct record of an earlier revision, at which the stage ran last); or `unchecked`
            (and why).
    """

    stage: str
    what: str
    status: Status
    message: str = ""
