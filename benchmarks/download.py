"""What a checked download costs over plain curl: 200 MB over loopback, hash included.

    python benchmarks/download.py [--megabytes 200] [--rounds 9]

A server in a process of its own sends the file by sendfile. Each round runs curl and topwork in
turn (in the other order every second round) into empty folders on the same disk. Wall time of
topwork: of `download()`, which hashes, syncs and renames the file (curl does none of these); the
whole process, with Python's start and imports, stands next to it. Processor time of both tells what
is left of the ratio on a machine that
others use too. Memory: the peak resident set of the whole process. Goals: ratio of wall times at
most 1.5, memory under 100 MiB. Where the
processor has no SHA instructions, the hash alone takes longer than curl; its time, and the ratio to
curl followed by the hash, stand next to it.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OURS = """
import json, resource, sys, time
from pathlib import Path
from topwork.download.cache import Cache
from topwork.download.transfer import download
from topwork.download.lock import Known
url, folder = sys.argv[1:]
start, cpu = time.perf_counter(), time.process_time()
cached = download(url, url, Cache(Path(folder)), Known(url).verify)
wall, cpu = time.perf_counter() - start, time.process_time() - cpu
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"wall": wall, "cpu": cpu, "peak": peak, "sha256": cached.sha256}))
"""


def serve(path: str, port: "multiprocessing.Queue[int]") -> None:
    """Answer every GET with the file, by sendfile."""
    with socket.create_server(("127.0.0.1", 0)) as server, Path(path).open("rb") as file:
        port.put(server.getsockname()[1])
        size = Path(path).stat().st_size
        fields = ("HTTP/1.1 200 OK", f"Content-Length: {size}", 'ETag: "v1"', "Connection: close")
        head = "".join(f"{field}\r\n" for field in (*fields, "")).encode()
        while True:
            connection, _ = server.accept()
            with connection:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += connection.recv(65536)
                connection.sendall(head)
                connection.sendfile(file)


def run_curl(url: str, folder: Path) -> dict[str, float]:
    folder.mkdir()
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        ["curl", "--silent", "--fail", "--output", str(folder / "file"), url], check=True
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall": wall,
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


def run_ours(url: str, folder: Path) -> dict[str, float]:
    source = str(Path(__file__).parents[1] / "src")
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", OURS, url, str(folder)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    return {**json.loads(done.stdout), "process": time.perf_counter() - start}


def run_hash(megabytes: int) -> dict[str, float]:
    """The hash alone, of the same bytes in memory: no download that hashes can be faster than
    that.
    """
    content = bytes(1_000_000)
    start = time.perf_counter()
    digest = hashlib.sha256()
    for _ in range(megabytes):
        digest.update(content)
    return {"wall": time.perf_counter() - start}


def middle(values: list[float], unit: str = "") -> str:
    """Median, and the range of all rounds."""
    return f"{statistics.median(values):.2f}{unit} (from {min(values):.2f} to {max(values):.2f})"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "file.bin"
        with file.open("wb") as stream:
            for _ in range(arguments.megabytes):
                stream.write(os.urandom(1_000_000))
        port: multiprocessing.Queue[int] = multiprocessing.Queue()
        server = multiprocessing.Process(target=serve, args=(str(file), port), daemon=True)
        server.start()
        url = f"http://127.0.0.1:{port.get()}/file.bin"
        rounds = []
        for number in range(arguments.rounds + 1):
            found = {}
            for name, runner in [("curl", run_curl), ("ours", run_ours)][
                :: 1 if number % 2 else -1
            ]:
                folder = Path(scratch) / name
                found[name] = runner(url, folder)
                shutil.rmtree(folder)
                os.sync()
            found["hash"] = run_hash(arguments.megabytes)
            rounds.append(found)
        server.terminate()
    rounds = rounds[1:]  # the first warms caches
    peak = max(found["ours"]["peak"] for found in rounds) / 2**20
    print(
        f"{arguments.megabytes} MB over loopback, {len(rounds)} rounds, {os.cpu_count()} cores,"
        f" load {os.getloadavg()[0]:.1f}"
    )
    print(f"curl                 {middle([found['curl']['wall'] for found in rounds], ' s')}")
    print(f"download()           {middle([found['ours']['wall'] for found in rounds], ' s')}")
    print(f"its whole process    {middle([found['ours']['process'] for found in rounds], ' s')}")
    print(f"SHA-256 alone        {middle([found['hash']['wall'] for found in rounds], ' s')}")
    cpu = [[found[name]["cpu"] for found in rounds] for name in ("curl", "ours")]
    print(f"processor time       curl {middle(cpu[0], ' s')}, download() {middle(cpu[1], ' s')}")
    both = [
        found["ours"]["wall"] / (found["curl"]["wall"] + found["hash"]["wall"]) for found in rounds
    ]
    print(f"ratio to curl + hash {middle(both)}")
    print(
        "ratio to curl       "
        f" {middle([found['ours']['wall'] / found['curl']['wall'] for found in rounds])}, goal 1.5"
    )
    print(f"peak memory          {peak:.0f} MiB, goal 100")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
