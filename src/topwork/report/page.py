"""The report page: a run in, one self-contained HTML text out.

The same run gives the same bytes. No scripts, no outside references; at most 5 MB, of which
pictures take what they are allowed.
"""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from topwork.errors import TopworkError
from topwork.project.evaluate import CLASSES
from topwork.project.names import MODEL_TITLES
from topwork.report import lineage, sections, story
from topwork.report.figures import ClassFigures, class_figures, clauses
from topwork.report.headline import headline
from topwork.report.run import Run

MOST_BYTES = 5_000_000


def render_report(run: Run) -> str:
    """Write the page.

    Raises:
        TopworkError: evaluate hasn't run (there is nothing to report), or a file of the run is
            damaged.
    """
    if run.params is None:
        raise TopworkError("report: the run has no params; pass those of params.yaml.")
    if not run.has(CLASSES):
        raise TopworkError(
            f"{CLASSES}: no such file, and the report is about it. Run `dvc repro evaluate` first."
        )
    params = run.params.report
    figures, contract = class_figures(run), clauses(run)
    pictures, why_none = story.before_after(
        run, params.pictures, thresholds(figures, params.min_score)
    )
    mistakes = sections.errors(run)
    text = render(
        "report.html.j2",
        title=params.title,
        headline=headline(figures, contract, run.mean_ap("finetuned", "test")),
        figures=figures,
        contract=contract,
        pictures=pictures,
        why_none=why_none,
        others=any(
            '"box other"' in panel.drawing for picture in pictures for panel in picture.panels
        ),
        min_score=params.min_score,
        tables=sections.class_tables(figures, contract),
        class_charts=sections.class_charts(figures),
        notes=class_notes(run, figures),
        training=sections.training_charts(run),
        pr=sections.pr_charts(run, figures),
        confusion=sections.confusion(run, figures),
        calibration=sections.calibration_chart(run),
        errors=mistakes,
        mistakes=story.mistake_pictures(
            run, mistakes.worst if mistakes else {}, min(params.pictures, 3)
        ),
        data=story.data_story(run, params.pictures),
        unlabelled=run.unlabelled,
        unlabelled_pictures=story.unlabelled_pictures(run, min(params.pictures, 3)),
        surgery=story.surgery_story(run),
        provenance=lineage.flatten(run.provenance.document() if run.provenance else {}),
        record=lineage.flatten(
            run.training.model_dump(exclude={"versions", "history"}) if run.training else {}
        ),
        params=lineage.flat_params(run.params),
        versions=lineage.versions(run),
        hashes=lineage.hashes(run),
        lock=lineage.lock_table(run),
        commands=lineage.commands(run),
    )
    size = len(text.encode())
    if size > MOST_BYTES:
        raise TopworkError(
            f"report: the page has {size:,} bytes, at most {MOST_BYTES:,} are allowed. Lower"
            " report.pictures in params.yaml."
        )
    return text


def thresholds(figures: Sequence[ClassFigures], min_score: float | None) -> story.Thresholds:
    """The score from which each class's detections are drawn: the one asked for, or the one that is
    best for its F1 on the test set.
    """
    if min_score is not None:
        return story.Thresholds(min_score, {})
    best = {
        (model, figure.name): least
        for figure in figures
        if figure.on == "test"
        for model, least in figure.threshold.items()
        if least is not None
    }
    return story.Thresholds(0.5, best)


def class_notes(run: Run, figures: Sequence[ClassFigures]) -> list[str]:
    """What the class table doesn't show."""
    notes = []
    if not any(figure.on == "source" for figure in figures):
        notes.append(
            "No source set was given (dataset.source), so what was kept is measured on the custom"
            " test set alone; forgetting in the detector's own domain can't be seen from here."
        )
    notes += [
        f"{figure.name}: {figure.note}." for figure in figures if figure.note and not figure.objects
    ]
    if figures and not any(
        found and found.low is not None for figure in figures for found in figure.ap.values()
    ):
        notes.append(
            "No confidence intervals were estimated (evaluate.bootstrap is 0, or the set is too"
            " small)."
        )
    return notes


def render(template: str, package: str = "topwork.report", **context: Any) -> str:
    """Fill a template of a package, which may build on this one's; every value is escaped unless it
    is markup.
    """
    style = Markup(
        files("topwork.report").joinpath("templates/style.css").read_text(encoding="utf-8")
    )
    return _environment(package).get_template(template).render(style=style, **context)


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("topwork.report"), PackageLoader(package)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {"styles": sections.STYLES, "model_titles": MODEL_TITLES}
    return environment
