"""Stage `baseline`: what the pretrained and the grafted detector see, before any training.

Reads params `predict` and `surgery.classes`, the tables of `validate` with the held-out images and,
for the stage `unlabelled`, the training images, and both weights. Writes out/baseline: predictions/
(Parquet and COCO results by model and split), training.parquet and record.json. A sweep of training
params doesn't run it again. On the CPU of one kind of machine it repeats to the byte; a GPU may
differ in the last digits. Stopped by weights that give NaN, a device that isn't there, and inputs
that change meanwhile.
"""

from topwork.dataset.split_images import SplitImages
from topwork.dataset.tables import Tables
from topwork.files import HeldInputs, atomic_path
from topwork.inference.device import choose_device, keep_freed_memory
from topwork.inference.prediction import no_detections
from topwork.inference.run import predict_splits, record_of, write_run
from topwork.metrics.sets import held_out
from topwork.params.predict import PredictParams
from topwork.params.runtime import RuntimeParams
from topwork.params.section import Sections
from topwork.params.surgery import SurgeryParams
from topwork.project.fetch import PRETRAINED
from topwork.project.predictions import TRAINING, predictions_folder, record_path
from topwork.project.surgery import GRAFTED
from topwork.project.validate import FOLDER, table_paths
from topwork.stages import in_project, main_of

WEIGHTS = {"pretrained": PRETRAINED, "grafted": GRAFTED}


class Params(Sections):
    """What the stage reads of params.yaml."""

    surgery: SurgeryParams
    predict: PredictParams = PredictParams()
    runtime: RuntimeParams = RuntimeParams()


@in_project
def run(params: Params) -> None:
    """Run both detectors."""
    plan = params.surgery.plan()
    held = HeldInputs({**WEIGHTS, **table_paths()})
    tables = Tables.read(FOLDER, segmentation=False)
    images = SplitImages(tables)
    splits = {"pretrained": held_out(plan, tables), "grafted": held_out(plan, tables)}
    if plan.kept and "train" in tables.splits:
        splits["pretrained"] = [*splits["pretrained"], "train"]
    held.watch("images", lambda: images.stamps(splits["pretrained"]))
    device = choose_device(params.runtime.device)
    if device.type == "cpu":
        keep_freed_memory()
    found = {
        model: predict_splits(
            model, path, splits[model], images, plan, params=params.predict, device=device
        )
        for model, path in WEIGHTS.items()
    }
    held.check()
    weights = {model: held.hashes[model] for model in WEIGHTS}
    record = record_of(found, weights, params.predict, device)
    training = found["pretrained"].pop("train", no_detections())
    write_run(predictions_folder("pretrained"), found, tables, plan)
    with atomic_path(TRAINING) as temporary:
        training.to_parquet(temporary, index=False, compression="zstd")
    record.write(record_path("pretrained"))


def main() -> int:
    """Run the stage alone."""
    return main_of(run, Params)


if __name__ == "__main__":
    raise SystemExit(main())
