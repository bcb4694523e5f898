"""Graft the pretrained head onto the plan's classes.

Reads `out/fetch/pretrained.safetensors` and the `surgery` section of params.yaml; writes `out/surgery/grafted.safetensors` and
`out/surgery/receipt.json`. Bit-exact: the same inputs give the same bytes on any machine (`new: reference` rows: with the same torch).
Stopped by a plan that names what the weights don't have, weights that don't fit their builder, a class axis that can't be proved, and
rows that aren't finite.
"""

from pathlib import Path

from topwork.classes import ClassPlan
from topwork.detectors.graft import graft
from topwork.detectors.record import sealed
from topwork.files import HeldInputs, sha256_file, write_json
from topwork.params import Params
from topwork.stages import main_of
from topwork.weights.weights import read_weights, write_weights

SOURCE = Path("out/fetch/pretrained.safetensors")
RESULT = Path("out/surgery/grafted.safetensors")
RECEIPT = Path("out/surgery/receipt.json")


def run(params: Params, root: Path = Path()) -> None:
    """Run the stage in a project folder."""
    held = HeldInputs({"pretrained": root / SOURCE})
    section = params.surgery
    plan = ClassPlan.parse(section.classes, dropped=section.dropped, prior=section.prior, seed=section.seed)
    done = graft(read_weights(root / SOURCE, trust=True), plan)
    held.check()
    write_weights(root / RESULT, done.weights)
    write_json(root / RECEIPT, sealed(done.receipt, held.hashes["pretrained"], sha256_file(root / RESULT)))


def main() -> int:
    """Run the stage on the current folder's params.yaml."""
    return main_of(run)


if __name__ == "__main__":
    raise SystemExit(main())
