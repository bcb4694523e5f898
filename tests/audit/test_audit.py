"""The audit on a real git and DVC history of three experiments."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from topwork.audit.history import experiments
from topwork.audit.revision import folder_md5, open_revision
from topwork.audit.verification import Check, verify
from topwork.commands import audit as command
from topwork.errors import AuditError
from topwork.project.evaluate import MetricsRecord

DVC_YAML = """
stages:
  raw:
    cmd: python step.py raw
    deps: [step.py, source]
    outs: [out/raw.bin, out/parts]
  train:
    cmd: python step.py train
    deps: [step.py, out/raw.bin]
    params: [lr, model]
    outs: [out/weights.bin]
    metrics:
      - out/metrics.json: {cache: false}
  look:
    cmd: python step.py look
    deps: [out]
    outs: [look.txt]
"""
STEP = """
import json, pathlib, sys
from ruamel.yaml import YAML
params = YAML(typ="safe").load(open("params.yaml"))
out = pathlib.Path("out")
out.mkdir(exist_ok=True)
if sys.argv[1] == "raw":
    (out / "raw.bin").write_bytes(pathlib.Path("source/a.txt").read_bytes() * 3)
    (out / "parts" / "deep").mkdir(parents=True)
    for n in range(3):
        (out / "parts" / "deep" / f"{n}.txt").write_text(f"part {n}")
elif sys.argv[1] == "train":
    (out / "weights.bin").write_text(str(params["lr"]))
    (out / "metrics.json").write_text(json.dumps({"ap": params["lr"] * 2}))
else:
    pathlib.Path("look.txt").write_text(" ".join(sorted(p.name for p in out.iterdir())))
"""


def run(project: Path, *arguments: str) -> str:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(arguments, cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three committed experiments, and a fourth that only DVC knows."""
    project = tmp_path_factory.mktemp("history")
    (project / "source").mkdir()
    (project / "source" / "a.txt").write_text("seed")
    (project / "step.py").write_text(STEP)
    (project / "dvc.yaml").write_text(DVC_YAML)
    (project / ".gitignore").write_text("/look.txt\n")
    run(project, "git", "init", "--quiet")
    run(project, "git", "config", "user.email", "a@b.c")
    run(project, "git", "config", "user.name", "a")
    run(project, "dvc", "init", "--quiet")
    for lr in (0.1, 0.2, 0.3):
        (project / "params.yaml").write_text(f"lr: {lr}\nmodel: {{width: 8}}\n")
        run(project, "dvc", "repro", "--quiet")
        run(project, "git", "add", "--all")
        run(project, "git", "commit", "--quiet", "--message", f"lr {lr}")
    run(project, "dvc", "exp", "run", "--quiet", "--name", "bold", "--set-param", "lr=0.9")
    run(project, "git", "reset", "--hard", "--quiet")
    run(project, "dvc", "checkout", "--quiet")
    return project


def broken(checks: list[Check]) -> list[Check]:
    return [check for check in checks if check.status == "broken"]


def test_list_shows_commits_and_experiments_with_params_and_metrics(history: Path) -> None:
    table = experiments(history)
    assert sorted(table["params.lr"]) == [0.1, 0.2, 0.3, 0.9]
    assert table.set_index("params.lr")["ap"].to_dict() == pytest.approx(
        {0.1: 0.2, 0.2: 0.4, 0.3: 0.6, 0.9: 1.8}
    )
    assert table.set_index("params.lr").loc[0.9, ["name", "kind"]].tolist() == [
        "bold",
        "experiment",
    ]


@pytest.mark.parametrize("rev", ["HEAD", "HEAD~1", "HEAD~2", "bold"])
def test_an_untouched_history_holds(history: Path, rev: str) -> None:
    checks = verify(open_revision(history, rev))
    assert {check.status for check in checks} == {"holds"}, [
        check for check in checks if check.status != "holds"
    ]
    assert {"out out/parts", "dep out", "dep source", "params params.yaml", "cmd"} <= {
        check.what for check in checks
    }


def test_one_changed_byte_in_the_cache_is_named(history: Path) -> None:
    revision = open_revision(history, "HEAD~1")
    cached = revision.cached(str(revision.outs["out/weights.bin"].md5))
    original = cached.read_bytes()
    cached.chmod(0o644)
    cached.write_bytes(bytes([original[0] ^ 1]) + original[1:])
    try:
        (fault,) = broken(verify(open_revision(history, "HEAD~1")))
        assert (fault.stage, fault.what) == ("train", "out out/weights.bin")
        assert str(revision.outs["out/weights.bin"].md5) in fault.message
        assert not broken(verify(open_revision(history, "HEAD")))
    finally:
        cached.write_bytes(original)


def test_one_changed_byte_inside_a_folder_is_named_with_the_file(history: Path) -> None:
    revision = open_revision(history, "HEAD")
    listing = revision.listing(revision.outs["out/parts"])
    cached = revision.cached(listing["out/parts/deep/1.txt"])
    cached.chmod(0o644)
    cached.write_bytes(b"part 2")
    try:
        (fault,) = broken(verify(revision))
        assert fault.message.startswith("out/parts/deep/1.txt: the cached file")
    finally:
        cached.write_bytes(b"part 1")


@pytest.mark.parametrize(
    ("file", "old", "new", "what"),
    [
        ("params.yaml", "lr: 0.3", "lr: 0.4", "params params.yaml"),
        ("params.yaml", "width: 8", "width: 9", "params params.yaml"),
        ("dvc.yaml", "cmd: python step.py train", "cmd: python step.py fake", "cmd"),
        ("step.py", "* 3", "* 4", "dep step.py"),
        ("source/a.txt", "seed", "sead", "dep source"),
        ("out/metrics.json", "0.6", "0.9", "out out/metrics.json"),
    ],
    ids=["param", "nested param", "command", "code", "data", "metric"],
)
def test_a_forged_file_in_git_breaks_the_record(
    history: Path, tmp_path: Path, file: str, old: str, new: str, what: str
) -> None:
    clone = tmp_path / "clone"
    run(history, "git", "clone", "--quiet", str(history), str(clone))
    run(clone, "dvc", "cache", "dir", "--local", str(history / ".dvc" / "cache"))
    run(clone, "git", "config", "user.email", "a@b.c")
    run(clone, "git", "config", "user.name", "a")
    path = clone / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    run(clone, "git", "commit", "--quiet", "--all", "--message", "forged")
    assert what in {fault.what for fault in broken(verify(open_revision(clone, "HEAD")))}
    assert not broken(verify(open_revision(clone, "HEAD~1")))


def test_what_is_not_in_the_cache_is_unchecked_not_held(history: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    run(history, "git", "clone", "--quiet", str(history), str(clone))
    checks = {(check.stage, check.what): check for check in verify(open_revision(clone, "HEAD"))}
    assert checks["raw", "out out/raw.bin"].status == "unchecked"
    assert "isn't in the cache" in checks["raw", "out out/raw.bin"].message
    assert checks["train", "out out/metrics.json"].status == "holds"


def test_an_unknown_revision_names_the_newest_commits(history: Path) -> None:
    with pytest.raises(
        AuditError, match=r"v9: no such revision\. The newest commits are: .*lr 0\.3"
    ):
        open_revision(history, "v9")


def test_the_folder_hash_is_dvcs(history: Path) -> None:
    revision = open_revision(history, "HEAD")
    out = revision.outs["out/parts"]
    files = {path.removeprefix("out/parts/"): md5 for path, md5 in revision.listing(out).items()}
    assert folder_md5(files) == out.md5


def test_headlines_are_the_metrics_of_evaluate() -> None:
    assert {name.rstrip(".") for name in command.HEADLINES} == set(MetricsRecord.model_fields)


def test_the_commands_print_and_exit(
    history: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from topwork.cli import main

    monkeypatch.chdir(history)
    assert main(["audit", "list", "--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 4
    assert main(["audit", "list"]) == 0
    assert "lr 0.3" in capsys.readouterr().out
    assert main(["audit", "verify", "HEAD"]) == 0
    assert "all of it holds" in capsys.readouterr().out
    assert main(["audit", "verify", "nonsense"]) == 1
    assert "error: nonsense: no such revision" in capsys.readouterr().err
