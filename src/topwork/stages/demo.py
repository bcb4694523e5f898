"""Stage `demo`: draw the embedded demo.

Reads params `demo`. Writes data/demo: the yard (train, val, test) and held-out images of the street
world, as COCO annotations and
JPEG. Repeats to the byte for a seed. A project whose `dataset.root` is another folder never runs
it.
"""

from pathlib import Path

from topwork.demo.worlds import write_demo
from topwork.params.demo import DemoParams
from topwork.params.section import Sections
from topwork.stages import in_project, main_of

FOLDER = Path("data/demo")


class Params(Sections):
    """What the stage reads of params.yaml."""

    demo: DemoParams = DemoParams()


@in_project
def run(params: Params) -> None:
    """Draw the demo."""
    demo = params.demo
    write_demo(
        FOLDER,
        demo.seed,
        street_test=demo.street_test,
        street_replay=demo.street_replay,
        yard_train=demo.yard_train,
        yard_val=demo.yard_val,
        yard_test=demo.yard_test,
    )


def main() -> int:
    """Run the stage alone."""
    return main_of(run, Params)


if __name__ == "__main__":
    raise SystemExit(main())
