"""The audit on a real git and DVC history of three experiments."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import ROOT
from topwork.audit.check import Check
from topwork.audit.history import experiments
from topwork.audit.revision import open_revision
from topwork.audit.verification import notes, verify
from topwork.commands import audit as command
from topwork.errors import AuditError
from topwork.files import folder_md5
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
    store = str(project.parent / "store")
    run(project, "dvc", "remote", "add", "--quiet", "--default", "store", store)
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
        assert fault.message.startswith("out/parts/deep/1.txt: the cached object")
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
def test_a_forged_file_in_git_is_named(
    history: Path, tmp_path: Path, file: str, old: str, new: str, what: str
) -> None:
    """In a commit of its own, an input is one that the stage hasn't seen; with the run's commit
    rewritten, it is a forgery.
    """
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
    found = {(check.what, check.status) for check in verify(open_revision(clone, "HEAD"))}
    assert (what, "broken" if file == "out/metrics.json" else "stale") in found
    assert not broken(verify(open_revision(clone, "HEAD~1")))
    if file in ("params.yaml", "out/metrics.json"):
        run(clone, "git", "reset", "--quiet", "--soft", "HEAD~1")
        run(clone, "git", "commit", "--quiet", "--amend", "--no-edit")
        assert what in {fault.what for fault in broken(verify(open_revision(clone, "HEAD")))}


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
    assert main(["audit", "list", "--columns", "widht"]) == 1
    assert "no metric or param has that in its name; near: model.width" in capsys.readouterr().err
    assert main(["audit", "verify", "HEAD"]) == 0
    assert "all of it holds" in capsys.readouterr().out
    assert main(["audit", "verify", "nonsense"]) == 1
    assert "error: nonsense: no such revision" in capsys.readouterr().err
    monkeypatch.chdir(history / "source")
    assert main(["audit", "verify", "HEAD"]) == 0, "from a folder of the project"
    monkeypatch.chdir(history.parent)
    assert main(["audit", "verify", "HEAD"]) == 1
    assert "no DVC project here or above" in capsys.readouterr().err


def test_the_list_fits_80_columns_and_says_what_differs(
    history: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from topwork.cli import main

    monkeypatch.chdir(history)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["audit", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    revisions = run(history, "git", "log", "--format=%h", "--abbrev=10").split()
    (newest,) = [line for line in lines if line.startswith(f" {revisions[0]}")]
    assert newest.rstrip().endswith("lr=0.3")
    (bold,) = [line for line in lines if " bold " in line]
    assert bold.rstrip().endswith("lr=0.9")


def test_a_clone_says_what_it_lacks_and_how_to_bring_it(history: Path, tmp_path: Path) -> None:
    """The hint is carried out word for word."""
    clone = tmp_path / "clone"
    run(history, "dvc", "push", "--quiet", "--all-commits")
    run(tmp_path, "git", "clone", "--quiet", str(history), str(clone))
    for revision in ("HEAD", "HEAD~2"):
        checks = verify(open_revision(clone, revision))
        (message,) = [c.message for c in checks if c.what == "out out/weights.bin"]
        command = message.split("`")[1]
        assert command.startswith("dvc fetch"), message
        run(clone, *command.split())
        assert {check.status for check in verify(open_revision(clone, revision))} == {"holds"}


def test_a_shallow_clone_and_replaced_objects_are_noted(history: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", "--depth", "1", f"file://{history}", str(clone))
    blob = run(clone, "git", "rev-parse", "HEAD:params.yaml").strip()
    other = run(clone, "git", "rev-parse", "HEAD:dvc.yaml").strip()
    run(clone, "git", "replace", blob, other)
    revision = open_revision(clone, "HEAD")
    text = " ".join(notes(revision))
    assert "this clone is shallow" in text
    assert f"1 objects of git are shown as others by `git replace` (first {blob[:10]})" in text
    assert revision.params_document()["lr"] == 0.3


def test_300_commits_are_listed_in_seconds(tmp_path: Path) -> None:
    run(tmp_path, "git", "init", "--quiet")
    run(tmp_path, "dvc", "init", "--quiet")
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    names = ("params.yaml", "dvc.lock", "out/metrics.json", "dvc.yaml", ".dvc/config")
    stream = []
    for number in range(300):
        contents = (
            (ROOT / "params.yaml").read_text() + f"lr: {number}\n",
            f"schema: '2.0'\n# {number}\n",
            json.dumps({"ap": number}),
            DVC_YAML,
            "",
        )
        date = f"a <a@b.c> {1700000000 + number} +0000"
        stream.append(f"commit refs/heads/main\ncommitter {date}\ndata 1\nc\n")
        for name, content in zip(names, contents, strict=True):
            size = len(content.encode())
            stream.append(f"M 644 inline {name}\ndata {size}\n{content}\n")
    command = ["git", "fast-import", "--quiet"]
    subprocess.run(command, cwd=tmp_path, input="".join(stream), text=True, check=True)
    run(tmp_path, "git", "symbolic-ref", "HEAD", "refs/heads/main")
    begin = time.process_time()
    table = experiments(tmp_path)
    used = time.process_time() - begin
    assert len(table) == 300
    assert table["ap"].tolist() == list(range(299, -1, -1))
    assert table["differs"].iloc[0] == "lr=299"
    assert used < 6, "seconds; DVC's own reader takes ten times as many"
    short = experiments(tmp_path, limit=3)
    assert short["differs"].tolist() == ["lr=299", "lr=298", "lr=297"], "the last one, too"
    assert len(experiments(tmp_path, limit=0)) == 0
    assert len(experiments(tmp_path, limit=300)) == 300


@pytest.mark.parametrize("arguments", [["list"], ["verify", "HEAD"], ["recompute", "HEAD"]])
def test_a_repository_without_a_commit_is_named(
    tmp_path: Path,
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from topwork.cli import main

    run(tmp_path, "git", "init", "--quiet")
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["audit", *arguments]) != 0
    assert "has no commit yet" in capsys.readouterr().err
