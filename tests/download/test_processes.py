"""Several processes, killed processes, and limits of the operating system."""

import hashlib
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from download.misbehaving import Misbehaving, Reply
from topwork.download.cache import Cache

PROGRAM = """
import sys
from pathlib import Path
from topwork.errors import TopworkError
from topwork.download.cache import Cache
from topwork.download.transfer import Policy, download
from topwork.download.lock import Known
if len(sys.argv) > 4:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), int(sys.argv[4])))
known = Known(sys.argv[1], locked=sys.argv[3] or None)
try:
    cache, policy = Cache(Path(sys.argv[2])), Policy(backoff_s=0.01)
    source, expected = sys.argv[1], known.expected
    cached = download(source, source, cache, known.verify, expected=expected, policy=policy)
except TopworkError as error:
    print(error)
    sys.exit(1)
print(cached.sha256, cached.path.name)
"""


def start(
    url: str, cache: Cache, expected: str = "", limit: int | None = None
) -> "subprocess.Popen[str]":
    source = str(Path(__file__).parents[2] / "src")
    arguments = [url, str(cache.root), expected, *([str(limit)] if limit else [])]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    )


def finish(process: "subprocess.Popen[str]") -> str:
    out, _ = process.communicate(timeout=120)
    return out.strip()


def waiting(processes: "list[subprocess.Popen[str]]", count: int) -> None:
    """Return when so many of the processes have printed something (that they wait)."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if len(select.select([process.stdout for process in processes], [], [], 0.05)[0]) >= count:
            return
    pytest.fail("the processes don't wait for each other")


def partly_there(cache: Cache, url: str, size: int = 1) -> Path:
    """Wait until the partial file of a download has so many bytes."""
    path, deadline = cache.partial(url) / "part", time.monotonic() + 120
    while time.monotonic() < deadline:
        if path.is_file() and path.stat().st_size >= size:
            return path
        time.sleep(0.005)
    pytest.fail("the download doesn't begin")


def test_four_at_once(server: Misbehaving, cache: Cache, content: bytes) -> None:
    gate = threading.Event()
    server.plan["/w.pth"] = Reply(content, gate=gate)
    processes = [start(f"{server.url}/w.pth", cache) for _ in range(4)]
    waiting(processes, 3)
    gate.set()
    outputs = [finish(process) for process in processes]
    digest = hashlib.sha256(content).hexdigest()
    assert [output.splitlines()[-1] for output in outputs] == [f"{digest} w.pth"] * 4
    assert len(server.seen) == 1, "downloaded once"
    assert sum("another process is fetching it; waiting" in output for output in outputs) == 3


def killed_again_and_again(
    server: Misbehaving, cache: Cache, content: bytes, kills: int, seed: int, expected: str
) -> int:
    """Start, kill at a random moment, start again: never half a file, and in the end a right one;
    how often a run went on with what was left.
    """
    draw = random.Random(seed)
    url = f"{server.url}/w.pth"
    server.plan["/w.pth"] = Reply(content, rate=1_000_000)
    resumed = 0
    for _ in range(kills):
        resumed += one_killed(server, cache, url, expected, len(content), draw.uniform(0, 0.1))
        for path in (cache.root / "files").rglob("*.pth"):
            assert path.read_bytes() == content
    output = finish(start(url, cache, expected))
    assert output.splitlines()[-1] == f"{hashlib.sha256(content).hexdigest()} w.pth"
    (path,) = (cache.root / "files").rglob("*.pth")
    assert path.read_bytes() == content
    assert not list((cache.root / "partial").glob("*"))
    return resumed


def one_killed(
    server: Misbehaving, cache: Cache, url: str, expected: str, size: int, after_s: float
) -> bool:
    """Start a download and kill it; whether it went on with what an earlier one had left, which it
    must where there was something.
    """
    folder = cache.partial(url)
    left = (
        (folder / "part").stat().st_size
        if (folder / "part").is_file() and (folder / "part.json").is_file()
        else 0
    )
    before = len(server.seen)
    process = start(url, cache, expected)
    # most of the time goes into starting Python; kill what matters
    while len(server.seen) == before and process.poll() is None:
        time.sleep(0.002)
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    asked = server.ranges()[before] if len(server.seen) > before else None
    if len(server.seen) > before:
        assert asked == (f"bytes={left}-" if 0 < left < size else asked)
    return asked is not None


def test_killed_three_times(server: Misbehaving, cache: Cache, content: bytes) -> None:
    assert killed_again_and_again(server, cache, content, 3, seed=1, expected="") >= 1


@pytest.mark.long
@pytest.mark.parametrize("known", [False, True], ids=["first use", "known hash"])
def test_killed_twenty_times(
    server: Misbehaving, cache: Cache, content: bytes, known: bool
) -> None:
    """Of a file so long that every kill meets a download under way."""
    long = content * 6
    expected = hashlib.sha256(long).hexdigest() if known else ""
    assert killed_again_and_again(server, cache, long, 20, seed=2 + known, expected=expected) >= 15
    assert 20 <= len(server.seen) <= 21


@pytest.mark.long
def test_killed_around_the_move(server: Misbehaving, cache: Cache, content: bytes) -> None:
    """Twenty kills while the last bytes come, are synced, moved and remembered."""
    draw = random.Random(9)
    url = f"{server.url}/w.pth"
    server.plan["/w.pth"] = Reply(content)
    digest = hashlib.sha256(content).hexdigest()
    for _ in range(20):
        one_killed(server, cache, url, "", len(content), draw.uniform(0, 0.03))
        assert all(path.read_bytes() == content for path in (cache.root / "files").rglob("*.pth"))
        assert finish(start(url, cache)).splitlines()[-1] == f"{digest} w.pth"
        assert not list((cache.root / "partial").glob("*"))
        cache.clean()


def test_killed_while_others_wait(server: Misbehaving, cache: Cache, content: bytes) -> None:
    """The lock dies with its process; the next in line takes up the partial file."""
    url = f"{server.url}/w.pth"
    server.plan["/w.pth"] = [Reply(content, stall=100_000), Reply(content)]
    first = start(url, cache)
    partly_there(cache, url, 100_000)
    second = start(url, cache)
    waiting([second], 1)
    first.kill()
    first.communicate()
    output = finish(second).splitlines()
    assert "another process is fetching it" in output[0]
    assert output[-1].startswith(hashlib.sha256(content).hexdigest())
    assert server.ranges() == [None, "bytes=100000-"]


def test_file_too_big_for_the_user(server: Misbehaving, cache: Cache, content: bytes) -> None:
    """A limit of the operating system on the file's size: write() fails midway, with the real
    errno.
    """
    server.plan["/w.pth"] = Reply(content)
    output = finish(start(f"{server.url}/w.pth", cache, limit=150_000))
    assert "the file is larger than this disk or user may hold" in output
    assert "The partial file was removed; free some space" in output
    assert not list((cache.root / "files").rglob("*"))
    assert not list((cache.root / "partial").glob("*"))


def test_interrupted_by_the_user(server: Misbehaving, cache: Cache, content: bytes) -> None:
    """Ctrl-C keeps what came."""
    url = f"{server.url}/w.pth"
    server.plan["/w.pth"] = [Reply(content, stall=100_000), Reply(content)]
    process = start(url, cache)
    path = partly_there(cache, url, 100_000)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert path.stat().st_size == 100_000
    assert (
        finish(start(url, cache)).splitlines()[-1].startswith(hashlib.sha256(content).hexdigest())
    )
    assert server.ranges() == [None, "bytes=100000-"]


def test_clean_leaves_what_is_under_way(server: Misbehaving, cache: Cache, content: bytes) -> None:
    url, gate = f"{server.url}/w.pth", threading.Event()
    server.plan |= {"/w.pth": Reply(content, gate=gate), "/v.pth": Reply(content[:1000])}
    assert finish(start(f"{server.url}/v.pth", cache)).endswith("v.pth")
    process = start(url, cache)
    partly_there(cache, url)
    freed, busy = cache.clean()
    assert 1000 <= freed < 50_000
    assert len(busy) == 1
    assert not list((cache.root / "files").rglob("*"))
    gate.set()
    assert finish(process).splitlines()[-1].startswith(hashlib.sha256(content).hexdigest())
    assert cache.clean()[1] == []
    assert not [path for path in cache.root.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_cache_that_cant_be_written(server: Misbehaving, tmp_path: Path, content: bytes) -> None:
    server.plan["/w.pth"] = Reply(content)
    (tmp_path / "file").write_text("not a folder")
    output = finish(start(f"{server.url}/w.pth", Cache(tmp_path / "file" / "cache")))
    assert (
        "the download cache can't be written (Not a directory). Name another folder:"
        " TOPWORK_CACHE=FOLDER." in output
    )
