"""What a run shows in Prefect's pages: progress, states of stages, metrics, verdict, report.

A server that doesn't answer costs the run what it would have shown, nothing else.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State

METRICS = Path("out/metrics.json")
VERDICT = Path("out/evaluate/verdict.json")
PICTURES = 2


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Go on where the server doesn't answer, and say so in the log."""
    try:
        yield
    except httpx.HTTPError as error:
        get_run_logger().warning("not shown in Prefect's pages: %s", error)


class Progress:
    """A stage's progress artifact, made at its first progress event."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._artifact: Any = None

    def follow(self, event: dict[str, Any]) -> None:
        """Take over a progress event."""
        percent = 100 * event["done"] / event["total"]
        text = f"{event['unit']} {event['done']} of {event['total']}  {event.get('text', '')}"
        with shown():
            if self._artifact is None:
                key = re.sub("[^a-z0-9]+", "-", self.stage.lower()).strip("-")
                self._artifact = create_progress_artifact(
                    percent, key=f"progress-{key}", description=text
                )
            else:
                update_progress_artifact(self._artifact, progress=percent, description=text)


def name_run(run: UUID | None, name: str) -> None:
    """Give the flow run a name that speaks."""
    if run is not None:
        with shown(), get_client(sync_client=True) as client:
            client.update_flow_run(run, name=name)


def publish_stages(states: Mapping[str, State[str]]) -> None:
    """A table of what became of each stage."""
    rows = [
        f"| {stage} | {state.name} | {cell(state.message or '')} |"
        for stage, state in states.items()
    ]
    with shown():
        create_markdown_artifact(
            "\n".join(["| stage | state | message |", "| --- | --- | --- |", *rows]), key="stages"
        )


def publish_results(root: Path, before: Mapping[str, Any] | None = None) -> None:
    """Metrics (next to those of the revision, where it has some), verdict, and pictures of the
    project in `root`, as far as they are there.
    """
    now = figures(_json(root / METRICS))
    then = figures(before or {})
    if now:
        rows = [
            f"| {name} | {_number(value)} | {_number(then[name]) if name in then else ''} |"
            for name, value in now.items()
        ]
        with shown():
            create_markdown_artifact(
                "\n".join(["| metric | this run | revision |", "| --- | --- | --- |", *rows]),
                key="metrics",
            )
    if sentences := verdict(root):
        with shown():
            create_markdown_artifact("\n".join(f"- {text}" for text in sentences), key="verdict")
    if not now:
        return
    from flows.pictures import before_and_after

    if pictures := before_and_after(root, PICTURES):
        text = "\n\n".join(
            f"{name}: pretrained, fine-tuned\n\n![{name}]({uri})" for name, uri in pictures
        )
        with shown():
            create_markdown_artifact(text, key="pictures")


def publish_kept(**links: str) -> None:
    """Where to find what the run left: experiment or branch, report."""
    with shown():
        create_markdown_artifact(
            "\n".join(f"- {name}: {place}" for name, place in links.items()), key="kept"
        )


def publish_champion(outcome: str) -> None:
    """What became of the promotion."""
    with shown():
        create_markdown_artifact(outcome, key="champion")


def verdict(root: Path) -> list[str]:
    """The retention contracts' sentences; those of an earlier layout are left out."""
    found = _json(root / VERDICT).get("contracts")
    return [
        f"{'holds' if entry.get('holds') else '**breached**'}: {entry['sentence']}"
        for entry in (found if isinstance(found, list) else ())
        if isinstance(entry, dict) and "sentence" in entry
    ]


def figures(document: Any, start: str = "") -> dict[str, float]:
    """Every number of nested metrics, by dotted name."""
    found: dict[str, float] = {}
    for key, value in document.items() if isinstance(document, Mapping) else ():
        if isinstance(value, Mapping):
            found |= figures(value, f"{start}{key}.")
        elif isinstance(value, int | float):
            found[f"{start}{key}"] = float(value)
    return found


def cell(text: str) -> str:
    """Text as one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def _number(value: float) -> str:
    return f"{value:.4g}"


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
