"""One machine that runs what is scheduled: a Prefect server, the deployments of prefect.yaml and a
worker, until Ctrl-C.

    python -m flows.serve

A part that ends is started again; one that keeps ending ends the whole, with the reason. Whatever
ends this process ends its parts and what they run.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import deque
from pathlib import Path

PORT = int(os.environ.get("TOPWORK_PREFECT_PORT", "4200"))
API = f"http://127.0.0.1:{PORT}/api"
POOL = "topwork"
START_TIMEOUT_S = 300
RESTARTS = 5
RESTARTS_WITHIN_S = 600
SETTLE_S = 15
"""How often states are compared with the processes that are there."""


def environment(root: Path) -> dict[str, str]:
    """What server, worker and this process agree on; nothing listens beyond this machine."""
    home = root / ".topwork" / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    return {
        "PREFECT_API_URL": API,
        "PREFECT_HOME": str(home),
        "PYTHONPATH": path,
        "TOPWORK_ROOT": str(root),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # SQLite lets one write at a time; the others wait
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        # a run on a machine that goes down is noticed by its silence
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }


def main() -> int:
    """Start everything, keep it running until Ctrl-C, end everything."""
    root = Path.cwd()
    os.environ.update(environment(root))
    # read by Prefect when it is imported
    from flows.processes import Command
    from flows.turns import settle

    _refuse_taken_port()
    # a shell starts background jobs with Ctrl-C ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    prefect = [sys.executable, "-m", "prefect"]
    server = [sys.executable, "-m", "flows.server", "start", "--host", "127.0.0.1"]
    words = {
        "server": [*server, "--port", str(PORT)],
        "worker": [*prefect, "worker", "start", "--pool", POOL, "--name", socket.gethostname()],
    }

    def start(part: str) -> Command:
        return Command(words[part], root, os.environ, output=None)

    parts = {"server": start("server")}
    ended: dict[str, deque[float]] = {part: deque(maxlen=RESTARTS) for part in words}
    try:
        _wait_healthy(parts["server"])
        _deploy(prefect)
        parts["worker"] = start("worker")
        print(f"Prefect: http://127.0.0.1:{PORT} (Ctrl-C stops it)", flush=True)
        settled = 0.0
        while True:
            time.sleep(0.5)
            for part, command in parts.items():
                code = command.poll()
                if code is None:
                    continue
                ends = ended[part]
                ends.append(time.monotonic())
                if len(ends) == RESTARTS and ends[-1] - ends[0] < RESTARTS_WITHIN_S:
                    _say(
                        f"error: the Prefect {part} has ended {RESTARTS} times within"
                        f" {RESTARTS_WITHIN_S // 60} minutes (last exit code {code}; its output is"
                        " above); serve ends."
                    )
                    return 1
                _say(f"the Prefect {part} has ended (exit code {code}); starting it again")
                parts[part] = start(part)
                _wait_healthy(parts["server"])
            if time.monotonic() - settled > SETTLE_S:
                _settle(settle, root)
                settled = time.monotonic()
    except KeyboardInterrupt:
        return 0
    finally:
        # the worker first: its runs tell the server how they ended
        if "worker" in parts:
            _end(parts["worker"])
            _settle(settle, root)
        _end(parts["server"])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _settle(settle: object, root: Path) -> None:
    import httpx

    assert callable(settle)
    try:
        for sentence in settle(root):
            _say(f"a run's process is gone: {sentence} now")
    except (httpx.HTTPError, RuntimeError) as error:  # Prefect raises both of a silent server
        _say(f"states couldn't be compared with processes: {error}")


def _end(command: object) -> None:
    from flows.processes import Command

    assert isinstance(command, Command)
    command.end()
    command.wait()


def _deploy(prefect: list[str]) -> None:
    # read by each worker when it begins a run: a clone of its own
    env = {name: value for name, value in os.environ.items() if name != "TOPWORK_ROOT"}
    for words in (
        ["work-pool", "create", POOL, "--type", "process", "--overwrite"],
        ["--no-prompt", "deploy", "--all"],
    ):
        done = subprocess.run(
            [*prefect, *words], env=env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(
                f"error: `prefect {' '.join(words)}` failed:"
                f" {(done.stderr or done.stdout).strip()[-2000:]}"
            )


def _refuse_taken_port() -> None:
    """Whatever answers on the port already, a deployment must not land there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PORT))
        except OSError as error:
            raise SystemExit(
                f"error: port {PORT} is taken ({error.strerror}); nothing was started. End what"
                " listens there, or set TOPWORK_PREFECT_PORT to a free port."
            ) from error


def _wait_healthy(server: object) -> None:
    from flows.processes import Command

    assert isinstance(server, Command)
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end:
        if server.poll() is not None:
            raise SystemExit("error: the Prefect server didn't start; its output is above.")
        try:
            with urllib.request.urlopen(f"{API}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(
        f"error: no answer from the Prefect server at {API} within {START_TIMEOUT_S} s."
    )


if __name__ == "__main__":
    raise SystemExit(main())
