"""On a real GPU: the step runs, repeats, and agrees with the CPU. Skipped elsewhere."""

from dataclasses import replace

import pytest
import torch

from topwork.params.runtime import RuntimeParams
from topwork.training.device import training_device
from topwork.training.loop import fine_tune
from training.test_loop import MakeJob, make_job

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
__all__ = ["make_job"]
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
