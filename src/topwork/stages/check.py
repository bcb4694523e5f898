"""Stage `check`: hold data, weights and class plan against each other, before anything that costs
time.

Reads params `surgery.classes`, `finetune`, `retention` and `learned`, the tables of `validate` and
the pretrained weights. Writes out/check/verdict.json, which says the same whenever all is well, so
that nothing downstream runs again for it. Stopped by a plan that names what the weights or the
training data don't have, by a contract that can't be measured, and by a share that can't be chosen
(`finetune.interpolation: retention`) for want of objects. Prints what of plan and data may be meant
so.
"""

from topwork.dataset.tables import Tables
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
from topwork.training.held_out import check_held_out
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
            training data teaches.
        EvaluationError: there is no test set, or a contract can't be measured, for want of the set,
            the class or its objects.
        TrainingError: a share is to be chosen by what kept classes keep, on images to replay that
            have too few objects of them.
    """
    held = HeldInputs({"pretrained": PRETRAINED, **table_paths()})
    plan = params.surgery.plan()
    weights = read_weights(PRETRAINED, trust=True)
    plan.check(class_names(weights))
    tables = Tables.read(FOLDER, segmentation=False)
    fit = plan_fit(plan, tables)
    for line in fit.notes:
        print(f"note: {line}")
    fit.check()
    check_measurable(params.retention, params.learned, plan, tables)
    check_objects(params.retention, params.learned, plan, tables)
    check_held_out(plan, tables, params.finetune)
    held.check()
    CheckRecord(checked=("plan", "test set", "contracts")).write(VERDICT)


def main() -> int:
    """Run the stage alone."""
    return main_of(run, Params)


if __name__ == "__main__":
    raise SystemExit(main())
