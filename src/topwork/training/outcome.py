"""What training ends with: the weights, and the record of how (no clock time in it)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from topwork.detectors.branches import Branched
from topwork.params.finetune import FinetuneParams
from topwork.project.finetune import Determinism, Interpolation, RunRecord
from topwork.training.device import Device, determinism, machine
from topwork.training.schedule import Schedule
from topwork.training.state import State
from topwork.training.versions import installed_versions
from topwork.weights.branches import with_learned
from topwork.weights.format import Weights


@dataclass(frozen=True)
class Outcome:
    """Fine-tuned weights, and the record of the run."""

    weights: Weights
    record: RunRecord


def fine_tuned(
    grafted: Weights, detector: nn.Module, state: State, chosen: Interpolation, seed: int
) -> Weights:
    """The weights of the run's result.

    Args:
        grafted: what training started from.
        detector: the whole one; its branches are the file's.
        state: whose model has the interpolated weights.
        chosen: the interpolation.
        seed: of the run.
    """
    learned = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in state.model.state_dict().items()
    }
    # `share` is alpha: the key stands in weights files, whose bytes stay the same
    how = {"share": chosen.alpha, "epochs": len(state.history), "seed": seed}
    return replace(
        grafted,
        state_dict=with_learned(grafted, learned),
        builder_args=dict(grafted.builder_args),
        provenance={**grafted.provenance, "finetune": how},
        branches=detector.branches if isinstance(detector, Branched) else None,
    )


def run_record(
    params: FinetuneParams,
    device: Device,
    schedule: Schedule,
    state: State,
    chosen: Interpolation,
    images: Mapping[str, int],
) -> RunRecord:
    """How the run went.

    Args:
        params: finetune.
        device: where it was computed.
        schedule: how many steps an epoch had.
        state: at the end.
        chosen: the interpolation.
        images: how many were trained on and replayed.
    """
    level, reasons = determinism(params, device)
    return RunRecord(
        determinism=Determinism(level=level, reasons=tuple(reasons)),
        machine=machine(params, device),
        versions=installed_versions(),
        epochs=len(state.history),
        steps=len(state.history) * schedule.steps,
        stopped_early=state.is_stale(params.early_stop),
        interpolation=chosen,
        accumulate=state.accumulate,
        images=dict(images),
        history=tuple(state.history),
        notes=tuple(state.notes),
    )
