"""One machine that runs what is scheduled: a Prefect server, the deployments of prefect.yaml and a
worker, until Ctrl-C.

python -m flows.serve
"""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

PORT = int(os.environ.get("TOPWORK_PREFECT_PORT", "4200"))
API = f"http://127.0.0.1:{PORT}/api"
POOL = "topwork"
START_TIMEOUT_S = 300


def main() -> int:
    """Start everything, wait for Ctrl-C or a process that ends, stop everything."""
    home = Path(".topwork/prefect").resolve()
    home.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PREFECT_API_URL": API,
        "PREFECT_HOME": str(home),
        "PYTHONPATH": str(Path.cwd()),
        "TOPWORK_ROOT": str(Path.cwd()),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    prefect = [sys.executable, "-m", "prefect"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    server = subprocess.Popen(
        [*prefect, "server", "start", "--host", "127.0.0.1", "--port", str(PORT)], env=environment
    )
    worker: subprocess.Popen[bytes] | None = None
    try:
        _wait_healthy(server)
        subprocess.run(
            [*prefect, "work-pool", "create", POOL, "--type", "process", "--overwrite"],
            env=environment,
            check=True,
        )
        subprocess.run([*prefect, "--no-prompt", "deploy", "--all"], env=environment, check=True)
        worker = subprocess.Popen([*prefect, "worker", "start", "--pool", POOL], env=environment)
        print(f"Prefect: http://127.0.0.1:{PORT} (Ctrl-C stops it)", flush=True)
        while server.poll() is None and worker.poll() is None:
            time.sleep(1)
        print(
            "error: the Prefect server or its worker ended by itself; its output is above.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        for process in (worker, server):
            if process is not None and process.poll() is None:
                _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_healthy(server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end:
        if server.poll() is not None:
            raise SystemExit(
                "error: the Prefect server didn't start; its output is above (is the port taken?"
                " set TOPWORK_PREFECT_PORT)."
            )
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
