"""Stage `check`: hold data, weights and class plan against each other, before anything that costs
time.

Reads params `surgery.classes`, `retention`, `learned` and `finetune` (how kept classes are
protected), the tables of `validate` and the pretrained weights. Writes out/check/verdict.json,
which says the same whenever all is well, so that nothing downstream runs again for it. Stopped by a
plan that names what the weights or the training data don't have, and by a contract that can't be
measured. Prints what of plan and data may be meant so.
"""

from collections.abc import Mapping

from topwork.dataset.tables import Tables
from topwork.errors import ClassPlanError, EvaluationError
from topwork.evaluation.contract import check_measurable, check_objects
from topwork.evaluation.plan_fit import plan_fit
from topwork.files import HeldInputs
from topwork.params.finetune import FinetuneParams
from topwork.params.learned import LearnParams
from topwork.params.retention import KeepParams
from topwork.params.section import Sections
from topwork.params.surgery import SurgeryParams
from topwork.project.check import VERDICT, CheckRecord
from topwork.project.fetch import PRETRAINED
from topwork.project.validate import FOLDER, table_paths
from topwork.stages import in_project, main_of
from topwork.weights.branches import class_names
from topwork.weights.format import read_weights


class Params(Sections):
    """What the stage reads of params.yaml."""

    surgery: SurgeryParams
    finetune: FinetuneParams = FinetuneParams()
    retention: dict[str, KeepParams] = {}
    learned: dict[str, LearnParams] = {}


@in_project
def run(params: Params) -> None:
    """Check the plan against the weights and the training data, the contracts against plan and
    data.

    Raises:
        ClassPlanError: the plan names what the weights don't have, or a class that nothing in the
            training data teaches, or the way of protecting doesn't suit the weights.
        EvaluationError: there is no test set, or a contract can't be measured, for want of the set,
            the class or its objects, or kept.
    """
    held = HeldInputs({"pretrained": PRETRAINED, **table_paths()})
    plan = params.surgery.plan()
    weights = read_weights(PRETRAINED, trust=True)
    plan.check(class_names(weights))
    if weights.branches is not None and params.finetune.protect != "branch":
        raise ClassPlanError(
            f"{PRETRAINED}: holds a detector with branches on it, and finetune.protect: weights"
            " trains a single one. Write `protect: branch`."
        )
    tables = Tables.read(FOLDER, segmentation=False)
    fit = plan_fit(plan, tables)
    for line in fit.told:
        print(f"note: {line}")
    fit.check()
    check_measurable(params.retention, params.learned, plan, tables)
    check_objects(params.retention, params.learned, plan, tables)
    check_exactness(params.retention, params.finetune)
    held.check()
    CheckRecord(checked=("plan", "test set", "contracts")).write(VERDICT)


def check_exactness(contract: Mapping[str, KeepParams], finetune: FinetuneParams) -> None:
    """Refuse a class that is to be kept exactly by a way of protecting that changes it.

    Raises:
        EvaluationError: the way; all such classes are named.
    """
    exact = [name for name, asked in contract.items() if asked.exact]
    if not exact:
        return
    if finetune.protect != "branch":
        way, instead = f"protect: {finetune.protect}", "`protect: branch`"
    elif finetune.branch.share:
        way, instead = "branch: {kept: mix}", "`kept: exact`"
    else:
        return
    raise EvaluationError(
        f"params.yaml: retention: {', '.join(exact)}: exact, and finetune.{way} changes kept"
        f" classes' detections. Write {instead} in finetune, or `min: 0.95` in place of `exact`."
    )


def main() -> int:
    """Run the stage alone."""
    return main_of(run, Params)


if __name__ == "__main__":
    raise SystemExit(main())
