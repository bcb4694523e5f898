"""Stage `gate`: fail where the retention contract is breached.

Reads params `retention`, out/evaluate/verdict.json, and asks that the report is there. Writes
out/gate/verdict.json when every contract holds. Stopped by a breach, with the figures; metrics,
predictions and report are safely written by then, since the stage runs last.
"""

from topwork.errors import RetentionError
from topwork.files import HeldInputs
from topwork.params.retention import KeepParams
from topwork.params.section import Sections
from topwork.project.evaluate import VERDICT, VerdictRecord
from topwork.project.gate import PASSED
from topwork.project.report import REPORT
from topwork.stages import in_project, main_of

Contract = dict[str, tuple[float, str, str]]
"""Class -> least retention, set, by estimate or interval."""


class Params(Sections):
    """What the stage reads of params.yaml."""

    retention: dict[str, KeepParams] = {}


@in_project
def run(params: Params) -> None:
    """Hold the verdict against the contract of params.yaml.

    Raises:
        RetentionError: a contract is breached, or the verdict is about another contract.
    """
    held = HeldInputs({"verdict": VERDICT, "report": REPORT})
    verdict = VerdictRecord.read(VERDICT)
    asked: Contract = {
        name: (contract.least, contract.on, contract.measure)
        for name, contract in params.retention.items()
    }
    measured: Contract = {
        entry.name: (entry.min, entry.on, entry.by) for entry in verdict.contracts
    }
    if asked != measured:
        raise RetentionError(
            f"{VERDICT}: is about {_contract(measured)}, and retention in params.yaml asks"
            f" {_contract(asked)}. The verdict is older than the contract; run `dvc repro`."
        )
    breached = [entry.sentence for entry in verdict.contracts if not entry.holds]
    if breached:
        raise RetentionError(
            f"retention contract breached: {'; '.join(breached)}. The report ({REPORT}) and the"
            " metrics are written: look there at what was lost. Protect more in finetune (lower"
            " learning rate of the trunk, teacher, replay, interpolation), or lower"
            " retention.*.min."
        )
    held.check()
    verdict.write(PASSED)
    for line in verdict.lines():
        print(line)
    if not verdict.contracts:
        print("no retention contract in params.yaml: nothing to hold")


def _contract(contract: Contract) -> str:
    return (
        ", ".join(
            f"{name}: {least:g} on {on} by {by}" for name, (least, on, by) in contract.items()
        )
        or "nothing"
    )


def main() -> int:
    """Run the stage alone."""
    return main_of(run, Params)


if __name__ == "__main__":
    raise SystemExit(main())
