"""Stage `finetune`: learn the new classes, protect the kept ones.

Reads params `finetune`, `surgery.classes` and `predict`, the tables of `validate` with the images
of train, val and replay, the pretrained and the grafted weights, and the boxes of `unlabelled`.
Writes out/finetune: weights.safetensors, receipt.json (what of the pretrained weights is in them,
bit for bit), record.json (determinism level and reasons, versions, epochs, interpolation, history)
and curves/ (DVCLive, while it runs). On the CPU of one kind of machine it repeats to the
bit, also when it's killed at any moment and started again: checkpoints lie in .topwork/scratch, in
a folder named after the hash of all that decides the result. Stopped by a loss that isn't finite,
by a device that can't be used, and by inputs that change meanwhile.
"""

import os
import shutil

import pandas as pd

from topwork.dataset.split_images import SplitImages
from topwork.dataset.tables import Tables
from topwork.errors import TrainingError
from topwork.files import HeldInputs
from topwork.inference.device import keep_freed_memory
from topwork.project.fetch import PRETRAINED
from topwork.project.finetune import CURVES, FINETUNED, RECEIPT, RECORD
from topwork.project.surgery import GRAFTED
from topwork.project.unlabelled import BOXES
from topwork.project.validate import FOLDER, table_paths
from topwork.stages import in_project, main_of
from topwork.surgery.keeping import keeping_receipt
from topwork.training.device import training_device
from topwork.training.distributed import launch, local_rank, process_group, process_of_environment
from topwork.training.loop import fine_tune
from topwork.training.setup import TrainingParams, prepare, read_splits, starting_weights
from topwork.weights.format import read_weights, write_weights


@in_project
def run(params: TrainingParams) -> None:
    """Fine-tune the grafted weights, in one process or several."""
    nodes, processes = params.finetune.nodes, params.finetune.processes
    if "RANK" in os.environ or nodes == processes == 1:
        work(params)
    elif nodes == 1:
        from topwork.stages import finetune  # by its name, so that new processes find it

        launch(finetune.work, processes, params)
    else:
        raise TrainingError(
            f"finetune.nodes is {nodes}: start the stage on each machine, `torchrun --nnodes"
            f" {nodes} --nproc-per-node {processes} --node-rank 0 --master-addr ADDRESS -m"
            " topwork.stages.finetune` on the one that DVC works on, with --node-rank 1 on the"
            " next, and then `dvc commit finetune` (docs/training.md)."
        )


def work(params: TrainingParams) -> None:
    """Fine-tune as the process that the environment describes."""
    process = process_of_environment()
    expected = params.finetune.nodes * params.finetune.processes
    if process.world != expected:
        raise TrainingError(
            f"finetune: {process.world} training processes were started, and finetune.nodes times"
            f" finetune.processes is {expected}. The number decides the result: write it into"
            " params.yaml, or start as many."
        )
    device = training_device(params.finetune, params.runtime.device, local_rank())
    if not device.on_gpu:
        keep_freed_memory()
    inputs = HeldInputs(
        {"pretrained": PRETRAINED, "grafted": GRAFTED, "boxes": BOXES, **table_paths()}
    )
    tables = Tables.read(FOLDER)
    images = SplitImages(tables)
    inputs.watch("images", lambda: images.stamps(read_splits(tables)))
    job = prepare(
        params,
        tables,
        starting_weights(params),
        pd.read_parquet(BOXES),
        pretrained=read_weights(PRETRAINED, trust=True),
        device=device,
        inputs=inputs,
        curves=CURVES,
        process=process,
    )
    with process_group(process, device.device):
        outcome = fine_tune(job)
    if process.rank:
        return
    inputs.check()
    write_weights(FINETUNED, outcome.weights)
    keeping_receipt(PRETRAINED, FINETUNED).write(RECEIPT)
    read = {"seed": params.finetune.seed, "inputs": inputs.hashes}
    outcome.record.model_copy(update=read).write(RECORD)
    if job.scratch is not None:
        shutil.rmtree(job.scratch, ignore_errors=True)


def main() -> int:
    """Run the stage alone."""
    return main_of(run, TrainingParams)


if __name__ == "__main__":
    raise SystemExit(main())
