"""Stage `gate`: fail where a contract is breached, of kept classes or of new ones.

Reads params `retention` and `learned`, out/evaluate/verdict.json, and asks that the report is
there. Writes out/gate/verdict.json when every contract holds. Stopped by a breach, with the
figures; metrics, predictions and report are safely written by then, since the stage runs last.
"""

from collections.abc import Sequence

from topwork.errors import RetentionError
from topwork.files import HeldInputs
from topwork.params.learned import LearnParams
from topwork.params.retention import KeepParams
from topwork.params.section import Sections
from topwork.project.evaluate import VERDICT, ContractRecord, LearnedRecord, VerdictRecord
from topwork.project.finetune import USE
from topwork.project.gate import PASSED
from topwork.project.report import REPORT
from topwork.stages import in_project, main_of

Contract = dict[str, tuple[float, str, str]]
"""Class -> least figure, set, by estimate or interval."""


class Params(Sections):
    """What the stage reads of params.yaml."""

    retention: dict[str, KeepParams] = {}
    learned: dict[str, LearnParams] = {}


@in_project
def run(params: Params) -> None:
    """Hold the verdict against the contracts of params.yaml.

    Raises:
        RetentionError: a contract is breached, or the verdict is about another contract.
    """
    held = HeldInputs({"verdict": VERDICT, "report": REPORT})
    verdict = VerdictRecord.read(VERDICT)
    _check_same(
        "retention",
        {name: (kept.least, kept.on, kept.measure) for name, kept in params.retention.items()},
        verdict.contracts,
    )
    _check_same(
        "learned",
        {name: (new.min, new.on, new.by) for name, new in params.learned.items()},
        verdict.learned,
    )
    lost = [entry.sentence for entry in verdict.contracts if not entry.holds]
    short = [entry.sentence for entry in verdict.learned if not entry.holds]
    faults = []
    if lost:
        faults.append(
            f"retention contract breached: {'; '.join(lost)}. Protect more in finetune (lower"
            " learning rate of the trunk, teacher, replay, interpolation), or lower"
            " retention.*.min."
        )
    if short:
        faults.append(
            f"learning contract breached: {'; '.join(short)}. Train longer or with more images"
            " of the class, protect less, or lower learned.*.min."
        )
    if faults:
        raise RetentionError(
            f"{' '.join(faults)} The report ({REPORT}) and the metrics are written: look there"
            " at what was lost and what is missing."
        )
    held.check()
    verdict.write(PASSED)
    for line in verdict.lines():
        print(line)
    if not verdict.contracts and not verdict.learned:
        print("no contract in params.yaml (retention, learned): nothing to hold")
    print(f"report: {REPORT}\n{USE}")


def _check_same(
    section: str, wanted: Contract, measured: Sequence[ContractRecord | LearnedRecord]
) -> None:
    """Refuse a verdict about another contract than params.yaml has."""
    found: Contract = {entry.name: (entry.min, entry.on, entry.by) for entry in measured}
    if wanted != found:
        raise RetentionError(
            f"{VERDICT}: is about {_contract(found)}, and {section} in params.yaml asks"
            f" {_contract(wanted)}. The verdict is older than the contract; run `dvc repro`."
        )


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
