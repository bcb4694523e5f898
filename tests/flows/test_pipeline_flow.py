"""The Prefect flow on a real DVC project: in place, and a revision in a worktree of its own."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flows.isolation import Isolated, RunError, commit_of
from flows.pipeline import bring_data

from conftest import done
from flows_tiny import WEIGHTS, Served, epoch_mark, make_tiny, steps, until, weights

DVC_YAML = """
stages:
  left:
    cmd: python step.py left
    deps: [data/raw.txt]
    outs: [left.txt]
  right:
    cmd: python step.py right
    deps: [step.py]
    outs: [right.txt]
  join:
    cmd: python step.py join
    deps: [left.txt, right.txt]
    outs: [join.txt]
"""
UPSTREAM_YAML = """
stages:
  raw:
    cmd: python ../step.py raw
    outs: [raw.txt]
  unused:
    cmd: python ../step.py unused
    outs: [unused.txt]
"""
STEP = """
import json, os, pathlib, sys, time
name = sys.argv[1]
print(f"{name} speaks")
if name == "left":
    print("epoch 1/4  loss 3")
    if os.environ["TOPWORK_EVENTS"] == "1":
        for done in (1, 3):
            event = {"kind": "progress", "done": done, "total": 4, "unit": "epoch"}
            print("@topwork", json.dumps(event))
if pathlib.Path("break").exists() and name == "right":
    message = "right.txt: found a break, expected none. Remove it."
    print("@topwork", json.dumps({"kind": "error", "message": message}))
    raise SystemExit(1)
began = time.time()
time.sleep(2 if name in ("left", "right") else 0)
pathlib.Path(f"{name}.txt").write_text(name)
if name in ("left", "right"):
    pathlib.Path(f"{name}.time").write_text(json.dumps([began, time.time()]))
"""


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Independent stages, one upstream in a dvc.yaml of its own, no git history."""
    (tmp_path / "data").mkdir()
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    (tmp_path / "data" / "dvc.yaml").write_text(UPSTREAM_YAML)
    (tmp_path / "step.py").write_text(STEP)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


def start(project: Path, served: Served, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows.pipeline", *words],
        cwd=project,
        env=served.client_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_flow(project: Path, served: Served, *words: str) -> subprocess.CompletedProcess[str]:
    process = start(project, served, *words)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def result(ran: subprocess.CompletedProcess[str]) -> tuple[dict[str, str], str]:
    """Stages' outcomes, and the last line."""
    assert ran.returncode == 0, ran.stderr[-4000:]
    *stages, last_line = ran.stdout.splitlines()
    return dict(line.rsplit(": ", 1) for line in stages), last_line  # type: ignore[arg-type,misc]


def kept(ran: subprocess.CompletedProcess[str]) -> str:
    return result(ran)[1].removeprefix("kept as ")


def last_run(served: Served, name: str) -> dict[str, object]:
    runs = served.post(
        "/flow_runs/filter", flow_runs={"name": {"like_": name}}, sort="START_TIME_DESC"
    )
    return dict(runs[0])


def test_stages_run_in_dvcs_order_then_are_fresh_then_fail_with_their_own_error(
    chain: Path, served: Served
) -> None:
    first = run_flow(chain, served, "--label", "order")
    stages, last_line = result(first)
    assert stages == {"data/dvc.yaml:raw": "ran", "left": "ran", "right": "ran", "join": "ran"}
    assert last_line == "4 of 4 stages ran"
    assert "left speaks" in first.stderr, "a stage's output reaches the log"
    assert not (chain / "data" / "unused.txt").exists(), "only what the pipeline needs is run"
    (began, ended), (other_began, other_ended) = (
        json.loads((chain / f"{name}.time").read_text()) for name in ("left", "right")
    )
    assert began < other_ended, "independent stages overlap"
    assert other_began < ended
    artifacts = served.artifacts(str(last_run(served, "order in place")["id"]))
    assert float(artifacts["progress-left"]) == 75
    assert "| join | Completed |" in artifacts["stages"]

    again = run_flow(chain, served)
    stages, last_line = result(again)
    assert set(stages.values()) == {"fresh"}
    assert last_line == "nothing has changed"

    (chain / "break").touch()
    (chain / "step.py").write_text(STEP + "# changed\n")
    (chain / "join.txt").unlink()
    broken = run_flow(chain, served)
    assert broken.returncode == 1
    assert broken.stderr.splitlines()[-1].startswith(
        "error: right: right.txt: found a break, expected none. Remove it."
    )
    assert not (chain / "join.txt").exists(), "nothing downstream of a failure runs"


def test_the_graph_is_dvcs_own(root: Path) -> None:
    from flows.stages import stage_graph

    graph = stage_graph(root)
    assert graph["surgery"] == ["check", "fetch"]
    assert "data/dvc.yaml:demo" in graph["validate"]
    assert set(graph["gate"]) == {"evaluate", "report"}
    order = list(graph)
    assert all(order.index(up) < order.index(stage) for stage, ups in graph.items() for up in ups)


def test_a_revision_runs_its_own_code_on_its_own_data_and_is_kept_once(
    tiny: Path, served: Served
) -> None:
    step = (tiny / "step.py").read_text()
    (tiny / "step.py").write_text("raise SystemExit('uncommitted code')\n")
    shutil.rmtree(tiny / "data" / "mine")
    first = run_flow(tiny, served, "--revision", "HEAD", "--label", "night")
    stages, _ = result(first)
    assert set(stages.values()) == {"ran"}
    name = kept(first)
    assert name.startswith("night-")
    assert weights(tiny, name) == WEIGHTS
    assert not (tiny / "out").exists(), "the working tree is left alone"
    assert done(tiny, "git", "worktree", "list").count("\n") == 1
    (tiny / "step.py").write_text(step)
    done(tiny, "dvc", "checkout", "--quiet", "data/mine.dvc")
    done(tiny, "dvc", "repro", "--quiet")
    lock = done(tiny, "git", "show", f"{experiment(tiny, name)}:dvc.lock")
    assert lock == (tiny / "dvc.lock").read_text(), "the same lock as from `dvc repro`"

    again = run_flow(tiny, served, "--revision", "HEAD", "--label", "night")
    stages, last_line = result(again)
    assert set(stages.values()) == {"fresh"}
    assert last_line == f"nothing has changed: as {name}"
    assert len(done(tiny, "dvc", "exp", "list", "--name-only").split()) == 1
    (run,) = served.post(
        "/flow_runs/filter",
        flow_runs={"id": {"any_": [str(last_run(served, "night: start")["id"])]}},
    )
    assert run["state"]["name"] == "Unchanged"


def experiment(project: Path, name: str) -> str:
    refs = done(project, "git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    (found,) = [ref for ref in refs if ref.endswith(f"/{name}")]
    return found


def test_a_breached_contract_is_kept_with_why(tiny: Path, served: Served) -> None:
    breach = ("--revision", "HEAD", "--label", "night", "--set", "finetune.lr=0.5")
    failed = run_flow(tiny, served, *breach)
    assert failed.returncode == 1
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("error: gate: contract breached: map is more than 1 (kept as night-")
    name = last.rpartition(" ")[2].rstrip(")")
    assert name.endswith("-finetune.lr=0.5")
    message = done(tiny, "git", "log", "-1", "--format=%s", experiment(tiny, name))
    assert "failed: gate: contract breached" in message
    metrics = done(tiny, "git", "show", f"{experiment(tiny, name)}:out/metrics.json")
    assert json.loads(metrics) == {"map": 5.0}
    assert not list((tiny / ".topwork" / "worktrees").iterdir())
    assert done(tiny, "git", "status", "--porcelain") == "", "params.yaml is as it was"
    run = last_run(served, "finetune.lr=0.5")
    assert run["state_name"] == "Breached"
    assert "gate: contract breached" in run["state"]["message"]
    artifacts = served.artifacts(str(run["id"]))
    assert "| map | 5 |" in artifacts["metrics"]
    assert name in artifacts["kept"]

    assert name in done(tiny, "topwork", "audit", "list", "--format", "csv")

    again = run_flow(tiny, served, *breach)
    assert f"(nothing has changed: as {name})" in again.stderr.splitlines()[-1]
    assert name in done(tiny, "dvc", "exp", "list", "--name-only").split()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"finetune.lrr": 1}, "`finetune.lrr`: unknown key, did you mean `lr`?"),
        ({"finetune.lr": "fast"}, "`finetune.lr`: found 'fast'"),
        ({"fintune.lr": 1}, "has no section fintune"),
        ({"finetune.lr.x": 1}, "finetune.lr is a value"),
    ],
    ids=["key", "value", "section", "below-a-value"],
)
def test_params_are_checked_before_anything_starts(
    tiny: Path, params: dict[str, object], message: str
) -> None:
    run = Isolated(tiny, commit_of(tiny, "HEAD"), params)
    with pytest.raises(RunError, match=re.escape(message)):
        run.open()
    assert done(tiny, "git", "worktree", "list").count("\n") == 1
    assert done(tiny, "git", "status", "--porcelain") == ""


def test_what_cannot_be_run_is_reported(tiny: Path, served: Served) -> None:
    with pytest.raises(RunError, match=r"nothere: no such revision in .* start"):
        commit_of(tiny, "nothere")
    ended = run_flow(tiny, served, "--set", "finetune.lr=1")
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: params and data are for a revision: give one")
    shutil.rmtree(tiny / ".dvc")
    ended = run_flow(tiny, served, "--revision", "HEAD")
    assert ended.returncode == 1
    assert "you are not inside of a DVC repository" in ended.stderr.splitlines()[-1]


def test_a_revision_of_an_earlier_layout_is_reported(tiny: Path) -> None:
    (tiny / "src" / "topwork").mkdir(parents=True)
    (tiny / "src" / "topwork" / "__init__.py").touch()
    done(tiny, "git", "add", "--all")
    done(tiny, "git", "commit", "--quiet", "--message", "a package without params")
    with pytest.raises(RunError, match="it is older than this layout"):
        Isolated(tiny, commit_of(tiny, "HEAD")).open()
    done(tiny, "git", "rm", "-r", "--quiet", "dvc.yaml", "src")
    done(tiny, "git", "commit", "--quiet", "--message", "no graph")
    with pytest.raises(RunError, match=r"no dvc\.yaml in this revision"):
        Isolated(tiny, commit_of(tiny, "HEAD")).open()
    assert done(tiny, "git", "worktree", "list").count("\n") == 1


def test_what_was_never_run_has_no_records(tiny: Path) -> None:
    run = Isolated(tiny, commit_of(tiny, "HEAD"))
    assert run.earlier() is None
    assert run.run_ref() == "", "a push of nothing"


def test_data_that_nobody_has_is_reported(tiny: Path) -> None:
    shutil.rmtree(tiny / ".dvc" / "cache")
    run = Isolated(tiny, commit_of(tiny, "HEAD"))
    run.open()
    with pytest.raises(RunError, match=r"data/mine at \w+: .*no DVC remote was asked"):
        bring_data(run, None)
    run.close()


@pytest.mark.long
def test_new_data_is_found_run_and_not_run_again(tiny: Path, served: Served) -> None:
    look = ("--revision", "HEAD", "--data", "current", "--only-new-data", "--label", "new")
    run_flow(tiny, served, *look)
    assert result(run_flow(tiny, served, *look))[1] == "no data has changed since the last run"
    (tiny / "data" / "mine" / "a.txt").write_text("two\n")
    found = run_flow(tiny, served, *look)
    assert weights(tiny, kept(found)) == WEIGHTS.replace("one", "two")
    record = done(tiny, "git", "show", f"{experiment(tiny, kept(found))}:data/mine.dvc")
    assert record != (tiny / "data" / "mine.dvc").read_text(), "the record names the new data"
    assert result(run_flow(tiny, served, *look))[1] == "no data has changed since the last run"
    assert done(tiny, "git", "status", "--porcelain") == "", "the working tree's .dvc file isn't"


def test_one_run_at_a_time_by_choice(tiny: Path, served: Served) -> None:
    served.pace.write_text("5")
    first = start(tiny, served, "--revision", "HEAD")
    until(epoch_mark(tiny, 0).exists, 60, "the first trains")
    joining = start(tiny, served, "--revision", "HEAD", "--collision", "join")
    skipped = run_flow(tiny, served, "--revision", "HEAD", "--collision", "skip")
    served.pace.write_text("0")
    assert first.poll() is None, "the other one still runs"
    assert result(skipped)[1].startswith("skipped: ")
    out, err = first.communicate(timeout=120)
    name = out.splitlines()[-1].removeprefix("kept as ")
    assert name.startswith("run-"), err[-3000:]
    out, err = joining.communicate(timeout=120)
    assert out.splitlines()[-1].startswith("joined ")
    assert out.splitlines()[-1].endswith(f": kept as {name}")
    assert " has the project (process " in err
    waited = run_flow(tiny, served, "--revision", "HEAD")
    assert result(waited)[1] == f"nothing has changed: as {name}"


@pytest.mark.long
def test_another_dvc_is_waited_for(chain: Path, served: Served) -> None:
    lock = "import sys, time; from dvc.repo import Repo; repo = Repo()\n"
    lock += "with repo.lock: print('held', flush=True); time.sleep(12)"
    with subprocess.Popen(
        [sys.executable, "-c", lock], cwd=chain, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        began = time.monotonic()
        ran = run_flow(chain, served)
    assert set(result(ran)[0].values()) == {"ran"}
    assert time.monotonic() - began > 5


@pytest.mark.long
def test_what_dead_runs_left_is_kept_and_swept(tiny: Path, served: Served) -> None:
    served.pace.write_text("2")
    dying = start(tiny, served, "--revision", "HEAD", "--label", "dead", "--set", "finetune.seed=3")
    until(epoch_mark(tiny, 1, 3).exists, 60, "it trains")
    dying.kill()
    dying.communicate()
    served.pace.write_text("0")
    (left,) = (tiny / ".topwork" / "worktrees").iterdir()
    young = run_flow(tiny, served, "--revision", "HEAD")
    assert left.exists(), "a later run of the same would go on with it"
    assert result(young)[0]["train"] == "ran"
    old = run_flow(tiny, served, "--revision", "HEAD", "--keep-days", "0")
    assert f"{left.name}: removed, kept as dead-" in old.stderr
    assert not left.exists()
    assert not list((tiny / ".topwork" / "scratch").iterdir())
    (name,) = [
        name
        for name in done(tiny, "dvc", "exp", "list", "--name-only").split()
        if name.startswith("dead-")
    ]
    subject = done(tiny, "git", "log", "-1", "--format=%s", experiment(tiny, name))
    assert "failed: killed, and never gone on with" in subject


@pytest.fixture
def clones(tiny: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two clones of a project with a git remote and a DVC remote, which is written relative to the
    project; the second has nothing in its cache.
    """
    done(tiny, "git", "init", "--quiet", "--bare", "-b", "main", str(tmp_path / "origin.git"))
    done(tiny, "dvc", "remote", "add", "--quiet", "--default", "shared", "../remote")
    done(tiny, "git", "commit", "--quiet", "--all", "--message", "remotes")
    done(tiny, "git", "remote", "add", "origin", str(tmp_path / "origin.git"))
    done(tiny, "git", "push", "--quiet", "origin", "main")
    done(tiny, "dvc", "push", "--quiet")
    done(tmp_path, "git", "clone", "--quiet", str(tmp_path / "origin.git"), "second")
    return tiny, tmp_path / "second"


@pytest.mark.long
def test_machines_share_what_they_made(clones: tuple[Path, Path], served: Served) -> None:
    first, second = clones
    # a setting of this machine's own, in addition to the url that git has
    done(second, "dvc", "config", "--local", "remote.shared.verify", "true")
    run = ("--revision", "origin/main", "--pull", "--push", "--label", "night")
    ran = run_flow(first, served, *run)
    assert set(result(ran)[0].values()) == {"ran"}
    elsewhere = run_flow(second, served, *run)
    stages, last_line = result(elsewhere)
    assert set(stages.values()) == {"fresh"}, "pulled, not made again"
    assert last_line == f"nothing has changed: as {kept(ran)}"
    assert kept(ran) in done(second, "dvc", "exp", "list", "--name-only").split()


@pytest.mark.long
def test_a_remote_that_is_gone_costs_nothing_that_was_made(
    clones: tuple[Path, Path], served: Served, tmp_path: Path
) -> None:
    first, second = clones
    (tmp_path / "remote").rename(tmp_path / "gone")
    ended = run_flow(second, served, "--revision", "origin/main")
    assert ended.returncode == 1
    assert "data/mine at " in ended.stderr.splitlines()[-1]
    (tmp_path / "remote").write_text("a file in the way")
    pushing = ("--revision", "HEAD", "--push", "--label", "night")
    ended = run_flow(first, served, *pushing)
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: push: dvc push")
    name = last.rpartition("kept as ")[2].rstrip(")")
    assert weights(first, name) == WEIGHTS
    assert ended.stderr.count("Retry 3/3") == 1, "tried again, and given up"
    (tmp_path / "remote").unlink()
    (tmp_path / "gone").rename(tmp_path / "remote")
    again = run_flow(first, served, *pushing)
    assert result(again)[1] == f"nothing has changed: as {name}"
    assert f"/{name}" in done(first, "git", "ls-remote", "origin")


@pytest.mark.long
def test_time_that_is_up_ends_all_that_runs(tiny: Path, served: Served) -> None:
    served.pace.write_text("5")
    ended = run_flow(tiny, served, "--revision", "HEAD", "--timeout-minutes", "0.1")
    served.pace.write_text("0")
    assert ended.returncode == 1
    assert "the run took more than timeout_minutes (0.1)" in ended.stderr.splitlines()[-1]
    assert not steps(tiny)
    again = run_flow(tiny, served, "--revision", "HEAD")
    assert weights(tiny, kept(again)) == WEIGHTS


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The mount point of a file system of 20 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", folder]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system of its own: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.long
def test_a_full_disk_costs_nothing_that_was_trained(small_disk: Path, served: Served) -> None:
    tiny = make_tiny(small_disk / "tiny")
    served.pace.write_text("2")
    filling = start(tiny, served, "--revision", "HEAD")
    until(epoch_mark(tiny, 2).exists, 120, "it trains")
    free = shutil.disk_usage(tiny).free
    with pytest.raises(OSError, match="No space left"), (small_disk / "ballast").open("wb") as file:
        while True:
            file.write(bytes(min(free, 1 << 16)))
            file.flush()
    _, err = filling.communicate(timeout=300)
    served.pace.write_text("0")
    assert filling.returncode == 1
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert "No space left on device" in last
    assert not steps(tiny)
    (small_disk / "ballast").unlink()
    again = run_flow(tiny, served, "--revision", "HEAD")
    assert "epoch 0" not in again.stderr, "what was trained isn't trained again"
    assert weights(tiny, kept(again)) == WEIGHTS


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_new_detector_becomes_champion_by_choice(
    project: Path, served: Served, tmp_path: Path
) -> None:
    own = tmp_path / "project"
    shutil.copytree(project, own, symlinks=True)
    done(tmp_path, "git", "init", "--quiet", "--bare", str(tmp_path / "origin.git"))
    done(own, "git", "remote", "add", "origin", str(tmp_path / "origin.git"))
    done(own, "dvc", "remote", "add", "--quiet", "--local", "--default", "shared", "../remote")
    run = ("--revision", "HEAD", "--promote", "--label", "night")
    before = set(run_records(own))
    first = run_flow(own, served, *run, "--push", "--set", "report.pictures=1")
    stages, last_line = result(first)
    assert {name for name, state in stages.items() if state == "ran"} == {"report", "gate"}
    assert "; champion: v0.1.0 (" in last_line
    assert last_line.endswith("the first champion, contract met")
    assert "refs/tags/detector#champion#1" in done(own, "git", "ls-remote", "--tags", "origin")
    new = [path for path in run_records(own) if path not in before]
    assert sorted(path.name.split("-")[1] for path in new) == ["gate", "report"]
    worse = run_flow(own, served, *run, "--set", "retention.person.min=1.5")
    assert worse.returncode == 1
    assert len(done(own, "topwork", "champion").splitlines()) == 1
    second = run_flow(own, served, *run, "--set", "report.pictures=3")
    assert result(second)[1].endswith("no worse than v0.1.0, contract met")
    assert len(done(own, "topwork", "champion").splitlines()) == 2


def run_records(project: Path) -> list[Path]:
    return sorted((project / ".topwork" / "runs").glob("*.json"))
