"""Stage `surgery`: graft the pretrained head onto the plan's classes.

Reads params `surgery` and the pretrained weights. Writes out/surgery: grafted.safetensors and
receipt.json. Bit-exact: the same inputs give the same bytes on any machine (`new: reference` rows:
with the same torch). Stopped by a plan that names what the weights don't have, weights that don't
fit their builder, a class axis that can't be proved, and rows that aren't finite.
"""

from topwork.files import HeldInputs, sha256_file
from topwork.params.section import Sections
from topwork.params.surgery import SurgeryParams
from topwork.project.fetch import PRETRAINED
from topwork.project.surgery import GRAFTED, RECEIPT, ReceiptRecord
from topwork.stages import in_project, main_of
from topwork.surgery.graft import graft
from topwork.surgery.receipt import sealed
from topwork.weights.branches import own_plan, stock_of
from topwork.weights.format import read_weights, write_weights


class Params(Sections):
    """What the stage reads of params.yaml."""

    surgery: SurgeryParams


@in_project
def run(params: Params) -> None:
    """Graft, and write the weights and the receipt."""
    held = HeldInputs({"pretrained": PRETRAINED})
    source, plan = read_weights(PRETRAINED, trust=True), params.surgery.plan()
    done = graft(stock_of(source), own_plan(source, plan))
    held.check()
    write_weights(GRAFTED, done.weights)
    receipt = sealed(done.receipt, held.hashes["pretrained"], sha256_file(GRAFTED))
    ReceiptRecord.model_validate(receipt).write(RECEIPT)


def main() -> int:
    """Run the stage alone."""
    return main_of(run, Params)


if __name__ == "__main__":
    raise SystemExit(main())
