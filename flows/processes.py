"""Commands whose whole tree of processes ends with the run that started them.

A run that is killed can't end its children. So each command runs below a small process that holds
the reading end of a pipe whose writing end the run holds: when the run ends, in whatever way, the
pipe closes, and that process ends everything below it, also what has put itself into a session of
its own (torchrun's workers do).

    python flows/processes.py COMMAND ...      is that process; its standard input is the pipe
"""

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import psutil

GRACE_S = 10
"""From the request to end until the kill; a stage writes nothing that a kill could spoil."""
PR_SET_CHILD_SUBREAPER = 36


class Command:
    """A running command, which ends when this process does.

    Args:
        words: the command.
        cwd: the folder that it runs in.
        env: its whole environment.
        output: where its output and errors go; `subprocess.PIPE` for reading them from `output`.
    """

    def __init__(
        self,
        words: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        output: int | IO[Any] | None = subprocess.PIPE,
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), *words],
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )

    @property
    def output(self) -> IO[str]:
        """Output and errors, line by line, until the whole tree has ended."""
        assert self.process.stdout is not None
        return self.process.stdout

    def end(self) -> None:
        """Ask the whole tree to end, and after a grace kill it; doesn't wait."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self.process.poll()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the tree; 128 and more is a signal's number, as in a shell."""
        return self.process.wait(timeout)


class Commands:
    """All commands of a run, so that it can end them together; none starts after that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[Command] = set()
        self.ended = False

    @contextlib.contextmanager
    def run(self, words: Sequence[str], cwd: Path, env: Mapping[str, str]) -> Iterator[Command]:
        """A command whose output is read in the block; it is over when the block is.

        Raises:
            Ended: the run has ended its commands.
        """
        with self._lock:
            if self.ended:
                raise Ended("the run is ending")
            command = Command(words, cwd, env)
            self._running.add(command)
        try:
            yield command
        finally:
            if command.poll() is None:
                command.end()
            command.wait()
            with self._lock:
                self._running.discard(command)

    def end(self) -> None:
        """End all of them, and wait until nothing of them is left."""
        with self._lock:
            self.ended = True
            running = list(self._running)
        for command in running:
            command.end()
        for command in running:
            command.wait()


_OF_RUN: dict[str, Commands] = {}


def commands_of(run: str) -> Commands:
    """The commands of a run in this process, be it the run's own or a cluster's worker."""
    return _OF_RUN.setdefault(run, Commands())


class Ended(RuntimeError):
    """A command was to start in a run that is ending."""


def main(words: list[str]) -> int:
    """Run a command until it ends or the standard input does; then nothing of it is left."""
    if sys.platform == "linux":
        # orphans below become children of this process, so that they are found
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda caught, _: asked.append(caught))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child = subprocess.Popen(words, stdin=subprocess.DEVNULL, restore_signals=True)
    while child.poll() is None and not asked:
        ready, _, _ = select.select([0, receiver.fileno()], [], [], 5)
        if receiver.fileno() in ready:
            receiver.recv(4096)
        if 0 in ready and not os.read(0, 4096):
            break
    _end_all(child)
    code = child.wait()
    return 128 - code if code < 0 else code


def _end_all(child: subprocess.Popen[bytes]) -> None:
    """End every descendant: asked first, killed after the grace; until none is left."""
    deadline = time.monotonic() + GRACE_S
    asked: set[int] = set()
    while True:
        child.poll()
        with contextlib.suppress(ChildProcessError):
            # what became a child of this process; the command's own code is kept by `poll`
            while child.returncode is not None and os.waitpid(-1, os.WNOHANG)[0]:
                pass
        below = psutil.Process().children(recursive=True)
        if not any(map(_runs, below)):
            return
        late = time.monotonic() > deadline
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                if late:
                    process.kill()
                elif process.pid not in asked:
                    asked.add(process.pid)
                    process.terminate()
        time.sleep(0.05)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
