"""Run the real finetune stage in a forked process, again and again, and kill it: imports are paid
for once.

python kills.py FOLDER: reads lines from stdin, `FINETUNE_JSON\tSIGNAL\tSECONDS` (0 seconds: let it
end), prints `CODE\tSECONDS\tSHA256` for each.
SIGNAL is a name, `SIGKILL`, for the stage's own process, or `SIGKILL:0` for its youngest child (a
process of DDP). `+SECONDS` are counted from the first checkpoint on.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from topwork.files import sha256_file
from topwork.params.document import parse_params
from topwork.stages import finetune


def attempt(folder: Path, raw: dict, sent: str, after: str) -> tuple[int, float]:
    shutil.rmtree(folder / "out/finetune", ignore_errors=True)  # as DVC does before it runs a stage
    since = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        with Path("log.txt").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        try:
            finetune.run(parse_params(raw))
        except BaseException as error:  # the exit code is the answer
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    if float(after):
        while (
            after.startswith("+")
            and not list(folder.glob(".topwork/scratch/*/[0-9]*.checkpoint"))
            and not os.waitid(*ended(child))
        ):
            time.sleep(0.01)
        time.sleep(float(after))
        name, _, place = sent.partition(":")
        victims = children(child)[::-1] if place else [child]
        if len(victims) > int(place or 0):
            os.kill(victims[int(place or 0)], getattr(signal, name))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.perf_counter() - since


def ended(process: int) -> tuple[int, int, int]:
    """Arguments of waitid: has it ended? It stays to be waited for."""
    return os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT


def children(process: int) -> list[int]:
    return [
        int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]


def main() -> None:
    folder = Path(sys.argv[1])
    print("ready", flush=True)
    for line in sys.stdin:
        raw, name, after = line.rstrip("\n").split("\t")
        code, seconds = attempt(folder, json.loads(raw), name, after)
        weights = folder / "out/finetune/weights.safetensors"
        print(f"{code}\t{seconds}\t{sha256_file(weights) if weights.exists() else '-'}", flush=True)


if __name__ == "__main__":
    main()
