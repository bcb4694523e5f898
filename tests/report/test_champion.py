"""The champion's place: taken by whom the contract and the paired intervals let, as git tags that
DVC follows.
"""

import subprocess
import time
from pathlib import Path

import pytest

from conftest import done, run
from report import project as made
from report.project import predict_and_evaluate
from topwork.params.document import load_params

GOOD = dict(made.QUALITY)


def commit(folder: Path, message: str) -> str:
    done(folder, "git", "add", "--all", "--force")
    done(folder, "git", "commit", "--quiet", "--message", message)
    return done(folder, "git", "rev-parse", "HEAD").strip()


@pytest.fixture
def history(project: Path) -> Path:
    """A git and DVC repository of the finished project; git has all of its files."""
    for command in (
        ["git", "init", "--quiet", "--initial-branch", "main"],
        ["git", "config", "user.email", "a@b.c"],
        ["git", "config", "user.name", "a"],
        ["dvc", "init", "--quiet"],
    ):
        done(project, *command)
    (project / "dvc.yaml").write_text(
        "artifacts:\n  detector:\n    path: out/finetune/weights.safetensors\n    type: model\n"
    )
    commit(project, "first")
    return project


def evaluate_again(folder: Path, person: tuple[float, float, float], seed: int = 3) -> None:
    made.QUALITY["finetuned"] = GOOD["finetuned"] | {"person": person}
    try:
        predict_and_evaluate(folder, load_params(folder / "params.yaml"), seed=seed)
    finally:
        made.QUALITY.update(GOOD)


def champion_bytes(folder: Path, to: Path) -> bytes:
    to.unlink(missing_ok=True)
    done(folder, "dvc", "artifacts", "get", ".", "detector", "--stage", "champion", "-o", str(to))
    return to.read_bytes()


def test_promotion_refusal_demotion_and_history(history: Path, tmp_path: Path) -> None:
    weights = history / "out" / "finetune" / "weights.safetensors"
    assert "no champion yet" in done(history, "topwork", "champion")
    done(history, "topwork", "champion", "promote", "HEAD")
    first = weights.read_bytes()
    assert champion_bytes(history, tmp_path / "got") == first

    evaluate_again(history, (0.4, 0.3, 1.0))
    weights.write_bytes(first + b" ")
    commit(history, "worse")
    refused = run(history, "topwork", "champion", "promote", "HEAD")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: HEAD isn't promoted: ")
    assert "person on test: AP" in refused.stderr
    assert "worse by more than chance" in refused.stderr
    assert champion_bytes(history, tmp_path / "got") == first

    evaluate_again(history, GOOD["finetuned"]["person"], seed=0)
    weights.write_bytes(first + b"  ")
    second = commit(history, "as good")
    time.sleep(1.1)  # git's tags know seconds
    output = done(history, "topwork", "champion", "promote", "HEAD")
    assert f"champion: v0.2.0 ({second[:10]}), no worse than v0.1.0, contract met" in output
    assert champion_bytes(history, tmp_path / "got") == first + b"  "
    again = run(history, "topwork", "champion", "promote", "HEAD")
    assert "is the champion already (v0.2.0)" in again.stderr

    time.sleep(1.1)
    done(history, "topwork", "champion", "demote", "--why", "misses forklifts at night")
    assert champion_bytes(history, tmp_path / "got") == first
    lines = done(history, "topwork", "champion").splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["champion", "v0.1.0"],
        ["before", "v0.2.0"],
        ["before", "v0.1.0"],
    ]
    assert "v0.2.0 demoted: misses forklifts at night" in lines[0]
    tags = subprocess.run(
        ["git", "tag"], cwd=history, capture_output=True, text=True, check=True
    ).stdout.split()
    assert tags == [
        "detector#champion#1",
        "detector#champion#2",
        "detector#champion#3",
        "detector@v0.1.0",
        "detector@v0.2.0",
    ]


def test_a_breached_contract_is_no_champion_but_by_force(history: Path) -> None:
    evaluate_again(history, (0.05, 0.3, 1.0))
    commit(history, "forgot persons")
    refused = run(history, "topwork", "champion", "promote", "HEAD")
    assert refused.returncode == 1
    assert "contract breached: person" in refused.stderr
    assert done(history, "git", "tag") == ""
    forced = done(history, "topwork", "champion", "promote", "HEAD", "--despite", "for a test")
    assert "despite contract breached: person" in forced
    assert "for a test" in done(history, "topwork", "champion")


def test_nobody_to_go_back_to(history: Path) -> None:
    ended = run(history, "topwork", "champion", "demote", "--why", "bad")
    assert ended.returncode == 1
    assert "there is no champion" in ended.stderr
    done(history, "topwork", "champion", "promote", "HEAD")
    ended = run(history, "topwork", "champion", "demote", "--why", "bad")
    assert "no champion came before it" in ended.stderr
