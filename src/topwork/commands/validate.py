"""`topwork validate`: check a data set, with or without a project."""

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from topwork.errors import DataError

if TYPE_CHECKING:
    from topwork.classes import ClassPlan
    from topwork.evaluation.plan_fit import PlanFit
    from topwork.params.dataset import DatasetParams
    from topwork.validation.findings import Findings
    from topwork.validation.gate import Validation
    from topwork.validation.layout import Layout

LINES = 23  # of a screen, less one for the next prompt
WIDEST = 280  # characters of a message, eight lines of the table's last column


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.epilog = """Examples:
  topwork validate                                          # the data of params.yaml
  topwork validate instances.json --images images.zip       # COCO, images in a folder, zip or tar
  topwork validate export/                                  # finds out what it is, and says so
  topwork validate VOCdevkit/VOC2012                        # Pascal VOC
  topwork validate data.yaml --report findings/             # YOLO, with pictures of what was found
  topwork validate train.json --against test.json           # leakage between two sets
  topwork validate train.json --fix-list drop.yaml          # ids for dataset.drop

Nothing is ever changed.
Exit code: 0 fine, 1 findings of the severity --fail-on or above, 2 wrong usage."""
    parser.add_argument(
        "path",
        nargs="?",
        type=Path,
        help="COCO JSON, VOC folder, YOLO data.yaml, or the folder of an export; left out, the data"
        " of params.yaml",
    )
    parser.add_argument(
        "--images",
        type=Path,
        help="folder, zip or tar with the images (COCO; found by itself next to the JSON)",
    )
    parser.add_argument("--no-images", action="store_true", help="check only the annotations")
    parser.add_argument(
        "--against", type=Path, metavar="PATH", help="a second set, for leakage between the two"
    )
    parser.add_argument("--against-images", type=Path, metavar="PATH", help="its images")
    parser.add_argument(
        "--format",
        choices=["text", "json"],
        default="text",
        help="a table (default) or JSON with every finding",
    )
    parser.add_argument(
        "--fail-on",
        choices=["error", "warning", "never"],
        default="error",
        help="severity from which the exit code is 1",
    )
    parser.add_argument(
        "--fix-list",
        type=Path,
        metavar="FILE",
        help="write the ids of what fails, for dataset.drop; `-` prints them",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FOLDER",
        help="write a page with pictures of findings and histograms there",
    )
    parser.add_argument(
        "--workers",
        type=_positive,
        metavar="N",
        help="processes for image checks (default: all cores)",
    )
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="read every image, even if it is known from earlier runs",
    )


def _positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number from 1")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Check, print what was found, and return the exit code."""
    from topwork.evaluation.plan_fit import PlanFit, plan_fit
    from topwork.validation.gate import stops, validate

    _check_outputs(args)
    given = _dataset(args)
    with_images = not args.no_images and given.lacking is None
    cache = None if args.no_cache else _cache()
    found = validate(given.dataset, cache=cache, images=with_images, workers=args.workers)
    lacking = given.lacking is not None and found.readable and not args.no_images
    fit = PlanFit() if given.plan is None else plan_fit(given.plan, found.tables)
    if args.format == "json":
        _print_json(found, given.layouts, fit)
    else:
        _print_text(found, given.layouts)
        for line in (*fit.faults, *fit.notes):
            print(f"{'error' if line in fit.faults else 'note'}: class plan: {line}")
    failing = stops(found.findings, args.fail_on)
    if args.fix_list is not None:
        _write_fix_list(found.findings, failing or ["error"], args.fix_list)
    if args.report is not None:
        from topwork.validation.gallery import write_gallery

        page = write_gallery(found, Path(), args.report)
        if args.format == "text":
            print(f"report: {page}")
    if lacking:
        print(
            f"error: {given.lacking}: none of its images is near it, so only annotations were"
            " checked. Give their folder or archive by --images, or leave them out by"
            " --no-images.",
            file=sys.stderr,
        )
    unfit = fit.faults and args.fail_on != "never"
    return 1 if failing or lacking or unfit else 0


def _check_outputs(args: argparse.Namespace) -> None:
    """An output must not replace another file: a slip such as `--fix-list train.json` would cost
    the data.

    Raises:
        DataError: it would.
    """
    listed, page = args.fix_list, args.report
    if args.format == "json" and str(listed) == "-":
        raise DataError(
            "topwork validate: --format json and --fix-list - both print; give the list a FILE."
        )
    if (
        listed is not None
        and listed.is_file()
        and not listed.read_bytes().startswith(b"dataset:\n")
    ):
        raise DataError(
            f"{listed}: exists, and isn't a list of ids that this command wrote; --fix-list takes"
            " a new file."
        )
    if page is not None and page.is_dir() and any(page.iterdir()):
        written = page / "index.html"
        if not written.is_file() or b"<title>Findings</title>" not in written.read_bytes()[:1000]:
            raise DataError(
                f"{page}: has other files in it; --report takes a new or empty folder, or one with"
                " an earlier report."
            )


@dataclass(frozen=True)
class _Given:
    """What to check: the section, what its paths were taken for, an annotation file whose images
    weren't found, and the project's class plan.
    """

    dataset: "DatasetParams"
    layouts: "tuple[Layout, ...]" = ()
    lacking: Path | None = None
    plan: "ClassPlan | None" = None


def _dataset(args: argparse.Namespace) -> _Given:
    from topwork.params.dataset import DatasetParams
    from topwork.params.document import load_params
    from topwork.validation.find_layout import find_layout

    if args.path is None:
        if args.images is not None or args.against is not None:
            raise DataError(
                "topwork validate: --images and --against go with a PATH; without one the data of"
                " params.yaml are checked."
            )
        params = load_params()
        return _Given(params.dataset, plan=params.surgery.plan())
    layouts = [find_layout(args.path, args.images)]
    sets = layouts[0].entries()
    if args.against is not None:
        layouts.append(find_layout(args.against, args.against_images))
        free = next(name for name in ("test", "source", "replay") if name not in sets)
        sets[free] = next(iter(layouts[1].entries().values()))
        if sets[free].subset is None and layouts[1].format != "coco":
            sets[free] = sets[free].model_copy(update={"subset": _list_of(layouts[1])})
    lacking = next(
        (
            layout.root / found.annotations
            for layout in layouts
            for found in layout.sets.values()
            if found.lacking
        ),
        None,
    )
    dataset = DatasetParams.model_validate({"root": Path(), **sets})
    return _Given(dataset, tuple(layouts), lacking)


def _list_of(layout: "Layout") -> str | None:
    """The list that a set of another split's name is read from; None for a VOC set without."""
    from topwork.validation.reader import lists_of

    first = next(iter(layout.sets.values()))
    return next(iter(lists_of(layout.root / first.annotations, layout.format)), None)


def _cache() -> Path:
    """A project's scratch folder, or the user's cache folder outside of one."""
    from topwork.project.validate import IMAGE_CACHE

    if Path("params.yaml").is_file():
        return IMAGE_CACHE
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "topwork" / "images"


def _print_json(found: "Validation", layouts: "tuple[Layout, ...]", fit: "PlanFit") -> None:
    from topwork.files import canonical_json
    from topwork.validation.outputs import findings_record, summary

    print(
        canonical_json(
            {
                **findings_record(found.findings, found.dropped).document(),
                "summary": summary(found),
                "taken_for": [layout.description for layout in layouts],
                "plan": fit.document(),
            }
        ),
        end="",
    )


def _print_text(found: "Validation", layouts: "tuple[Layout, ...]") -> None:
    """What paths were taken for, counts by split, then a line a rule: how often, and the first
    place.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from topwork.validation.rules import RULES

    console = Console(highlight=False, soft_wrap=False)
    tables = found.tables
    for layout in layouts:
        line = f"taken for {layout.summary()}"
        console.print(Text(line), no_wrap=True, overflow="ellipsis")
    for split in tables.splits:
        chosen = tables.split(split)
        images, boxes = (
            _counted(len(chosen.images), "image"),
            _counted(len(chosen.annotations), "box", "boxes"),
        )
        console.print(
            Text(
                f"{split}: {images}, {boxes},"
                f" {_counted(chosen.categories['name'].nunique(), 'class', 'classes')}"
            )
        )
    counts = found.findings.by_rule()
    order = list(dict.fromkeys(row.rule for row in found.findings))
    # the table's head, "more rules", the counts, where the page is
    rows = LINES - len(layouts) - len(tables.splits) - 4
    colours = {"error": "bold red", "warning": "yellow", "note": "dim"}
    if order:
        table = Table(box=None, pad_edge=False, expand=True)
        table.add_column("severity", no_wrap=True)
        table.add_column("rule", no_wrap=True)
        table.add_column("found", justify="right", no_wrap=True)
        few = len(order) <= 2  # then there's room for whole sentences
        table.add_column("first", no_wrap=not few, overflow="fold" if few else "ellipsis", ratio=1)
        for rule in order[:rows]:
            severity = RULES[rule].severity
            first = next(row for row in found.findings if row.rule == rule)
            table.add_row(
                Text(severity, colours[severity]),
                rule,
                str(counts[rule]),
                Text(f"{first.split} {first.text().removeprefix(f'{first.file}: ')}"[:WIDEST]),
            )
        console.print(table)
        if len(order) > rows:
            console.print(f"... and {len(order) - rows} more rules; --format json has all.")
    numbers = found.findings.by_severity()
    known, read = found.probed
    looked = f"; {_counted(known, 'image')} looked at, {read} read in this run" if known else ""
    counted = ", ".join(_counted(number, severity) for severity, number in numbers.items())
    console.print(Text(f"{counted}{looked}"))


def _counted(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _write_fix_list(findings: "Findings", severities: list[str], path: Path) -> None:
    """A piece of params.yaml that leaves out what is at fault; faults of whole files have no id to
    leave out.
    """
    from topwork.files import write_text
    from topwork.validation.fixes import fix_list

    text = fix_list(findings, severities)
    if str(path) == "-":
        print(text, end="")
    else:
        write_text(path, text)
