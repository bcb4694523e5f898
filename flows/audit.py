"""The scheduled audit: every kept experiment held against its record."""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.isolation import command_environment
from flows.pipeline import commands_of_run, now, run_id
from flows.processes import Commands
from flows.published import cell, name_run, shown
from flows.turns import alive


@flow(name="audit", persist_result=False)
def audit(root: Path = Path(), minutes: float = 60) -> State[dict[str, str]]:
    """Run `topwork audit verify` on every experiment and every commit with a record, newest first.

    Args:
        root: the project.
        minutes: no further one is begun after that time; which were left out is said.

    Returns:
        A state with revision -> what was found; `Failed` where one is broken.
    """
    root = root.resolve()
    commands = Commands()
    with commands_of_run(commands), alive(root, run_id()):
        name_run(run_id(), f"{now()} audit")
        end = time.monotonic() + minutes * 60
        found = {}
        code, listing = _topwork(commands, root, "audit", "list", "--format", "json")
        if code:
            return Failed(message=listing.strip() or "topwork audit list failed")
        for row in json.loads(listing):
            name = row["name"] or row["rev"]
            if time.monotonic() > end:
                found[name] = "left out: the time was up"
                continue
            code, said = _topwork(commands, root, "audit", "verify", row["rev"])
            found[name] = (said.strip().splitlines() or ["no output"])[-1]
            if code == 1:
                found[name] = f"broken: {found[name]}"
            get_run_logger().info("%s: %s", name, found[name])
        _publish(found)
        broken = [name for name, said in found.items() if said.startswith("broken")]
        counts = Counter(said.partition(":")[0] for said in found.values())
        if broken:
            return Failed(
                name="Broken",
                message=f"{', '.join(broken)}: {found[broken[0]]}. `topwork audit verify"
                f" {broken[0]}` shows each statement.",
            )
        left = counts["left out"]
        return Completed(
            message=f"{len(found) - left} of {len(found)} experiments looked at, none is broken",
            data=found,
        )


def _topwork(commands: Commands, root: Path, *words: str) -> tuple[int, str]:
    line = [sys.executable, "-m", "topwork.cli", *words]
    with commands.run(line, root, command_environment(root)) as command:
        said = command.output.read()
        return command.wait(), said


def _publish(found: dict[str, Any]) -> None:
    rows = [f"| {name} | {cell(said)} |" for name, said in found.items()]
    with shown():
        create_markdown_artifact(
            "\n".join(["| experiment | audit |", "| --- | --- |", *rows]), key="audit"
        )


def main() -> int:
    """Run the audit on the project of the current folder; exit code 1 where one is broken."""
    state: State[Any] = audit(return_state=True)
    print(state.message, file=sys.stderr if state.is_failed() else sys.stdout)
    return int(state.is_failed())


if __name__ == "__main__":
    raise SystemExit(main())
