"""`make serve` for real: deployments, runs that are killed or cancelled, parts that are killed."""

import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar
from zoneinfo import ZoneInfo

import httpx
import psutil
import pytest

from conftest import done
from flows_tiny import WEIGHTS, Served, free_port, make_tiny, start_served, steps, until, weights


def engine(served: Served) -> int:
    """The process of the flow run."""
    (found,) = {
        process.pid
        for process in served.processes("prefect.flow_engine") + served.processes("prefect.engine")
    }
    return found


def test_deployments_are_scheduled_in_their_time_zone(served: Served) -> None:
    night = served.get("/deployments/name/pipeline/nightly")
    (schedule,) = night["schedules"]
    assert schedule["schedule"]["cron"] == "30 2 * * *"
    assert night["global_concurrency_limit"]["limit"] == 1
    runs = until(
        lambda: served.post(
            "/flow_runs/filter",
            deployments={"id": {"any_": [night["id"]]}},
            flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}},
        ),
        90,
        "the scheduler plans nights",
    )
    zone = ZoneInfo(schedule["schedule"]["timezone"])
    local = [datetime.fromisoformat(run["expected_start_time"]).astimezone(zone) for run in runs]
    assert {(time.hour, time.minute) for time in local} == {(2, 30)}
    assert len({time.date() for time in local}) == len(local)


def test_a_killed_run_leaves_nothing_running_and_is_gone_on_with(served: Served) -> None:
    served.pace.write_text("2")
    run = served.submit()
    served.wait_for_epoch(1)
    os.kill(engine(served), signal.SIGKILL)
    until(lambda: not steps(served.project), 60, "its stage and DVC end with it")
    served.pace.write_text("0")
    assert served.ended(run, 120)["type"] == "CRASHED"
    until(lambda: not served.unfinished_tasks(run), 120, "no task is left running")
    assert "epoch 0" in served.output()

    again = served.submit()
    assert served.ended(again)["type"] == "COMPLETED"
    name = served.state(again)["message"].removeprefix("kept as ")
    assert weights(served.project, name) == WEIGHTS
    logs = served.post("/logs/filter", logs={"flow_run_id": {"any_": [again]}}, limit=200)
    messages = [entry["message"] for entry in logs]
    assert any("going on with what a killed run of the same left" in line for line in messages)
    assert "epoch 0" not in messages, "what was trained isn't trained again"
    assert "epoch 9" in messages
    assert not list((served.project / ".topwork" / "worktrees").iterdir())
    assert not list((served.project / ".topwork" / "flows" / "alive").iterdir())


def test_a_cancelled_run_ends_all_that_it_started(served: Served) -> None:
    served.pace.write_text("2")
    run = served.submit(params={"finetune.seed": 7})
    served.wait_for_epoch(1, seed=7)
    served.post(f"/flow_runs/{run}/set_state", state={"type": "CANCELLING"}, force=False)
    until(lambda: not steps(served.project), 60, "its stage and DVC end")
    served.pace.write_text("0")
    assert served.ended(run, 120)["type"] == "CANCELLED"
    until(lambda: not served.unfinished_tasks(run), 120, "no task is left running")

    again = served.submit(params={"finetune.seed": 7})
    assert served.ended(again)["type"] == "COMPLETED"
    name = served.state(again)["message"].removeprefix("kept as ")
    assert weights(served.project, name) == WEIGHTS


class Listener(http.server.BaseHTTPRequestHandler):
    """Keeps what was posted."""

    posted: ClassVar[list[dict[str, str]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.posted.append(json.loads(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.long
def test_somebody_is_notified_of_a_breached_contract(served: Served) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{listener.server_address[1]}/secret-hook"
        notify = [sys.executable, "-m", "flows.notify", url]
        for _ in range(2):  # a second time takes the place of the first
            subprocess.run(notify, cwd=served.project, env=served.client_environment(), check=True)
        names = [item["name"] for item in served.post("/automations/filter")]
        assert sorted(names) == [
            "topwork: a contract is breached",
            "topwork: a run failed",
            "topwork: a silent run has crashed",
            "topwork: no night",
        ]
        run = served.submit(params={"finetune.lr": 0.5})
        assert served.ended(run)["name"] == "Breached"
        until(lambda: Listener.posted, 60, "the webhook is called")
        listener.shutdown()
    (posted,) = Listener.posted
    assert posted["text"] == "the retention contract is breached"
    assert posted["state"] == "Breached"
    assert posted["message"].startswith("gate: contract breached: map is more than 1")
    assert posted["run"].endswith("nightly: finetune.lr=0.5")
    assert run in posted["page"]
    assert "secret-hook" not in served.output()


def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    project = make_tiny(tmp_path / "tiny")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [sys.executable, "-m", "flows.serve"],
            cwd=project,
            env={**os.environ, "TOPWORK_PREFECT_PORT": str(port)},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: port {port} is taken")
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.long
def test_the_audit_holds_every_kept_experiment_against_its_record(served: Served) -> None:
    run = served.submit(params={"finetune.seed": 9})
    assert served.ended(run)["type"] == "COMPLETED"
    name = served.state(run)["message"].removeprefix("kept as ")
    looked = served.submit("audit/weekly-audit")
    ended = served.ended(looked)
    assert ended["type"] == "COMPLETED"
    assert re.fullmatch(
        r"(\d+) of \1 experiments looked at, \d+ computed again, none is broken", ended["message"]
    )
    assert name in served.artifacts(looked)["audit"]

    lock = done(served.project, "git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    (ref,) = [ref for ref in lock if ref.endswith(f"/{name}")]
    md5 = done(served.project, "git", "show", f"{ref}:dvc.lock").split("path: out/weights")[1]
    md5 = md5.split("md5: ")[1].split()[0]
    cached = served.project / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    cached.chmod(0o644)
    whole = cached.read_bytes()
    cached.write_bytes(b"damaged")
    looked = served.submit("audit/weekly-audit")
    ended = served.ended(looked)
    cached.write_bytes(whole)
    assert (ended["type"], ended["name"]) == ("FAILED", "Broken")
    assert name in ended["message"]


@pytest.mark.long
def test_the_audit_computes_some_again_within_its_time(own_served: Served) -> None:
    served, project = own_served, own_served.project
    done(project, "dvc", "repro", "--quiet")
    done(project, "git", "add", "--all")
    done(project, "git", "commit", "--quiet", "--message", "a run")
    run = served.submit(params={"finetune.seed": 9})
    assert served.ended(run)["type"] == "COMPLETED"
    again = {"recompute_minutes": 5}
    looked = served.submit("audit/weekly-audit", **again)
    assert served.ended(looked, 240)["message"] == (
        "2 of 2 experiments looked at, 2 computed again, none is broken"
    )
    assert "have the recorded bits" in served.artifacts(looked)["audit"]

    # a record whose hashes agree with each other, and which its inputs don't give
    (project / "out" / "metrics.json").write_text('{"map": 0.9}')
    done(project, "dvc", "commit", "--quiet", "--force", "score", "gate")
    done(project, "git", "commit", "--quiet", "--all", "--message", "a forged run")
    served.pace.write_text("30")
    looked = served.submit("audit/weekly-audit", recompute_minutes=0.4)
    assert "not recomputed to its end" in (
        served.ended(looked, 240) and served.artifacts(looked)["audit"]
    )
    assert not steps(project)
    served.pace.write_text("0")
    looked = served.submit("audit/weekly-audit", **again)
    ended = served.ended(looked, 240)
    assert (ended["type"], ended["name"]) == ("FAILED", "Broken")
    assert "recomputed: " in ended["message"]
    assert "MISMATCH" in ended["message"]
    assert "Cause: record" in ended["message"]


@pytest.fixture
def own_served(tmp_path: Path) -> Iterator[Served]:
    """One whose parts may be killed."""
    served = start_served(tmp_path)
    yield served
    served.stop()


@pytest.mark.long
def test_a_killed_worker_is_started_again_and_the_next_run_ends_in_the_same_bits(
    own_served: Served,
) -> None:
    served = own_served
    served.pace.write_text("2")
    run = served.submit()
    served.wait_for_epoch(1)
    (worker,) = [p for p in served.processes("worker") if "start" in p.cmdline()]
    worker.kill()
    until(lambda: not steps(served.project), 60, "nothing runs on unseen")
    served.pace.write_text("0")
    assert served.ended(run, 120)["type"] == "CRASHED"
    until(lambda: not served.unfinished_tasks(run), 120, "no task is left running")
    again = served.submit()
    assert served.ended(again, 180)["type"] == "COMPLETED", "by the worker that was started again"
    assert weights(served.project, served.state(again)["message"].split()[-1]) == WEIGHTS


@pytest.mark.long
def test_a_killed_server_is_started_again_and_the_run_goes_on(own_served: Served) -> None:
    served = own_served
    served.pace.write_text("2")
    run = served.submit()
    served.wait_for_epoch(1)
    (server,) = [p for p in served.processes("server") if "start" in p.cmdline()]
    server.kill()

    def answers() -> bool:
        try:
            return bool(served.get("/health"))
        except httpx.HTTPError:
            return False

    until(lambda: not answers(), 20, "it is gone")
    until(answers, 120, "it is started again")
    ended = served.ended(run, 240)
    if ended["type"] != "COMPLETED":  # what the run had to say while nobody listened
        assert ended["type"] in ("CRASHED", "FAILED")
        again = served.submit()
        ended = served.ended(again, 180)
        assert ended["type"] == "COMPLETED"
    assert weights(served.project, ended["message"].split()[-1]) == WEIGHTS
    until(lambda: not served.unfinished_tasks(run), 120, "no task is left running")


@pytest.mark.long
def test_a_killed_serve_leaves_nothing(tmp_path: Path) -> None:
    served = start_served(tmp_path)
    served.pace.write_text("2")
    run = served.submit()
    served.wait_for_epoch(1)
    assert served.process is not None
    served.process.kill()
    served.process.wait()

    def left() -> str:
        lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
        return "\n".join(line for line in lines.splitlines() if str(served.project) in line)

    until(lambda: not left() and not steps(served.project), 30, left)
    served.pace.write_text("0")
    served.start()
    assert served.ended(run, 120)["type"] == "CRASHED"
    until(lambda: not served.unfinished_tasks(run), 120, "no task is left running")
    again = served.submit()
    assert served.ended(again, 180)["type"] == "COMPLETED"
    assert weights(served.project, served.state(again)["message"].split()[-1]) == WEIGHTS
    served.stop()


@pytest.mark.long
def test_runs_that_a_sleeping_machine_missed_begin_when_it_wakes(own_served: Served) -> None:
    served = own_served
    assert served.process is not None
    identity = served.get("/deployments/name/pipeline/nightly")["id"]
    runs = []
    for seconds in (15, 25):
        due = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due}}
        asked = served.post(f"/deployments/{identity}/create_flow_run", state=state)
        runs.append(asked["id"])
    own = psutil.Process(served.process.pid)
    asleep = [own, *own.children(recursive=True)]
    for process in asleep:
        process.suspend()
    time.sleep(40)
    for process in asleep:
        process.resume()
    states = [served.ended(run, 300) for run in runs]
    assert [state["type"] for state in states] == ["COMPLETED", "COMPLETED"]
    assert sorted(state["name"] for state in states) == ["Completed", "Unchanged"]
    (name,) = done(served.project, "dvc", "exp", "list", "--name-only").split()
    assert weights(served.project, name) == WEIGHTS


@pytest.mark.long
def test_a_part_that_keeps_ending_ends_the_whole_with_the_reason(own_served: Served) -> None:
    served = own_served
    assert served.process is not None
    killed: set[int] = set()
    for _ in range(5):
        workers = until(
            lambda: [each for each in served.processes("worker") if each.pid not in killed],
            60,
            "another worker runs",  # a killed one may be seen for a while
        )
        for worker in workers:
            killed.add(worker.pid)
            worker.kill()
        if served.process.poll() is not None:
            break
    served.process.wait(60)
    assert served.process.returncode == 1
    assert "has ended 5 times within 10 minutes" in served.output()


CLOCKS_CHANGE = [
    ("Europe/Vienna", "30 2 * * *", "2026-03-29"),
    ("Europe/Vienna", "30 2 * * *", "2026-10-25"),
    ("America/New_York", "30 2 * * *", "2026-03-08"),
    ("America/New_York", "30 1 * * *", "2026-11-01"),
]
"""Zone, schedule in the hour that is left out or comes twice, day."""


def test_one_run_on_the_days_on_which_clocks_change() -> None:
    code = f"""
import asyncio, json
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo
from prefect.server.schemas.schedules import CronSchedule
for name, cron, day in {CLOCKS_CHANGE!r}:
    zone = ZoneInfo(name)
    noon = datetime.fromisoformat(day + "T12:00").replace(tzinfo=zone)
    schedule = CronSchedule(cron=cron, timezone=name)
    dates = asyncio.run(schedule.get_dates(
        100, start=noon - timedelta(days=2), end=noon + timedelta(days=2)))
    print(*[date.astimezone(zone).date() for date in dates])
"""
    lines = done(Path.cwd(), sys.executable, "-c", code).splitlines()
    for (_, _, day), line in zip(CLOCKS_CHANGE, lines, strict=True):
        days = line.split()
        assert days.count(day) == 1
        assert len(days) == len(set(days)) == 4


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[str]:
    """The address of a database of a PostgreSQL of its own."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not programs:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    if os.getuid() == 0 and not shutil.which("runuser"):
        pytest.skip("PostgreSQL refuses root, and runuser isn't there")
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # a socket's path must be short
    as_other = []
    if os.getuid() == 0:
        shutil.chown(folder, "nobody")
        as_other = ["runuser", "-u", "nobody", "--"]
    port = str(free_port())
    binaries = programs[-1].parent
    data = folder / "data"
    subprocess.run(
        [*as_other, binaries / "initdb", "-D", data, "-U", "prefect", "--auth", "trust"],
        check=True,
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    server = subprocess.Popen(
        [*as_other, binaries / "postgres", "-D", data, "-p", port, "-k", folder],
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )
    try:
        ready = [binaries / "pg_isready", "-h", "127.0.0.1", "-p", port]
        until(lambda: subprocess.run(ready, capture_output=True).returncode == 0, 60, "it listens")
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder)


@pytest.mark.long
def test_the_server_runs_on_postgresql(tmp_path: Path, postgresql: str) -> None:
    served = start_served(tmp_path, PREFECT_API_DATABASE_CONNECTION_URL=postgresql)
    try:
        served.pace.write_text("2")
        run = served.submit()
        served.wait_for_epoch(1)
        os.kill(engine(served), signal.SIGKILL)
        served.pace.write_text("0")
        assert served.ended(run, 120)["type"] == "CRASHED"
        again = served.submit()
        assert served.ended(again)["type"] == "COMPLETED"
        name = served.state(again)["message"].removeprefix("kept as ")
        assert weights(served.project, name) == WEIGHTS
        assert not (served.project / ".topwork" / "prefect" / "prefect.db").exists()
    finally:
        served.stop()


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_ten_runs_at_once_on_sqlite(tmp_path: Path) -> None:
    served = start_served(tmp_path, PREFECT_WORKER_HEARTBEAT_SECONDS="5")  # Prefect's own is 30
    try:
        runs = [served.submit(params={"finetune.seed": 20 + n}) for n in range(10)]
        for run in runs:
            assert served.ended(run, 600)["type"] == "COMPLETED"
        assert "database is locked" not in served.output()
    finally:
        served.stop()
