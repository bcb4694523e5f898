"""The bar: on a terminal, and only there."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

from download.misbehaving import Misbehaving, Reply

PROGRAM = """
import sys
from pathlib import Path
from topwork.download.cache import Cache
from topwork.download.transfer import download
from topwork.download.lock import Known
download(sys.argv[1], sys.argv[1], Cache(Path("cache")), Known(sys.argv[1]).verify)
"""


def test_bar_on_a_terminal(server: Misbehaving, content: bytes) -> None:
    server.plan["/w.pth"] = Reply(content, rate=400_000)
    ours, theirs = pty.openpty()
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2] / "src"),
        "TERM": "xterm",
        "COLUMNS": "120",
    }
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, f"{server.url}/w.pth"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    ) as process:
        os.close(theirs)
        shown, deadline = b"", time.monotonic() + 60
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    shown += os.read(ours, 1 << 16)
                except OSError:  # the other end is closed
                    break
            elif process.poll() is not None:
                break
        assert process.wait(10) == 0
    os.close(ours)
    text = shown.decode("utf-8", "replace")
    assert "w.pth" in text
    assert "B/s" in text or "bytes/s" in text, "rate"
    assert "0:00:0" in text, "time left"


def test_silence_in_a_pipe(server: Misbehaving, content: bytes) -> None:
    server.plan["/w.pth"] = Reply(content)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"{server.url}/w.pth"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
