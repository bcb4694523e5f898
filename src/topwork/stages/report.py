"""Stage `report`: everything below out/ -> out/report/report.html.

One self-contained page: verdict, pictures before and after, class table, curves, errors, data findings, receipt, lineage. Repeats
bit by bit: the same files and params give the same bytes. Stopped by a missing or damaged file, never by a breached contract, which
is the gate's business.
"""

from pathlib import Path

from topwork.files import HeldInputs, write_text
from topwork.params import Params
from topwork.report.page import render_report
from topwork.report.run import Run, WorkingFiles
from topwork.stages import main_of

OUT = Path("out/report/report.html")
INPUTS = ("validate", "fetch", "surgery", "unlabelled", "finetune", "evaluate")


def run(params: Params, root: Path = Path()) -> None:
    """Write the page."""
    held = HeldInputs({name: root / "out" / name for name in INPUTS if (root / "out" / name).exists()})
    text = render_report(Run(WorkingFiles(root), params))
    held.check()
    write_text(root / OUT, text)


def main() -> int:
    """Run on the params.yaml of the current folder."""
    return main_of(run)


if __name__ == "__main__":
    raise SystemExit(main())
