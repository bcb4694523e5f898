"""Tell somebody: Prefect's own automations, which call a webhook.

    python -m flows.notify https://hooks.example.org/...

registers three with the server of PREFECT_API_URL, in place of those that it has: a run that fails,
a breached contract, and a night on which no run ended. A fourth gives a run the state `Crashed`
whose machine has gone silent. The address is kept in a block of Prefect's, encrypted, and stands in
no file, log or artifact.
"""

import argparse
import sys
from datetime import timedelta

import httpx
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

BLOCK = "topwork-notify"
NIGHT_H = 26
"""A night, and two hours for it to be late."""
SILENCE = timedelta(seconds=100)
"""Three heartbeats (`flows.serve` sets them to 30 s), and a little."""
RUNS = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
ENDED = ("Completed", "Unchanged", "Skipped", "Failed", "Breached", "Broken")


def automations(block: str | None) -> list[AutomationCore]:
    """The automations.

    Args:
        block: id of the webhook's block; None: only the one that needs none.
    """

    def call(text: str) -> list[CallWebhook]:
        parts = ", ".join(
            f'"{key}": {{{{ {value} | string | tojson }}}}'
            for key, value in (
                ("run", "flow_run.name"),
                ("state", "flow_run.state.name"),
                ("message", "flow_run.state.message"),
                ("page", "flow_run | ui_url"),
            )
        )
        return [CallWebhook(block_document_id=block, payload=f'{{"text": "{text}", {parts}}}')]

    silent = AutomationCore(
        name="topwork: a silent run has crashed",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={
                "prefect.flow-run.heartbeat",
                *(f"prefect.flow-run.{name}" for name in (*ENDED, "Cancelled", "Crashed")),
            },
            match=RUNS,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message="This run sends no heartbeats any more: its machine sleeps or is down.",
            )
        ],
    )
    if block is None:
        return [silent]
    failed = AutomationCore(
        name="topwork: a run failed",
        trigger=EventTrigger(
            expect={f"prefect.flow-run.{name}" for name in ("Failed", "Crashed", "Broken")},
            match=RUNS,
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=call("a run failed"),
    )
    breached = AutomationCore(
        name="topwork: a contract is breached",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Breached"},
            match=RUNS,
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=call("the retention contract is breached"),
    )
    no_night = AutomationCore(
        name="topwork: no night",
        trigger=EventTrigger(
            expect={f"prefect.flow-run.{name}" for name in ENDED},
            match=RUNS,
            match_related=ResourceSpecification(
                {"prefect.resource.name": "nightly", "prefect.resource.role": "deployment"}
            ),
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(hours=NIGHT_H),
        ),
        actions=[
            CallWebhook(
                block_document_id=block,
                payload=f'{{"text": "no nightly run has ended for {NIGHT_H} h"}}',
            )
        ],
    )
    return [silent, failed, breached, no_night]


def register(client: SyncPrefectClient, found: list[AutomationCore]) -> None:
    """Register automations in place of those of the same names."""
    for automation in found:
        for old in client.read_automations_by_name(automation.name):
            client.delete_automation(old.id)
        client.create_automation(automation)


def main(argv: list[str] | None = None) -> int:
    """Register; exit code 1 where no server answers."""
    parser = argparse.ArgumentParser(prog="python -m flows.notify", description=__doc__)
    parser.add_argument("url", help="where a POST with JSON tells somebody")
    url: str = parser.parse_args(argv).url
    try:
        block = str(Webhook(url=url).save(BLOCK, overwrite=True))
        with get_client(sync_client=True) as client:
            found = automations(block)
            register(client, found)
            print("\n".join(automation.name for automation in found))
            print(f"registered at {client.api_url}")
    except httpx.HTTPError as error:
        print(f"error: the Prefect server doesn't answer: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
