"""The champion: the detector in use. Another takes its place only where it meets its contract and
isn't worse on the same test set.

Promotions are git tags as GTO writes them, so that `dvc artifacts get URL detector --stage
champion` brings the champion. DVC takes the newest such tag, whatever it says; so who is demoted is
replaced, by a new tag, by whom it had followed.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from topwork.compare.comparison import metric_rows
from topwork.errors import TopworkError
from topwork.project.evaluate import VERDICT, VerdictRecord
from topwork.report.run import Run

ARTIFACT = "detector"
"""The model's name below `artifacts` in dvc.yaml."""
STAGE = "champion"


@dataclass(frozen=True)
class Title:
    """A detector's time as champion.

    Attributes:
        version: such as `v0.2.0`.
        commit: where it was trained.
        since: when it was promoted.
        why: what the promotion's tag says.
    """

    version: str
    commit: str
    since: datetime
    why: str


def titles(root: Path) -> list[Title]:
    """All champions, the present one last.

    Raises:
        TopworkError: the folder isn't in a git repository.
    """
    import gto.api

    found = _gto(gto.api.history, str(root), ARTIFACT, ascending=True)
    assigned = [
        event for event in found if event["event"] == "assignment" and event["stage"] == STAGE
    ]
    assigned.sort(key=lambda event: (event["timestamp"], int(event["ref"].rpartition("#")[2])))
    return [
        Title(event["version"], event["commit"], event["timestamp"], event["message"].strip())
        for event in assigned
    ]


def objections(champion: Run | None, candidate: Run) -> list[str]:
    """Why a run's detector can't become champion: its contract, and what it does worse than the
    champion by more than chance, each in one sentence; nothing where it can.
    """
    found = []
    if not candidate.has(VERDICT):
        return [f"{candidate.name} has no verdict: it wasn't evaluated to the end"]
    verdict = VerdictRecord.parse(candidate.files.read_bytes(str(VERDICT)), VERDICT)
    found += [f"contract breached: {item.sentence}" for item in verdict.contracts if not item.holds]
    if champion is None:
        return found
    for row in metric_rows([champion, candidate]):
        before, after = row.ap
        what = f"{row.name} on {row.on}"
        if before is None:
            continue
        if after is None:
            found.append(f"{what}: the champion knows it, the candidate doesn't")
            continue
        change = f"AP {after.value:.4f}, the champion's is {before.value:.4f}"
        match row.verdict(1):
            case "worse":
                found.append(f"{what}: {change}, worse by more than chance")
            case "other set":
                found.append(f"{what}: measured on other images or objects than the champion")
            case "no interval" | "" if after.value < before.value:
                found.append(f"{what}: {change}, and no interval says whether that is chance")
    return found


def promote(root: Path, commit: str, why: str) -> Title:
    """Make a commit's detector the champion.

    Raises:
        TopworkError: it is the champion already, or GTO refuses.
    """
    import gto.api

    held = titles(root)
    if held and held[-1].commit == commit:
        raise TopworkError(f"{commit[:10]} is the champion already ({held[-1].version}).")
    known = {title.commit: title.version for title in held}
    if commit not in known:
        first = not _gto(gto.api.history, str(root), ARTIFACT)
        bump = {"version": "v0.1.0"} if first else {"bump_minor": True}
        _gto(gto.api.register, str(root), ARTIFACT, commit, message=why, **bump)
    _gto(gto.api.assign, str(root), ARTIFACT, STAGE, ref=commit, message=why, force=True)
    return titles(root)[-1]


def demote(root: Path, why: str) -> Title:
    """Give the title back to the champion before the present one.

    Raises:
        TopworkError: there is none.
    """
    held = titles(root)
    before = [title for title in held if title.commit != held[-1].commit]
    if not before:
        raise TopworkError(
            f"{ARTIFACT}: {'there is no champion' if not held else 'no champion came before it'},"
            " so that nobody takes the place. Promote another: topwork champion promote REV."
        )
    return promote(root, before[-1].commit, f"{held[-1].version} demoted: {why}")


def _gto(call: Any, *arguments: Any, **named: Any) -> Any:
    """GTO's errors as ours."""
    from gto.exceptions import GTOException
    from scmrepo.exceptions import SCMError

    try:
        return call(*arguments, **named)
    except (GTOException, SCMError) as error:
        raise TopworkError(f"{ARTIFACT}: {' '.join(str(error).split())}") from error
