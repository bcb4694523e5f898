"""What the flow adds to `dvc repro`: a first run, which starts Prefect's temporary server, and runs
that have nothing to do once a server is up, in turns. Wall time, and CPU time of all processes, the
server's included, which a busy machine doesn't change much.

    python benchmarks/flows.py [--rounds 5] [--stages 12]
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

from noop import empty_project, seconds

ROOT = Path(__file__).parents[1]
PREFECT = [sys.executable, "-m", "prefect"]


def flow_seconds(folder: Path, environment: dict[str, str]) -> float:
    """Wall time of one flow that must find nothing to do."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "flows.pipeline"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    spent = time.perf_counter() - start
    if not done.stdout.endswith("nothing has changed\n"):
        raise SystemExit(f"{folder} wasn't fresh: {done.stdout}")
    return spent


def cpu_seconds(server: psutil.Process) -> float:
    """Of all that this process has started and waited for, and of the server until now."""
    ours, its = os.times(), server.cpu_times()
    return ours.children_user + ours.children_system + its.user + its.system


def main() -> int:
    """Measure and print medians, ratios and spread."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stages", type=int, default=12)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "empty"
        folder.mkdir()
        empty_project(folder, arguments.stages)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PREFECT_HOME": str(Path(name) / "prefect"),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PREFECT_LOGGING_LEVEL": "ERROR",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        environment.pop("PREFECT_API_URL", None)
        cold = flow_seconds(folder, environment)
        alone = flow_seconds(folder, environment)
        server = subprocess.Popen(
            [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            api = f"http://127.0.0.1:{port}/api"
            while True:
                try:
                    urllib.request.urlopen(f"{api}/health", timeout=2).close()
                    break
                except OSError:
                    time.sleep(0.2)
            environment["PREFECT_API_URL"] = api
            process = psutil.Process(server.pid)
            pairs, cpu = [], []
            for _ in range(arguments.rounds + 1):
                begin = cpu_seconds(process)
                flow = flow_seconds(folder, environment)
                between = cpu_seconds(process)
                pairs.append((flow, seconds(folder)))
                cpu.append((between - begin, cpu_seconds(process) - between))
            # the first round warms the disk cache
            pairs, cpu = pairs[1:], cpu[1:]
        finally:
            server.terminate()
            server.wait()
    flows, repros = zip(*pairs, strict=True)
    ratios = sorted(flow / repro for flow, repro in pairs)
    added = statistics.median(flow - repro for flow, repro in pairs) / arguments.stages
    repro = statistics.median(repros)
    print(f"{arguments.stages} stages without work, {arguments.rounds} rounds in turns")
    print(f"dvc repro                          {repro:6.2f} s")
    print(f"flow, server up                    {statistics.median(flows):6.2f} s")
    print(
        f"  ratio                            {statistics.median(ratios):6.2f}  (from"
        f" {ratios[0]:.2f} to {ratios[-1]:.2f})"
    )
    print(f"  added a stage                    {added:6.2f} s  (aim: at most 1)")
    flow_cpu, repro_cpu = (statistics.median(values) for values in zip(*cpu, strict=True))
    print(f"CPU: dvc repro                     {repro_cpu:6.2f} s")
    print(
        f"CPU: flow, server's included       {flow_cpu:6.2f} s  (ratio {flow_cpu / repro_cpu:.2f})"
    )
    print(f"CPU: added a stage                 {(flow_cpu - repro_cpu) / arguments.stages:6.2f} s")
    print(f"flow, no server, its database new  {cold:6.2f} s  (ratio {cold / repro:.1f})")
    print(f"flow, no server, a later time      {alone:6.2f} s  (ratio {alone / repro:.1f})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
