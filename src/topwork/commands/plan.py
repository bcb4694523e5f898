"""`topwork plan`: what a surgery would do, and whether the data fit it; nothing is changed."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topwork.project.fetch import PRETRAINED

if TYPE_CHECKING:
    from topwork.surgery.preview import Preview


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where plan and weights are."""
    parser.epilog = (
        "Example: topwork plan\n         topwork plan --weights coco.safetensors --params"
        " other.yaml --rows"
    )
    parser.add_argument(
        "--params",
        type=Path,
        default=Path("params.yaml"),
        help="params.yaml with a `surgery` section (default: params.yaml)",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        default=PRETRAINED,
        help=f"pretrained weights (default: {PRETRAINED})",
    )
    parser.add_argument(
        "--builder",
        help="in place of the builder that the weights name, and to say that you trust it",
    )
    parser.add_argument(
        "--rows", action="store_true", help="every row of every tensor, not just the classes"
    )
    parser.add_argument(
        "--branch",
        action="store_true",
        help="what a second branch would cost, where params.yaml doesn't ask for one",
    )
    parser.add_argument("--format", choices=["table", "json"], default="table")


def run(arguments: argparse.Namespace) -> int:
    """Print the plan."""
    from dataclasses import asdict

    from topwork.commands.reading import read
    from topwork.evaluation.plan_fit import PlanFit, plan_fit
    from topwork.evaluation.recommendation import recommend
    from topwork.files import canonical_json
    from topwork.params.document import load_params
    from topwork.project.validate import FOLDER, IMAGES
    from topwork.surgery.cost import cost_of
    from topwork.surgery.preview import preview
    from topwork.training.held_out import check_held_out
    from topwork.weights.branches import own_plan, stock_of

    params = load_params(arguments.params)
    plan = params.surgery.plan()
    weights = read(arguments.weights, arguments.builder)
    own = own_plan(weights, plan)
    shown = preview(stock_of(weights), own, builder=arguments.builder)
    project = arguments.params.parent
    tables = None
    if (project / IMAGES).is_file():
        from topwork.dataset.tables import Tables

        tables = Tables.read(project / FOLDER, segmentation=False)
    fit = PlanFit() if tables is None else plan_fit(plan, tables)
    branch = params.finetune.branch
    wanted = arguments.branch or params.finetune.protect == "branch"
    cost = (
        cost_of(weights, plan, cut=branch.cut, mix=branch.share, builder=arguments.builder)
        if wanted
        else None
    )
    advice = recommend(plan)
    if arguments.format == "json":
        document = {
            **asdict(shown),
            "data": fit.document(),
            "branch": cost and asdict(cost),
            "recommended": asdict(advice),
        }
        print(canonical_json(document), end="")
    else:
        print(
            "\n".join(
                _lines(
                    shown,
                    arguments.builder or weights.builder,
                    len(weights.columns),
                    plan.prior,
                    arguments.rows,
                )
            )
        )
        print("\n".join(f"data: {line}" for line in fit.notes), end="\n" if fit.notes else "")
        if cost is not None:
            print(f"\n{cost.sentence}")
        print(f"\n{advice.sentence}")
    fit.check()
    if tables is not None and "replay" in tables.splits:  # else `validate` has to run again first
        check_held_out(plan, tables, params.finetune)
    return 0


def _lines(shown: "Preview", builder: str, columns: int, prior: float, rows: bool) -> list[str]:
    targets = [row for row in shown.classes if row["origin"] != "absorbed"]
    lines = [
        (
            f"{builder}: {columns} columns -> {len(targets)}, {shown.activation} head; nothing is"
            " changed by this command"
        ),
        "",
    ]
    lines += [f"  {row['column']:>3}  {row['class']:<24} {_origin(row, prior)}" for row in targets]
    lines += [
        "",
        (
            f"{len(shown.dropped)} other classes are {shown.done}:"
            f" {', '.join(shown.dropped) or 'none'}"
        ),
        _fate(shown),
        "",
    ]
    for item in shown.tensors:
        lines.append(
            f"{item['tensor']}  {item['role']}, {item['layout']}  {item['shape_before']} ->"
            f" {item['shape_after']}"
        )
        if rows:
            lines += [
                f"    {move['class']:<24} {_list(move['to'])} <- {_sources(move['from'])}"
                for move in item["rows"]
            ]
    lines += [
        f"{shown.untouched} tensors don't depend on the classes and are passed on, bit for bit"
    ]
    return lines


def _origin(row: dict[str, Any], prior: float) -> str:
    if row["origin"] in ("background", "keep"):
        (source,) = row["sources"]
        return "kept" if source == row["class"] else f"kept, from {source}"
    if row["origin"] == "like":
        return "like " + ", ".join(
            f"{name} ({weight:.3g})" for name, weight in row["sources"].items()
        )
    text = f"new, prior {prior:g}" if row["init"] == "prior" else f"new, {row['init']}"
    return text + (
        f"; near in the weights: {', '.join(row['suggestions'])} (write `like:"
        f" {row['suggestions'][0]}`)"
        if row["suggestions"]
        else ""
    )


def _fate(shown: "Preview") -> str:
    """What becomes of the kept classes' scores."""
    if shown.exact:
        return "kept classes' scores stay what they were, but for new rows"
    by_source: dict[str, list[str]] = {}
    for row in shown.classes:
        if row["origin"] == "keep":
            by_source.setdefault(next(iter(row["sources"])), []).append(row["class"])
    shares = [
        f"{' and '.join(names)} share the probability of {source}"
        for source, names in by_source.items()
        if len(names) > 1
    ]
    gone = (
        ["kept classes' scores change, their competitors are gone"]
        if shown.done == "removed" and (shown.dropped or not shares)
        else []
    )
    return "; ".join(gone + shares)


def _sources(sources: dict[str, list[int]]) -> str:
    return "; ".join(f"{name} {_list(rows)}" for name, rows in sources.items()) or "new"


def _list(rows: list[int]) -> str:
    return f"[{', '.join(map(str, rows))}]"
