"""The scheduled run: `make serve` for real, a schedule that fires, a worktree that shares the
cache.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import done

STEP = (
    "import pathlib; pathlib.Path('out.txt').write_text(pathlib.Path('in.txt').read_text() * 2)\n"
)
DVC_YAML = (
    "stages:\n  double:\n    cmd: python step.py\n    deps: [step.py, in.txt]\n    outs:"
    " [out.txt]\n"
)


@pytest.fixture
def scheduled(tmp_path: Path, root: Path) -> Path:
    """A tiny committed project whose nightly deployment runs every few seconds."""
    (tmp_path / "step.py").write_text(STEP)
    (tmp_path / "in.txt").write_text("ab")
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    (tmp_path / ".gitignore").write_text("/.topwork/\n__pycache__/\n")
    subprocess.run(["cp", "-r", str(root / "flows"), str(tmp_path / "flows")], check=True)
    text = (root / "prefect.yaml").read_text()
    assert '- cron: "0 2 * * *"\n        timezone: UTC' in text
    (tmp_path / "prefect.yaml").write_text(
        text.replace('- cron: "0 2 * * *"\n        timezone: UTC', "- interval: 20")
    )
    done(tmp_path, "git", "init", "--quiet", "--initial-branch", "main")
    done(tmp_path, "git", "config", "user.email", "a@b.c")
    done(tmp_path, "git", "config", "user.name", "a")
    done(tmp_path, "dvc", "init", "--quiet")
    done(tmp_path, "git", "add", "--all")
    done(tmp_path, "git", "commit", "--quiet", "--message", "start")
    return tmp_path


def test_a_served_deployment_runs_on_its_schedule(scheduled: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "TOPWORK_PREFECT_PORT": str(port), "PREFECT_LOGGING_LEVEL": "INFO"}
    environment.pop("PREFECT_API_URL", None)
    log = scheduled.parent / "serve.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [sys.executable, "-m", "flows.serve"],
            cwd=scheduled,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            end = time.monotonic() + 400
            branches = ""
            while time.monotonic() < end and server.poll() is None:
                branches = done(
                    scheduled, "git", "branch", "--list", "nightly/*", "--format=%(refname:short)"
                )
                finished = [
                    b
                    for b in branches.split()
                    if "dvc.lock" in done(scheduled, "git", "ls-tree", "--name-only", b)
                ]
                if finished:
                    break
                time.sleep(1)
            else:
                pytest.fail(f"no scheduled run ended: {log.read_text(errors='replace')[-4000:]}")
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(timeout=60)
            finally:
                os.killpg(server.pid, signal.SIGKILL) if server.poll() is None else None
    lock = done(scheduled, "git", "show", f"{finished[0]}:dvc.lock")
    assert "path: out.txt" in lock
    assert not (scheduled / "out.txt").exists(), "the working tree is left alone"
    md5 = lock.split("path: out.txt")[1].split("md5: ")[1].split()[0]
    assert (
        scheduled / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    ).read_text() == "abab", "in the shared cache"
