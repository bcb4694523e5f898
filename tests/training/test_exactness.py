"""A run repeats to the bit: killed anywhere, resumed, with any number of loader workers, with
several processes.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from topwork import verify_graft
from topwork.params.document import Params
from training.tiny import make_project

HERE = Path(__file__).parent


@dataclass
class Runner:
    """The helper process that runs and kills the stage."""

    folder: Path
    params: Params
    process: "subprocess.Popen[str]"

    def __call__(
        self, sent: str = "SIGKILL", after: float | str = 0.0, workers: int = 0, **finetune: object
    ) -> tuple[int, float, str]:
        raw = self.params.model_dump(
            mode="json",
            exclude={"dataset": {"train": {"images", "subset"}}, "demo": True},
            exclude_defaults=True,
        )
        raw["dataset"] = {"root": "data", "train": {"annotations": "train.json"}}
        raw["finetune"].update(finetune)
        raw["runtime"]["workers"] = workers
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{json.dumps(raw)}\t{sent}\t{after}\n")
        self.process.stdin.flush()
        code, seconds, sha256 = self.process.stdout.readline().split("\t")
        return int(code), float(seconds), sha256.strip()

    def forget(self) -> None:
        shutil.rmtree(self.folder / ".topwork", ignore_errors=True)

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text()


@contextmanager
def started(folder: Path, **runtime: object) -> Iterator[Runner]:
    """A helper process that runs the stage of a project in that folder."""
    params = make_project(folder, runtime=runtime)
    source = HERE.parents[1] / "src"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(source), str(HERE.parent), os.environ.get("PYTHONPATH")])
        ),
        "OMP_NUM_THREADS": "1",
    }
    with subprocess.Popen(
        [sys.executable, str(HERE / "kills.py"), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Runner(folder, params, process)
        process.kill()


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with started(tmp_path_factory.mktemp("project")) as helper:
        yield helper


@pytest.fixture(scope="module")
def whole(runner: Runner) -> tuple[float, str]:
    """Seconds and hash of a run that nobody disturbed (the second one: the first pays for
    caches).
    """
    return undisturbed(runner)


def undisturbed(runner: Runner) -> tuple[float, str]:
    code, _, first = runner()
    assert code == 0, runner.log
    _, seconds, second = runner()
    assert first == second
    assert not list((runner.folder / ".topwork/scratch").glob("*/*.checkpoint"))
    return seconds, first


@pytest.fixture(scope="module")
def two(runner: Runner) -> tuple[float, str]:
    """The same of two training processes."""
    runner.forget()
    code, seconds, found = runner(processes=2)
    assert code == 0, runner.log
    return seconds, found


SIGNALS = ("SIGKILL", "SIGTERM")
DDP_SIGNALS = ("SIGKILL", "SIGKILL:0", "SIGTERM", "SIGKILL:1")
"""Of the stage and of its training processes."""


def kill_and_resume(
    runner: Runner,
    whole: tuple[float, str],
    count: int,
    seed: int,
    signals: tuple[str, ...] = SIGNALS,
    **finetune: Any,
) -> None:
    seconds, expected = whole
    chance = random.Random(seed)
    killed, resumed = 0, runner.log.count("resumed at epoch")
    for number in range(count):
        runner.forget()
        # these start up for most of the time: it's counted from the first checkpoint on
        slow_start = finetune.get("processes") or finetune.get("protect")
        after = (
            f"+{chance.uniform(0.001, 0.03) * seconds}"
            if slow_start
            else chance.uniform(0.02, 0.95) * seconds
        )
        code, _, _ = runner(signals[number % len(signals)], after=after, **finetune)
        killed += code != 0
        code, _, found = runner(**finetune)
        assert code == 0, runner.log
        assert found == expected
    assert killed >= count // 2
    assert runner.log.count("resumed at epoch") > resumed  # the log is the whole module's


def test_a_killed_run_ends_in_the_same_bits(runner: Runner, whole: tuple[float, str]) -> None:
    kill_and_resume(runner, whole, count=5, seed=0)


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_run_killed_at_twenty_moments_ends_in_the_same_bits(
    runner: Runner, whole: tuple[float, str], workers: int
) -> None:
    kill_and_resume(runner, whole, count=20, seed=workers + 1, workers=workers)


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(2, marks=pytest.mark.timeout(300)),
        pytest.param(20, marks=[pytest.mark.long, pytest.mark.timeout(1800)]),
    ],
)
def test_two_killed_processes_end_in_the_same_bits(
    runner: Runner, two: tuple[float, str], count: int
) -> None:
    kill_and_resume(runner, two, count, 0, DDP_SIGNALS, processes=2)


def test_one_run_killed_again_and_again_ends_in_the_same_bits(
    runner: Runner, whole: tuple[float, str]
) -> None:
    seconds, expected = whole
    runner.forget()
    for _ in range(4):
        runner("SIGKILL", after=0.4 * seconds)
    code, _, found = runner()
    assert code == 0, runner.log
    assert found == expected


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_workers_change_no_bit(
    runner: Runner, whole: tuple[float, str], workers: int
) -> None:
    code, _, found = runner(workers=workers)
    assert code == 0, runner.log
    assert found == whole[1]


def test_a_damaged_checkpoint_is_passed_over(runner: Runner, whole: tuple[float, str]) -> None:
    seconds, expected = whole
    for after in (0.05, 0.1, 0.2, 0.4, 0.8):  # of a run, from the first checkpoint on
        runner.forget()
        runner("SIGKILL", after=f"+{after * seconds}")
        files = sorted(runner.folder.glob(".topwork/scratch/*/[0-9]*.checkpoint"))
        if len(files) == 2:
            break
    assert len(files) == 2
    files[-1].write_bytes(files[-1].read_bytes()[:-1000])  # as a power cut leaves it
    code, _, found = runner()
    assert code == 0, runner.log
    assert found == expected


def test_other_params_never_resume(runner: Runner, whole: tuple[float, str]) -> None:
    seconds, expected = whole
    runner.forget()
    runner("SIGKILL", after=0.8 * seconds)
    before = runner.log.count("resumed at")
    code, _, found = runner(seed=1)
    assert code == 0, runner.log
    assert found != expected
    assert runner.log.count("resumed at") == before


@pytest.mark.timeout(300)
def test_two_processes_repeat_to_the_bit(
    runner: Runner, whole: tuple[float, str], two: tuple[float, str]
) -> None:
    runner.forget()
    _, _, again = runner(processes=2)
    assert again == two[1]
    assert again != whole[1]


def test_a_stop_of_the_whole_process_group_ends_at_once(tmp_path: Path) -> None:
    """Also where nobody catches the error; the loaders ignore the signal and must not be waited
    for.
    """
    params = make_project(tmp_path, epochs=500, runtime={"workers": 1, "checkpoint_steps": None})
    raw = {
        "dataset": {"root": "data", "train": {"annotations": "train.json"}},
        "surgery": params.surgery.model_dump(mode="json"),
        "finetune": params.finetune.model_dump(mode="json"),
        "runtime": params.runtime.model_dump(mode="json"),
    }
    code = (
        "from topwork.params.document import parse_params; from topwork.stages import finetune;"
        f" finetune.run(parse_params({raw!r}))"
    )
    path = os.pathsep.join([str(HERE.parents[1] / "src"), str(HERE.parent)])
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert any(line.startswith("epoch 2/") for line in process.stdout)
        os.killpg(process.pid, signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1
    assert "stopped by a signal" in error
    assert list((tmp_path / ".topwork/scratch").glob("*/*.checkpoint"))


def test_a_branch_repeats_to_the_bit_and_keeps_its_stock(runner: Runner) -> None:
    """Killed and resumed, and by two processes: the stock is the pretrained file's either way."""
    runner.forget()
    code, seconds, expected = runner(protect="branch")
    assert code == 0, runner.log
    kill_and_resume(runner, (seconds, expected), 2, 9, protect="branch")
    paths = [
        runner.folder / "out" / name
        for name in (
            "fetch/pretrained.safetensors",
            "finetune/weights.safetensors",
            "finetune/receipt.json",
        )
    ]
    assert "kept exactly: person" in verify_graft(*paths, trust=True)
    runner.forget()
    code, _, found = runner(protect="branch", processes=2)
    assert code == 0, runner.log
    assert found != expected
    assert "kept exactly: person" in verify_graft(*paths, trust=True)


def test_a_branch_that_keeps_features_repeats_to_the_bit(runner: Runner) -> None:
    runner.forget()
    kept: dict[str, Any] = {"protect": "branch", "augmentation": "hflip"}
    code, seconds, expected = runner(**kept)
    assert code == 0, runner.log
    kill_and_resume(runner, (seconds, expected), 2, 11, **kept)
    # whole images draw one random number each when they're resized, before dropout's
    assert runner(**kept, feature_cache_mib=0)[2] != expected
