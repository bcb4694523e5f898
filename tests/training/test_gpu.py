"""On a real GPU: each family's step runs, repeats, and agrees with the CPU; a killed run ends in
the same bits; memory that runs out is made do with. Skipped elsewhere.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from topwork.params.runtime import RuntimeParams
from topwork.training.device import training_device
from topwork.training.loop import fine_tune
from training.test_exactness import kill_and_resume, started, undisturbed
from training.test_loop import MakeJob, make_job
from training.test_own_family import TINY
from training.test_own_family import make_job as make_family_job

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
__all__ = ["make_family_job", "make_job"]
CUDA = RuntimeParams(device="cuda", workers=0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_run_repeats_to_the_bit(make_job: MakeJob, precision: str) -> None:
    job = make_job(CUDA, precision=precision, epochs=2)
    first, second = fine_tune(job), fine_tune(job)
    assert first.record.determinism.level == "same-device"
    assert all(
        torch.equal(tensor, second.weights.state_dict[name])
        for name, tensor in first.weights.state_dict.items()
    )


def test_gpu_and_cpu_agree(make_job: MakeJob) -> None:
    options = {"precision": "float32", "epochs": 1, "validate_every": 0}
    cpu = fine_tune(make_job(**options)).record.history[0]["train/loss"]
    job = make_job(**options)
    gpu = fine_tune(replace(job, device=training_device(job.params, "cuda"))).record.history[0][
        "train/loss"
    ]
    assert gpu == pytest.approx(cpu, rel=0.05)


def test_a_compiled_run_ends(make_job: MakeJob) -> None:
    assert fine_tune(make_job(CUDA, compile=True, epochs=1)).record.epochs == 1


@pytest.mark.parametrize("builder", ["ssd", "retinanet", "fcos", "faster_rcnn", "mask_rcnn"])
def test_every_family_repeats_to_the_bit(make_family_job: MakeJob, builder: str) -> None:
    job = make_family_job(f"{TINY}:{builder}", epochs=2)
    job = replace(job, device=training_device(job.params, "cuda"))
    first, second = fine_tune(job), fine_tune(job)
    assert all(
        torch.equal(tensor, second.weights.state_dict[name])
        for name, tensor in first.weights.state_dict.items()
    )


def test_a_killed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    with started(tmp_path, device="cuda") as runner:
        kill_and_resume(runner, undisturbed(runner), count=4, seed=0)


def test_two_processes_on_one_card_repeat_to_the_bit(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("NCCL wants a card for each process, and there is one")
    with started(tmp_path, device="cuda") as runner:
        (code, _, first), (_, _, second) = runner(processes=2), runner(processes=2)
    assert code == 0, runner.log
    assert first == second


def test_a_step_that_does_not_fit_is_taken_in_parts(make_family_job: MakeJob) -> None:
    options = {"epochs": 1, "head_epochs": 0, "batch_size": 64, "replay": 0.0, "distill": 0.0}
    builder = "ssdlite320_mobilenet_v3_large"

    def run(accumulate: int) -> int:
        """Micro-batches a step at the end."""
        job = make_family_job(builder, accumulate=accumulate, **options)
        job.dataset.items = [job.dataset.items[0]] * 64
        job.dataset._pixels = dict.fromkeys(range(64), job.dataset.pixels(0))
        job = replace(job, train=64, device=training_device(job.params, "cuda"))
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return fine_tune(job).record.accumulate

    def peak(accumulate: int) -> int:
        run(accumulate)
        return torch.cuda.max_memory_reserved()

    least, whole = peak(8), peak(1)
    assert least < whole
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction((least + whole) / 2 / total)
        accumulate = run(1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 1 < accumulate <= 8
