"""Run the real finetune stage in a forked process, again and again, and kill it: imports are paid for once.

python kills.py FOLDER: reads lines from stdin, `FINETUNE_JSON\tSIGNAL\tSECONDS` (0 seconds: let it end), prints `CODE\tSECONDS\tSHA256` for each.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from topwork.files import sha256_file
from topwork.params import parse_params
from topwork.stages import finetune


def attempt(folder: Path, raw: dict, sent: int, after: float) -> tuple[int, float]:
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
        except BaseException as error:  # the exit code tells
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    if after:
        time.sleep(after)
        os.kill(child, sent)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.perf_counter() - since


def main() -> None:
    folder = Path(sys.argv[1])
    print("ready", flush=True)
    for line in sys.stdin:
        raw, name, after = line.rstrip("\n").split("\t")
        code, seconds = attempt(folder, json.loads(raw), getattr(signal, name), float(after))
        weights = folder / "out/finetune/weights.safetensors"
        print(f"{code}\t{seconds}\t{sha256_file(weights) if weights.exists() else '-'}", flush=True)


if __name__ == "__main__":
    main()
