"""A tiny project, and one `make serve` for all tests of flows."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from conftest import ROOT, done

STEP = """
import contextlib, json, os, pathlib, shutil, sys, time
name = sys.argv[1]
out = pathlib.Path("out")
out.mkdir(exist_ok=True)
data = pathlib.Path("data/mine/a.txt").read_text()
from ruamel.yaml import YAML
params = YAML(typ="safe").load(pathlib.Path("params.yaml"))["finetune"]

def say(**event):
    if os.environ.get("TOPWORK_EVENTS") == "1":
        print("@topwork", json.dumps(event), flush=True)

if name == "left":
    (out / "left").write_text("left " + data)
if name == "train":
    scratch = pathlib.Path(f".topwork/scratch/{params['seed']}")
    scratch.mkdir(parents=True, exist_ok=True)
    text = ""
    for n in range(10):
        done, kept = scratch / str(n), ""
        with contextlib.suppress(FileNotFoundError):
            kept = done.read_text()
        if not kept:
            pace = pathlib.Path(os.environ.get("TINY_PACE", "none"))
            time.sleep(float(pace.read_text()) if pace.exists() else 0)
            # whole or not at all, as a training's checkpoints are; a trial that trains the same
            # may have ended, and removed them
            scratch.mkdir(parents=True, exist_ok=True)
            kept, part = f"{n} ", scratch / f"part{os.getpid()}"
            part.write_text(kept)
            part.rename(done)
            print("epoch", n, flush=True)
            say(kind="progress", done=n + 1, total=10, unit="epoch")
        text += kept
    (out / "weights").write_text(text + data)
    shutil.rmtree(scratch, ignore_errors=True)
if name == "score":
    (out / "metrics.json").write_text(json.dumps({"map": params["lr"] * 10}))
if name == "gate":
    if json.loads((out / "metrics.json").read_text())["map"] > 1:
        say(kind="error", message="contract breached: map is more than 1")
        raise SystemExit(1)
    (out / "gate").write_text("ok")
"""
DVC_YAML = """
stages:
  left:
    cmd: python step.py left
    deps: [data/mine]
    outs: [out/left]
  train:
    cmd: python step.py train
    deps: [step.py, data/mine]
    params: [finetune.seed]
    outs: [out/weights]
  score:
    cmd: python step.py score
    deps: [out/weights, out/left]
    params: [finetune.lr]
    metrics:
      - out/metrics.json: {cache: false}
  gate:
    cmd: python step.py gate
    deps: [out/metrics.json]
    outs: [out/gate]
"""
WEIGHTS = "0 1 2 3 4 5 6 7 8 9 one\n"
"""What `train` writes, however often it was killed."""


SEED = 0
"""Of params.yaml."""


def epoch_mark(project: Path, epoch: int, seed: int = SEED) -> Path:
    """The checkpoint of an epoch."""
    return project / ".topwork" / "scratch" / str(seed) / str(epoch)


def make_tiny(folder: Path) -> Path:
    """A committed project with data of its own (`dvc add`), four stages, and the flows."""
    (folder / "data" / "mine").mkdir(parents=True)
    (folder / "data" / "mine" / "a.txt").write_text("one\n")
    (folder / "step.py").write_text(STEP)
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / ".gitignore").write_text("/.topwork/\n__pycache__/\n/out/*\n!/out/metrics.json\n")
    for name in ("params.yaml", "prefect.yaml"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(["cp", "-r", str(ROOT / "flows"), str(folder / "flows")], check=True)
    done(folder, "git", "init", "--quiet", "--initial-branch", "main")
    done(folder, "git", "config", "user.email", "a@b.c")
    done(folder, "git", "config", "user.name", "a")
    done(folder, "dvc", "init", "--quiet")
    done(folder, "dvc", "add", "--quiet", "data/mine")
    done(folder, "git", "add", "--all")
    done(folder, "git", "commit", "--quiet", "--message", "start")
    return folder


def until(true: Callable[[], Any], seconds: float, what: str | Callable[[], str]) -> Any:
    """Wait until something is true; what it gave."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.2)
    pytest.fail(f"not within {seconds} s: {what if isinstance(what, str) else what()}")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Served:
    """A running `make serve` of a tiny project, seen over HTTP and by its processes."""

    def __init__(self, project: Path, **more: str) -> None:
        self.project, self.more = project, more
        self.pace = project.parent / "pace"
        self.log = project.parent / "serve.log"
        self.port = free_port()
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.client = httpx.Client(base_url=self.api, timeout=60)
        self.process: subprocess.Popen[bytes] | None = None

    def environment(self) -> dict[str, str]:
        environment = {
            **os.environ,
            "TOPWORK_PREFECT_PORT": str(self.port),
            "TINY_PACE": str(self.pace),
            "TOPWORK_NETWORK_WAIT_S": "0.1",
            "PREFECT_LOGGING_LEVEL": "INFO",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "5",
            **self.more,
        }
        environment.pop("PREFECT_API_URL", None)
        return environment

    def client_environment(self) -> dict[str, str]:
        """For commands that talk with the server."""
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        return self.environment() | {"PREFECT_API_URL": self.api, "PYTHONPATH": path}

    def start(self) -> None:
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.serve"],
                cwd=self.project,
                env=self.environment(),
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until(
            lambda: "Prefect: http" in self.output() or self.process.poll() is not None,  # type: ignore[union-attr]
            400,
            self.output,
        )
        assert self.process.poll() is None, self.output()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(timeout=90)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def post(self, path: str, **body: Any) -> Any:
        return self._answer("POST", path, json=body)

    def get(self, path: str) -> Any:
        return self._answer("GET", path)

    def _answer(self, method: str, path: str, **body: Any) -> Any:
        """Asked again where the server says that it is busy, as Prefect's own client does."""
        for _ in range(10):
            answer = self.client.request(method, path, **body)
            if answer.status_code != 503:
                break
            time.sleep(1)
        answer.raise_for_status()
        return answer.json()

    def submit(self, deployment: str = "pipeline/nightly", **parameters: Any) -> str:
        """Ask for a run now; its id."""
        identity = self.get(f"/deployments/name/{deployment}")["id"]
        run = self.post(f"/deployments/{identity}/create_flow_run", parameters=parameters)
        return str(run["id"])

    def state(self, run: str) -> dict[str, Any]:
        return dict(self.get(f"/flow_runs/{run}")["state"] or {})

    def ended(self, run: str, seconds: float = 120) -> dict[str, Any]:
        """Wait until a run has ended; its last state."""
        final = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

        def over() -> bool:
            try:
                return self.state(run)["type"] in final
            except httpx.HTTPError:
                return False  # the server has been killed, say

        until(over, seconds, lambda: f"{self.state(run)}\n{self.output()[-4000:]}")
        return self.state(run)

    def unfinished_tasks(self, run: str) -> list[str]:
        tasks = self.post("/task_runs/filter", flow_runs={"id": {"any_": [run]}})
        running = {"PENDING", "RUNNING", "SCHEDULED", "CANCELLING"}
        return [task["name"] for task in tasks if task["state_type"] in running]

    def artifacts(self, run: str) -> dict[str, str]:
        found = self.post("/artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
        return {item["key"]: str(item["data"]) for item in found}

    def wait_for_epoch(self, epoch: int, seed: int = SEED) -> None:
        mark = epoch_mark(self.project, epoch, seed)
        until(mark.exists, 120, lambda: f"epoch {epoch}\n{self.output()[-4000:]}")

    def processes(self, word: str) -> list[psutil.Process]:
        """Processes of this serve whose command line has a word."""
        assert self.process is not None
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                line = process.cmdline()
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            if any(word in part for part in line) and "processes.py" not in " ".join(line):
                found.append(process)
        return found


def steps(project: Path) -> list[int]:
    """Numbers of the processes that run a stage of a project, or of one of its worktrees."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        line, cwd = process.info["cmdline"] or [], process.info["cwd"] or ""
        stage = "step.py" in line or "repro" in line
        if stage and (Path(cwd) == project or Path(cwd).is_relative_to(project)):
            found.append(process.pid)
    return found


def weights(project: Path, name: str) -> str:
    """What `train` wrote in an experiment or on a branch: from the shared cache."""
    ref = done(
        project, "git", "for-each-ref", "--format=%(refname)", "refs/exps", "refs/heads"
    ).splitlines()
    (full,) = [line for line in ref if line.endswith(f"/{name}")]
    lock = done(project, "git", "show", f"{full}:dvc.lock")
    found = re.search(r"path: out/weights\n\s+hash: md5\n\s+md5: (\w+)", lock)
    assert found, lock
    md5 = found[1]
    return (project / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]).read_text()


def start_served(folder: Path, **more: str) -> Served:
    """`make serve` of a new tiny project, with more in its environment."""
    project = make_tiny(folder / "tiny")
    # its quarter of an hour may strike while a test runs
    text = (project / "prefect.yaml").read_text()
    assert "*/15 * * * *" in text
    (project / "prefect.yaml").write_text(text.replace("*/15 * * * *", "0 3 1 1 *"))
    served = Served(project, **more)
    served.start()
    return served
