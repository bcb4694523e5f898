"""Stage `predict`: what the fine-tuned detector sees on the held-out images.

Reads params `predict` and `surgery.classes`, the tables of `validate` with the held-out images, and
the fine-tuned weights. Writes out/predict: predictions/ (Parquet and COCO results by split) and
record.json. On the CPU of one kind of machine it repeats to the byte; a GPU may differ in the last
digits. Stopped by weights that give NaN, a device that isn't there, and inputs that change
meanwhile.
"""

from topwork.dataset.split_images import SplitImages
from topwork.dataset.tables import Tables
from topwork.files import HeldInputs
from topwork.inference.device import choose_device, keep_freed_memory
from topwork.inference.run import predict_splits, record_of, write_run
from topwork.metrics.sets import held_out
from topwork.params.predict import PredictParams
from topwork.params.runtime import RuntimeParams
from topwork.params.section import Sections
from topwork.params.surgery import SurgeryParams
from topwork.project.finetune import FINETUNED
from topwork.project.predictions import predictions_folder, record_path
from topwork.project.validate import FOLDER, table_paths
from topwork.stages import in_project, main_of

MODEL = "finetuned"


class Params(Sections):
    """What the stage reads of params.yaml."""

    surgery: SurgeryParams
    predict: PredictParams = PredictParams()
    runtime: RuntimeParams = RuntimeParams()


@in_project
def run(params: Params) -> None:
    """Run the fine-tuned detector."""
    plan = params.surgery.plan()
    held = HeldInputs({"weights": FINETUNED, **table_paths()})
    tables = Tables.read(FOLDER, segmentation=False)
    images, splits = SplitImages(tables), held_out(plan, tables)
    held.watch("images", lambda: images.stamps(splits))
    device = choose_device(params.runtime.device)
    if device.type == "cpu":
        keep_freed_memory()
    found = {
        MODEL: predict_splits(
            MODEL, FINETUNED, splits, images, plan, params=params.predict, device=device
        )
    }
    held.check()
    write_run(predictions_folder(MODEL), found, tables, plan)
    record_of(found, {MODEL: held.hashes["weights"]}, params.predict, device).write(
        record_path(MODEL)
    )


def main() -> int:
    """Run the stage alone."""
    return main_of(run, Params)


if __name__ == "__main__":
    raise SystemExit(main())
