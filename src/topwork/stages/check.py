"""Stage `check`: hold data, weights and class plan against each other, before anything that costs
time.

Reads params `surgery.classes`, `retention` and `learned`, the tables of `validate` and the
pretrained weights. Writes out/check/verdict.json, which says the same whenever all is well, so that
nothing downstream runs again for it. Stopped by a plan that names what the weights or the training
data don't have, and by a contract that can't be measured. Prints what of plan and data may be meant
so.
"""

from topwork.dataset.tables import Tables
from topwork.evaluation.contract import check_measurable, check_objects
from topwork.evaluation.plan_fit import plan_fit
from topwork.files import HeldInputs
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
    """
    held = HeldInputs({"pretrained": PRETRAINED, **table_paths()})
    plan = params.surgery.plan()
    weights = read_weights(PRETRAINED, trust=True)
    plan.check(class_names(weights))
    tables = Tables.read(FOLDER, segmentation=False)
    fit = plan_fit(plan, tables)
    for line in fit.told:
        print(f"note: {line}")
    fit.check()
    check_measurable(params.retention, params.learned, plan, tables)
    check_objects(params.retention, params.learned, plan, tables)
    held.check()
    CheckRecord(checked=("plan", "test set", "contracts")).write(VERDICT)


def main() -> int:
    """Run the stage alone."""
    return main_of(run, Params)


if __name__ == "__main__":
    raise SystemExit(main())
