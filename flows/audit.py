"""The scheduled audit: every kept experiment held against its record, and some of them computed
again.
"""

import contextlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.isolation import command_environment
from flows.pipeline import commands_of_run, now, run_id
from flows.processes import Commands
from flows.published import cell, name_run, shown
from flows.turns import Turn, alive, folder

Start = Literal["predictions", "weights", "training", "data"]
UNFINISHED, NEVER = "0", "1"
"""When an experiment was last computed again, where there is no date; both sort before dates."""


@flow(name="audit", persist_result=False)
def audit(
    root: Path = Path(),
    minutes: float = 60,
    recompute_minutes: float = 0,
    recompute_from: Start = "data",
) -> State[dict[str, str]]:
    """Run `topwork audit verify` on every experiment and every commit with a record, newest first,
    then `topwork audit recompute` on as many as there is time for: those that never were computed
    again first, then those of long ago.

    Args:
        root: the project.
        minutes: no further one is verified after that time; the result names those left out.
        recompute_minutes: the recompute ends after that time; the next audit goes on where it was.
        recompute_from: what a recompute starts from; `data`: everything runs.

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
        rows = [row for row in json.loads(listing) if row["kind"] != "failed"]
        for row in rows:
            name = _name(row)
            if time.monotonic() > end:
                found[name] = "left out: the time was up"
                continue
            code, output = _topwork(commands, root, "audit", "verify", row["rev"])
            found[name] = _last_line(output)
            if code == 1:
                found[name] = f"broken: {found[name]}"
            get_run_logger().info("%s: %s", name, found[name])
        again = 0
        if recompute_minutes and rows:
            for name, outcome in _recompute(
                commands, root, rows, recompute_minutes, recompute_from
            ):
                get_run_logger().info("%s: %s", name, outcome)
                again += not outcome.startswith("not recomputed")
                first, then = found[name], outcome
                if outcome.startswith("broken"):
                    first, then = outcome, first
                found[name] = f"{first}; {then}"
        _publish(found)
        broken = [name for name, outcome in found.items() if outcome.startswith("broken")]
        if broken:
            return Failed(
                name="Broken",
                message=f"{', '.join(broken)}: {found[broken[0]]}. `topwork audit verify` and"
                f" `topwork audit recompute` of {broken[0]} show more.",
            )
        left = Counter(outcome.partition(":")[0] for outcome in found.values())["left out"]
        looked = f"{len(found) - left} of {len(found)} experiments looked at"
        recomputed = f", {again} computed again" if recompute_minutes else ""
        return Completed(message=f"{looked}{recomputed}, none is broken", data=found)


def _recompute(
    commands: Commands, root: Path, rows: Sequence[dict[str, Any]], minutes: float, start: Start
) -> Iterator[tuple[str, str]]:
    """Compute a sample again; what came of each. It has the project meanwhile: other runs wait."""
    end = time.monotonic() + minutes * 60
    file = folder(root) / "recomputed.json"
    past: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):  # then all are as if they never were
        past = json.loads(file.read_text())
    with Turn(root, "recompute", "the audit's recompute").taken("skip", print) as other:
        if other:
            yield _name(rows[0]), f"not recomputed: {other['name']} has the project"
            return
        for row in sorted(rows, key=lambda row: past.get(row["rev"], NEVER)):
            left = end - time.monotonic()
            if left <= 0:
                return
            words = ("audit", "recompute", row["rev"], "--from", start)
            code, output = _topwork(commands, root, *words, limit_s=left)
            up = time.monotonic() >= end and code not in (0, 1, 3)
            past[row["rev"]] = UNFINISHED if up else now()
            file.write_text(json.dumps(past), encoding="utf-8")
            last = _last_line(output)
            if up:
                yield _name(row), "not recomputed to its end: the time was up; the next goes on"
            elif code in (0, 1, 3) and not last.startswith("error: "):
                yield _name(row), f"{'broken: ' if code == 1 else ''}recomputed: {last}"
            else:
                yield _name(row), f"not recomputed: {last.removeprefix('error: ')}"


def _name(row: dict[str, Any]) -> str:
    return str(row["name"] or row["rev"])


def _last_line(output: str) -> str:
    return (output.strip().splitlines() or ["no output"])[-1]


def _topwork(
    commands: Commands, root: Path, *words: str, limit_s: float | None = None
) -> tuple[int, str]:
    """Run a command of topwork, ended after a time; its exit code and output."""
    line = [sys.executable, "-m", "topwork.cli", *words]
    with commands.run(line, root, command_environment(root)) as command:
        limit = threading.Timer(limit_s or 0, command.end)
        if limit_s is not None:
            limit.start()
        output = command.output.read()
        limit.cancel()
        return command.wait(), output


def _publish(found: dict[str, Any]) -> None:
    rows = [f"| {name} | {cell(outcome)} |" for name, outcome in found.items()]
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
