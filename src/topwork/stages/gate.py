"""Stage `gate`: fail where the retention contract is breached.

Reads params `retention`, out/evaluate/verdict.json, and asks that the report is there. Writes out/gate/verdict.json when every contract
holds. Stopped by a breach, with the figures; metrics, predictions and report are safely written by then, since the stage runs last.
"""

from pathlib import Path

from topwork.errors import RetentionError
from topwork.files import HeldInputs, read_json, write_json
from topwork.params import Params
from topwork.stages import main_of

VERDICT = Path("out/evaluate/verdict.json")
REPORT = Path("out/report/report.html")
PASSED = Path("out/gate/verdict.json")

Contract = dict[str, tuple[float, str, str]]
"""Class -> least retention, set, by estimate or interval."""


def run(params: Params, root: Path = Path()) -> None:
    """Hold the verdict against the contract of params.yaml.

    Raises:
        RetentionError: a contract is breached, or the verdict speaks of another contract.
    """
    held = HeldInputs({"verdict": root / VERDICT, "report": root / REPORT})
    verdict = read_json(root / VERDICT)
    asked: Contract = {name: (contract.min, contract.on, contract.by) for name, contract in params.retention.items()}
    judged: Contract = {entry["class"]: (entry["min"], entry["on"], entry["by"]) for entry in verdict["contracts"]}
    if asked != judged:
        raise RetentionError(
            f"{VERDICT}: judges {_contract(judged)}, and retention in params.yaml asks {_contract(asked)}. "
            "The verdict is older than the contract; run `dvc repro`."
        )
    breached = [entry["sentence"] for entry in verdict["contracts"] if not entry["holds"]]
    if breached:
        raise RetentionError(
            f"retention contract breached: {'; '.join(breached)}. The report ({REPORT}) and the metrics are written: look there at what was "
            "lost. Protect more in finetune (lower learning rate of the trunk, teacher, replay, interpolation), or lower retention.*.min."
        )
    held.check()
    write_json(root / PASSED, verdict)
    for entry in verdict["contracts"]:
        print(f"contract holds: {entry['sentence']}")
    if not verdict["contracts"]:
        print("no retention contract in params.yaml: nothing to hold")


def _contract(contract: Contract) -> str:
    return ", ".join(f"{name}: {least:g} on {on} by {by}" for name, (least, on, by) in contract.items()) or "nothing"


def main() -> int:
    """Run the stage alone."""
    return main_of(run)


if __name__ == "__main__":
    raise SystemExit(main())
