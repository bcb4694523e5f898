"""What verify finds in a real history: nothing where nothing was done, each kind of tampering."""

import re
import shutil
from pathlib import Path

import pytest

from audit.tampering import KINDS, Copy, Kind
from conftest import ROOT, done
from topwork.audit.check import Check
from topwork.audit.revision import open_revision
from topwork.audit.verification import verify
from topwork.errors import AuditError

REVISIONS = ("HEAD", "HEAD~2", "HEAD~3", "bold")


@pytest.fixture
def copy(recorded: Path, tmp_path: Path) -> Copy:
    folder = tmp_path / "copy"
    shutil.copytree(recorded, folder, symlinks=True)
    return Copy(folder)


def faults(checks: list[Check]) -> list[str]:
    return [
        f"{check.status} {check.stage}: {check.what}: {check.message}"
        for check in checks
        if check.status != "holds"
    ]


@pytest.mark.parametrize("revision", REVISIONS)
def test_an_untouched_history_holds(recorded: Path, revision: str) -> None:
    checks = verify(open_revision(recorded, revision))
    assert faults(checks) == []
    assert len(checks) > 300
    assert {"metrics, classes and verdict from predictions", "the page from all that it shows"} <= {
        check.what for check in checks
    }


def test_a_breached_contract_is_stale_not_broken(recorded: Path) -> None:
    """The gate failed, so that its entry is that of the run before."""
    checks = verify(open_revision(recorded, "HEAD~1"))
    stale = [check for check in checks if check.status == "stale"]
    assert len(stale) == len(faults(checks)), faults(checks)
    assert {check.stage for check in stale} == {"gate"}
    before = done(recorded, "git", "rev-parse", "--short=10", "HEAD~2").strip()
    assert f"not reached at this revision, it ran last at {before}" in stale[0].message


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_tampering_is_found_and_named(copy: Copy, kind: Kind) -> None:
    kind.tamper(copy)
    copy.amend()
    if kind.error:
        with pytest.raises(AuditError, match=re.escape(kind.error)):
            verify(open_revision(copy.root, "HEAD"))
        return
    checks = verify(open_revision(copy.root, "HEAD"))
    if kind.status == "holds":
        assert faults(checks) == []
        return
    stage, words = kind.at
    named = [
        check
        for check in checks
        if check.status == kind.status
        and check.stage == stage
        and words in f"{check.what}: {check.message}"
    ]
    assert named, faults(checks)
    if kind.status != "broken":
        assert not [check for check in checks if check.status == "broken"], faults(checks)


def test_the_threat_table_is_what_the_tests_do() -> None:
    page = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", page.split("## Threats")[1], re.MULTILINE)
    found = [row for row in rows if row[0] not in ("kind of tampering", "---")]
    assert found == [(kind.name, kind.finder) for kind in KINDS]
    assert len(KINDS) >= 50
