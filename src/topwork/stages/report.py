"""Stage `report`: everything that the run left behind, on one page.

Reads all params but `demo` and `runtime`, and the outs of every stage before it. Writes
out/report/report.html, self-contained: verdict, pictures before and after, class table, curves,
errors, data findings, receipt, lineage. Repeats to the byte: the same files and params give the
same page. Stopped by a missing or damaged file, never by a breached contract, which is the gate's
business.
"""

from pathlib import Path

from topwork.files import HeldInputs, write_text
from topwork.params.document import Params
from topwork.project import finetune, predictions, unlabelled
from topwork.project.evaluate import FOLDER as EVALUATE
from topwork.project.evaluate import METRICS
from topwork.project.fetch import FOLDER as FETCH
from topwork.project.report import REPORT
from topwork.project.surgery import FOLDER as SURGERY
from topwork.project.validate import FOLDER as VALIDATE
from topwork.report.page import render_report
from topwork.report.run import Run, WorkingFiles
from topwork.stages import in_project, main_of

INPUTS = (
    VALIDATE,
    FETCH,
    SURGERY,
    predictions.BASELINE,
    unlabelled.FOLDER,
    finetune.FOLDER,
    predictions.PREDICT,
    METRICS,
    EVALUATE,
)


@in_project
def run(params: Params) -> None:
    """Write the page."""
    held = HeldInputs({path.as_posix(): path for path in INPUTS if path.exists()})
    text = render_report(Run(WorkingFiles(Path()), params))
    held.check()
    write_text(REPORT, text)


def main() -> int:
    """Run the stage alone."""
    return main_of(run, Params)


if __name__ == "__main__":
    raise SystemExit(main())
